"""What calls take of an allowance, learnt from what headers say was left."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from dspy_stream.lm.rates import Allowance

__all__ = ["BURST", "LEARNT", "Mark", "Toll"]

BURST: Final = 0.05
"""Seconds within which calls may arrive in another order than they were sent in."""

LEARNT: Final = 4
"""Calls from which it is learned what one takes."""

# Above this share of an allowance it may be full, and says nothing of what a call takes.
_FULL: Final = 0.95
# In guesses: how far calls are from what is thought of them at the most, and how much more uncertain that
# becomes with every call.
_NOISE: Final = 2.0
_DRIFT: Final = 0.05
# In allowances: how uncertain the room for an answer is at first, what others may have used before anything
# was said, what each call is believed to have taken by then at the most, and what headers round off.
_ROOM: Final = 0.05
_OTHERS: Final = 0.01
_MOST: Final = 0.1
_ROUNDED: Final = 0.005
# Calls of a burst of which it is not known whether they had come, as a share of it.
_DISORDER: Final = 0.25
# Calls over which guesses, and how wrong they were, are remembered.
_MEMORY: Final = 24.0
_TRIED: Final = 64.0


class Mark(NamedTuple):
    """A moment, by the call that was sent last: what had been taken out by then, as guessed and as reckoned.

    ``open`` calls were in flight. ``burst`` is when the first of the calls was sent that were sent together
    with it, and how many they are.
    """

    number: int
    sent: float
    guessed: float
    spent: float
    open: int
    burst: list[float]


class Toll:
    """What calls take beyond what is guessed of each: ``more`` for good, and ``room`` until the answer.

    A provider may keep room for the longest answer that is allowed, and give back what was not used. Both
    numbers are learnt from what was taken off between two headers, by calls that were sent and by how many
    more were in flight then: a Kalman filter. ``rooms`` is False where no room is kept, as for requests.
    ``wrong`` is how far it was off of late, as the logarithm of a square, so that an outlier weighs little.
    """

    __slots__ = ("_cross", "_of_more", "_of_room", "_rooms", "_since", "guess", "more", "room", "wrong")

    def __init__(self, guess: float, *, rooms: bool) -> None:
        self.guess = guess = max(guess, 1.0)  # units of a call, in the mean
        self.more = self.room = 0.0
        self.wrong = math.log(guess * guess + 1.0)
        # A moment, what was left then, and when it was to be full.
        self._since: tuple[Mark, float, float] | None = None
        self._rooms = rooms
        self._of_more = ((1.0 if rooms else 4.0) * guess) ** 2
        self._of_room = self._cross = 0.0

    def first(self, mark: Mark, said: Allowance) -> None:
        """Take in the first word there is, as if nobody else had taken any."""
        self._of_room = (self._rooms * max(_ROOM * said.limit, 10.0 * self.guess)) ** 2
        calls = max(mark.number, 1)
        most = max(5.0 * self.guess, self._rooms * _MOST * said.limit)
        taken = min(said.limit - said.remaining, calls * most)
        self._fit(calls, mark.open, calls * self.guess, taken, (self._rooms * _OTHERS * said.limit) ** 2)

    def heard(self, mark: Mark, said: Allowance, refill: float) -> None:
        """Take in what was left at a moment, of an allowance that comes back at ``refill`` a second."""
        left = said.remaining
        full_at = math.inf if said.reset is None else mark.sent + said.reset
        if self._since is None:
            self._since = (mark, left, full_at)
            return
        since, before, renewed_at = self._since
        calls = mark.number - since.number
        if calls < LEARNT or mark.sent - since.sent < BURST:
            return
        self._since = (mark, left, full_at)
        if (
            mark.sent >= renewed_at
            or left > before + 0.5 * said.limit
            or max(left, before) > _FULL * said.limit
        ):
            return  # it may have been full in between, or is again
        taken = before - left + (mark.sent - since.sent) * refill
        together = since.burst[1] + mark.burst[1]
        blur = _ROUNDED * said.limit
        if together > 2.0:
            blur += _DISORDER * together * self.takes(self.guess)
        noise = calls * min(4.0 * math.exp(self.wrong), (_NOISE * self.guess) ** 2) + blur * blur
        guessed = mark.guessed - since.guessed
        missed = self._fit(calls, mark.open - since.open, guessed, taken, noise)
        self.wrong += (math.log(missed * missed / calls + 1.0) - self.wrong) * calls / (calls + _TRIED)
        self.guess += (guessed / calls - self.guess) * calls / (calls + _MEMORY)

    def _fit(self, calls: int, opened: int, guessed: float, taken: float, noise: float) -> float:
        missed = taken - guessed - calls * self.more - opened * max(self.room, 0.0)
        for_more = calls * self._of_more + opened * self._cross
        for_room = calls * self._cross + opened * self._of_room
        doubt = calls * for_more + opened * for_room + noise
        self.more += missed * for_more / doubt
        self.room += missed * for_room / doubt
        drift = calls * (_DRIFT * self.guess) ** 2
        self._of_more += drift - for_more * for_more / doubt
        self._of_room += self._rooms * drift - for_room * for_room / doubt
        self._cross -= for_more * for_room / doubt
        return missed

    def refused(self, left: float | None) -> None:
        """A call took nothing, and ``left`` was not enough for it; None where it is not known."""
        self._since = None
        takes = self.takes(self.guess)
        # Where far more was left, it was refused for another reason.
        if self._rooms and left is not None and takes < 1.1 * left < 2.0 * takes:
            self.room = max(self.room, 0.0) + 1.1 * left - takes

    @property
    def back(self) -> float:
        """What surely comes back of a call once it is answered."""
        return max(0.0, self.room - math.sqrt(max(self._of_room, 0.0)))

    def takes(self, units: float) -> float:
        """What a call that was guessed at so many units takes until it is answered."""
        room = max(self.room, 0.0)
        # More than was guessed is the same for all; less is a share of each.
        if self.more >= 0.0:
            return units + self.more + room
        return units * max(0.05, 1.0 + self.more / max(self.guess, 1e-6)) + room
