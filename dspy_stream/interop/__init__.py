"""Work with other libraries; each is imported when it is first needed, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_stream.errors import ConfigurationError
from dspy_stream.interop.dspy_adapter import DSPyAdapter
from dspy_stream.interop.dspy_module import DSPyModule

if TYPE_CHECKING:
    from dspy_stream.interop.stream_lm import StreamLM as StreamLM

__all__ = ["DSPyAdapter", "DSPyModule", "StreamLM"]


def __getattr__(name: str) -> Any:
    if name != "StreamLM":
        raise AttributeError(f"module 'dspy_stream.interop' has no attribute {name!r}")
    try:
        from dspy_stream.interop.stream_lm import StreamLM
    except ModuleNotFoundError as error:
        if error.name != "dspy":
            raise
        raise ConfigurationError(
            'StreamLM needs DSPy itself; install it with: pip install "dspy_stream[dspy]"'
        ) from error
    return StreamLM
