"""Whether more calls in flight bring more answers where many calls fail: the window, widened on trial.

Sans-IO: every method is told the time.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Rise"]

_ENOUGH: Final = 8  # answers from which a rate is taken
_SHORTEST: Final = 0.5
_LONGEST: Final = 5.0  # a trial in which so little comes is over
_MORE: Final = 1.4  # of twice the calls, so many times the answers are wanted
_HOLD: Final = 5.0
# A server that is overloaded is well again after so long with a smaller window, and no trial is made.
_SETTLED: Final = 3.0
_ROUNDS: Final = 10.0


class Rise:
    """Trials of a window: the answers a second at one size, then at twice that size.

    ``floor`` is the size that has proved itself: failures do not take the window below it. While a
    trial is ``active`` the window stays at ``limit``.
    """

    __slots__ = ("_base", "_began", "_count", "_holds", "_until", "active", "floor", "limit")

    def __init__(self) -> None:
        self.active = False
        self.floor = 0.0
        self.limit = 0.0
        self._base: float | None = None  # answers a second at half the size
        self._began = 0.0
        self._count = 0
        self._holds = 0
        self._until: float | None = None  # no trial before then; None while all is well

    def calm(self) -> None:
        """Few calls fail now: there is nothing to be tried."""
        self.active = False
        self.floor = 0.0
        self._holds = 0
        self._until = None

    def holds(self, now: float) -> bool:
        """True while a failure must not change the window."""
        if self.active and now - self._began > _LONGEST:
            self._over(now)
        return self.active

    def answered(self, now: float, sent: float, limit: float, *, pressed: bool) -> bool:
        """A call was answered where many fail; True where the window is to be ``limit`` wide from now on.

        ``pressed``: calls wait for the window of this moment, which is ``limit`` wide.
        """
        if self._until is None:
            self._until = now + _SETTLED + _ROUNDS * (now - sent)
        if not self.holds(now):
            if not pressed or now < self._until:
                return False
            self._base = None
            self._start(now, limit)
            return True
        if sent < self._began:
            return False  # sent when the window had another size
        self._count += 1
        lasted = now - self._began
        if self._count < _ENOUGH or lasted < _SHORTEST:
            return False
        rate = self._count / lasted
        if self._base is not None and rate < _MORE * self._base:
            self.limit = max(self.limit / 2.0, 1.0)
            self._over(now)
            return True
        if self._base is not None:
            self.floor = self.limit
            self._holds = 0
        self._base = rate
        self._start(now, 2.0 * limit)
        return True

    def _start(self, now: float, limit: float) -> None:
        self.active = True
        self.limit = limit
        self._began = now
        self._count = 0

    def _over(self, now: float) -> None:
        self.active = False
        self._until = now + _HOLD * 2.0**self._holds
        self._holds = min(self._holds + 1, 5)


