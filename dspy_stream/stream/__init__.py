"""Streams: rows from a source, through modules, to a sink, on bytewax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

_EXPORTS: Final[dict[str, str]] = {
    "Flow": "flow",
    "Limit": "limits",
    "Report": "report",
    "RunOptions": "run",
    "StepPolicy": "stream",
    "Stream": "stream",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    home = _EXPORTS.get(name)
    if home is None:
        raise AttributeError(f"module 'dspy_stream.stream' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dspy_stream.stream.{home}"), name)


if TYPE_CHECKING:
    from dspy_stream.stream.flow import Flow as Flow
    from dspy_stream.stream.limits import Limit as Limit
    from dspy_stream.stream.report import Report as Report
    from dspy_stream.stream.run import RunOptions as RunOptions
    from dspy_stream.stream.stream import StepPolicy as StepPolicy
    from dspy_stream.stream.stream import Stream as Stream
