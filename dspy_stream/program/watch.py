"""Who hears of the calls of modules and tools, and of the answers of predictors, while they are made."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol

__all__ = ["WATCHER", "Watcher", "watched"]


class Watcher(Protocol):
    """Called in the thread of the call; must not block or raise."""

    def started(self, kind: Literal["module", "tool"], instance: Any, inputs: Mapping[str, Any]) -> None:
        """A call begins; the inputs are those that callbacks get: ``args`` and ``kwargs``."""
        ...

    def ended(self, kind: Literal["module", "tool"], instance: Any, outputs: Any) -> None:
        """A call has returned, or it has raised: then the outputs are None."""
        ...

    def attend(self, predictor: Any, plan: Any, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The steps of one call of a predictor under an engine's plan, with somebody listening."""
        ...


WATCHER: Final[ContextVar[Watcher | None]] = ContextVar("dspy_stream_watcher", default=None)


class watched:
    """Context manager: the call within it is told to the watcher, if there is one; it sets ``outputs``."""

    __slots__ = ("_inputs", "_instance", "_kind", "_watcher", "outputs")

    def __init__(self, kind: Literal["module", "tool"], instance: Any, inputs: Mapping[str, Any]) -> None:
        self._kind = kind
        self._instance = instance
        self._inputs = inputs
        self._watcher = WATCHER.get()
        self.outputs: Any = None

    def __enter__(self) -> watched:
        if self._watcher is not None:
            self._watcher.started(self._kind, self._instance, self._inputs)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._watcher is not None and (kind is None or issubclass(kind, Exception)):
            self._watcher.ended(self._kind, self._instance, self.outputs)
