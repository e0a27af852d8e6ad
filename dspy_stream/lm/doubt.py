"""Whether failures come from too many calls at once: the share that fails, before and after fewer were sent.

Sans-IO: every method is told the time.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Doubt"]

_ENOUGH: Final = 32  # outcomes from which a share is taken, and so many answers among them
_ANSWERS: Final = 4
_MANY: Final = 128  # of which not even so many are answers: an outage, from which nothing is learned
_EXPECTED: Final = 8.0  # failures, if their share has not changed
_FEWER: Final = 0.5  # of the failures
_MORE: Final = 1.4  # times the answers
_HOLD: Final = 5.0


class Doubt:
    """Two counts for one episode of failures: of calls sent before the window was halved, and after it.

    ``active`` while the second is taken: the window must stay as it is. ``until``: failures do not shrink
    the window before then, since fewer calls have not helped.
    """

    __slots__ = (
        "_bad",
        "_bad_before",
        "_good",
        "_good_before",
        "_holds",
        "_limit",
        "_since",
        "_whole",
        "active",
        "until",
    )

    def __init__(self) -> None:
        self.active = False
        self.until = 0.0
        self._holds = 0
        self._begin(0.0)

    def _begin(self, limit: float) -> None:
        self._limit = (
            limit  # how many calls were in flight when the failures began; zero while there are none
        )
        self._whole = limit  # how many might have been
        self._good = self._bad = self._good_before = self._bad_before = 0
        self._since = 0.0

    def calm(self) -> None:
        """Few calls fail now."""
        if self._limit or self._holds:
            self.active = False
            self._holds = 0
            self._begin(0.0)

    def cut(self, now: float, whole: float, in_flight: float, limit: float) -> None:
        """The window, which was ``whole`` and of which ``in_flight`` were used, was shrunk to ``limit``."""
        if not self._limit:
            self._limit, self._whole = in_flight, whole
        if limit <= 0.5 * self._limit:
            self.active = True
            self._since = now

    def answered(self, now: float, sent: float) -> float:
        """A call was answered; the window that is to be gone back to, zero for none."""
        if not self.active or sent < self._since:
            self._good_before += 1
            return 0.0
        self._good += 1
        return self._judged(now)

    def failed(self, now: float, sent: float) -> float:
        """A call failed as calls to an overloaded server do; see :meth:`answered`."""
        if not self.active or sent < self._since:
            self._bad_before += 1
            return 0.0
        self._bad += 1
        return self._judged(now)

    def _judged(self, now: float) -> float:
        made = self._good + self._bad
        before = max(self._good_before + self._bad_before, 1)
        share = self._bad_before / before
        if made < _ENOUGH or made * share < _EXPECTED or (self._good < _ANSWERS and made < _MANY):
            return 0.0
        fewer = self._bad <= _FEWER * share * made
        more = self._good >= _MORE * (1.0 - share) * made
        down = self._good < _ANSWERS
        limit = self._whole
        self.active = False
        self._begin(0.0)
        if fewer or more or down:
            return 0.0  # it has helped, or it is an outage
        self.until = now + _HOLD * 2.0**self._holds
        self._holds = min(self._holds + 1, 5)
        return limit
