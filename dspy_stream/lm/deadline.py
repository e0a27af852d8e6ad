"""One budget of time for a call and everything it waits for.

The retry layer knows how long the whole call may still take and says so through :data:`BUDGET`;
whoever waits below it asks :func:`seconds_left`. Only the transport enforces it, with one timer.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

__all__ = ["BUDGET", "Within", "seconds_left"]

BUDGET: Final[ContextVar[float | None]] = ContextVar("dspy_stream_lm_budget", default=None)


def seconds_left(limit: float) -> float:
    """The smaller of ``limit`` and what is left of the call's budget when this attempt began."""
    budget = BUDGET.get()
    return limit if budget is None or budget > limit else budget


class Within:
    """Cut the block short after ``seconds``, raising ``TimeoutError``.

    What ``asyncio.timeout`` does, for Python 3.10 too. A cancellation from outside passes through;
    on 3.10, where the two cannot be told apart, one that arrives in the same instant is a timeout.
    """

    __slots__ = ("_expired", "_handle", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._handle = asyncio.get_running_loop().call_later(max(0.0, self._seconds), self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if not self._expired:
            return
        uncancel = getattr(self._task, "uncancel", None)  # from Python 3.11 on
        others = uncancel() if uncancel is not None else 0
        if kind is not None and issubclass(kind, asyncio.CancelledError) and others == 0:
            raise TimeoutError from None
