"""Who hears of the calls of modules and tools, and of the answers of predictors, while they are made."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol

__all__ = ["WATCHER", "Watcher"]


class Watcher(Protocol):
    """Called in the thread of the call; must not block or raise."""

    def started(self, kind: Literal["module", "tool"], instance: Any, inputs: Mapping[str, Any]) -> None:
        """A call begins; the inputs are those that callbacks get: ``args`` and ``kwargs``."""
        ...

    def ended(self, kind: Literal["module", "tool"], outputs: Any) -> None:
        """A call has returned; of one that raises nothing is heard."""
        ...

    def attend(self, predictor: Any, plan: Any, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The steps of one call of a predictor under an engine's plan, with somebody listening."""
        ...


WATCHER: Final[ContextVar[Watcher | None]] = ContextVar("dspy_stream_watcher", default=None)
