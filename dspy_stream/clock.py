"""Time as an argument.

Durations and deadlines use ``monotonic``, which no clock step can move; ``time`` is for stamps
that people read. Tests hand in a :class:`FakeClock` and never wait.
"""

from __future__ import annotations

import asyncio
import time as _time
from typing import Protocol

__all__ = ["Clock", "FakeClock", "SystemClock"]


class Clock(Protocol):
    """What the package needs of time: two readings and one wait."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    def time(self) -> float:
        """Seconds since the epoch, UTC; may jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``; zero or less yields once."""
        ...


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    # Not methods around them: every layer of every call asks.
    monotonic = staticmethod(_time.monotonic)
    time = staticmethod(_time.time)

    async def sleep(self, seconds: float) -> None:
        """Wait on the running event loop."""
        await asyncio.sleep(max(0.0, seconds))


class FakeClock:
    """A clock that moves only when it is told to; sleeping moves it.

    >>> clock = FakeClock(start=10.0)
    >>> asyncio.run(clock.sleep(2.5))
    >>> clock.monotonic(), clock.slept
    (12.5, [2.5])
    """

    __slots__ = ("_now", "slept")

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """The current reading."""
        return self._now

    def time(self) -> float:
        """The current reading, as a stamp."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Record the wait, move the clock, and let other tasks run."""
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)
