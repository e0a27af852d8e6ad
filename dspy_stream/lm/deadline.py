"""One budget of time for a call and everything it waits for.

The retry layer knows how long the whole call may still take and says so through :data:`BUDGET`;
whoever waits below it asks :func:`seconds_left`. The transport enforces it with one timer, and so do
the models that users write, whose time stands still while they ask another model: that has its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final

__all__ = ["BUDGET", "Watch", "Within", "apart", "seconds_left"]

BUDGET: Final[ContextVar[float | None]] = ContextVar("dspy_stream_lm_budget", default=None)


def seconds_left(limit: float) -> float:
    """The smaller of ``limit`` and what is left of the call's budget when this attempt began."""
    budget = BUDGET.get()
    return limit if budget is None or budget > limit else budget


def _cancellations(task: asyncio.Task[Any]) -> int:
    """How often a task was cancelled; Python 3.10 does not say."""
    if sys.version_info >= (3, 11):
        return task.cancelling()
    return 0


class Within:
    """Cut the block short after ``seconds``, raising ``TimeoutError``.

    What ``asyncio.timeout`` does, for Python 3.10 too. A cancellation from outside passes through;
    on 3.10, where the two cannot be told apart, one that arrives in the same instant is a timeout.
    """

    __slots__ = ("_before", "_expired", "_handle", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._before = _cancellations(task)
        self._handle = loop.call_later(max(0.0, self._seconds), self._expire)

    def heed(self) -> None:
        """Raise a cancellation that what was awaited in the block has not passed on.

        Some futures go on with a result that was ready when it arrived, as if there had been none.
        """
        if _cancellations(self._task) > self._before:
            raise asyncio.CancelledError

    def at_most(self, seconds: float) -> None:
        """From now on so many seconds are enough."""
        loop = asyncio.get_running_loop()
        if not self._expired and loop.time() + seconds < self._handle.when():
            self._handle.cancel()
            self._handle = loop.call_later(seconds, self._expire)

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


class Watch(Within):
    """A time limit that can be held, from any thread; ``held``: until :meth:`go_on` is called once.

    What is asked in the block finds it through :func:`apart`. ``waited`` are the seconds held.
    """

    __slots__ = ("_holds", "_left", "_loop", "_over", "_since", "_token", "waited")

    def __init__(self, seconds: float, *, held: bool = False) -> None:
        super().__init__(seconds)
        self.waited = 0.0
        self._holds = 1 if held else 0
        self._left = seconds
        self._over = False

    @property
    def expired(self) -> bool:
        """Whether the time ran out."""
        return self._expired

    def __enter__(self) -> None:
        super().__enter__()
        self._loop = asyncio.get_running_loop()
        self._token: Token[Watch | None] = _WATCH.set(self)
        if self._holds:
            self._stop()

    def hold(self) -> None:
        """Let no time pass until :meth:`go_on`, called as often."""
        self._tell(self._hold)

    def go_on(self) -> None:
        """Let time pass again."""
        self._tell(self._go_on)

    def _tell(self, what: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what)

    def _hold(self) -> None:
        self._holds += 1
        if self._holds == 1 and not self._over:
            self._stop()

    def _stop(self) -> None:
        self._since = self._loop.time()
        self._left = self._handle.when() - self._since
        self._handle.cancel()

    def _go_on(self) -> None:
        self._holds -= 1
        if self._holds == 0 and not self._over:
            self.waited += self._loop.time() - self._since
            if not self._expired:
                self._handle = self._loop.call_later(max(0.0, self._left), self._expire)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        if self._holds:
            self.waited += self._loop.time() - self._since
        _WATCH.reset(self._token)
        super().__exit__(kind, error, trace)


_WATCH: Final[ContextVar[Watch | None]] = ContextVar("dspy_stream_lm_watch", default=None)


@contextmanager
def apart() -> Iterator[None]:
    """Around a call that has a deadline of its own: it is not the time of whoever makes it."""
    watch = _WATCH.get()
    if watch is None:
        yield
        return
    watch.hold()
    try:
        yield
    finally:
        watch.go_on()
