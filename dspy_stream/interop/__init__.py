"""Work with other libraries; each is imported when it is first needed, and nowhere else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from dspy_stream.interop.dspy_adapter import DSPyAdapter

if TYPE_CHECKING:
    from dspy_stream.interop.dspy_module import DSPyModule as DSPyModule
    from dspy_stream.interop.stream_lm import StreamLM as StreamLM

__all__ = ["DSPyAdapter", "DSPyModule", "StreamLM"]

_LATER: Final = {"DSPyModule": "dspy_module", "StreamLM": "stream_lm"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'dspy_stream.interop' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"dspy_stream.interop.{_LATER[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "dspy":
            raise
        from dspy_stream.errors import ConfigurationError

        raise ConfigurationError(
            f'{name} needs DSPy itself; install it with: pip install "dspy_stream[dspy]"'
        ) from error
