"""Rates that are known, from settings or from a provider's headers, in requests or in tokens."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from dspy_stream.lm.rates import Allowance
from dspy_stream.lm.toll import BURST, LEARNT, Mark, Toll
from dspy_stream.types import Request, Usage

__all__ = ["Known", "Sizes", "Throttle"]

_SLACK: Final = 0.1
# The share of an allowance that is left alone, for what others use and for guesses that are wrong.
_KEPT: Final = 0.1
# Less where all comes back at one moment: what is left then is lost.
_KEPT_AT_ONCE: Final = 0.03
# Seconds, of what comes back, from which it is told whether it does so evenly.
_JUDGED: Final = 3.0
# Seconds in which an allowance comes back at the latest, where nothing is heard of it any more.
_LONGEST: Final = 600.0
# One way to read headers is taken for the other where its logarithm of what it was wrong is so much less.
_BETTER: Final = 2.0
# By itself: nobody else was sent together with it.
_ALONE: Final = [-math.inf, 1.0]
# Calls whose answers may still come; of older ones nothing is kept.
_RING: Final = 8192
# How fast guesses of what calls take follow what they took.
_STEP: Final = 0.1
_BLOCK: Final = 4000
_MEMO: Final = "limit.size"


class Known:
    """So many units a second, evenly: what is spent is paid back before the next call may go."""

    __slots__ = ("_free_at", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free_at = 0.0

    def free_at(self, units: float) -> float:  # noqa: ARG002 - it is paid afterwards
        """When a call that takes so many units may go."""
        return self._free_at

    def spend(self, now: float, units: float, number: int) -> None:  # noqa: ARG002 - all are alike
        """Take ``units`` out for a call; moves ``free_at``."""
        self._free_at = max(self._free_at, now - _SLACK) + units / self.rate

    def correct(self, units: float) -> None:
        """So many more units than was thought have been taken out."""
        self._free_at += units / self.rate


class Throttle:
    """An allowance as the provider sees it: what it said was left, what came back, and what went since.

    Whatever has been sent after the call that an answer belongs to is taken off what that answer says, so
    neither the time that answers take nor their order matters. A call may go when what it takes is there,
    and a tenth of the allowance beside it. What a call takes is its guess, corrected by what the
    provider took off for the calls before it: it may count otherwise, and keep room for the whole answer
    until that is there. Headers may say what was left when the call came, or when it was answered; which of
    both is found out too.

    ``guess`` is what a call takes in the mean, ``newest`` the number of the last one that was sent and
    ``flying`` how many are in flight; ``rooms`` says whether room may be kept for answers.
    """

    __slots__ = (
        *("_at", "_at_once", "_burst", "_first", "_first_open", "_full_at", "_full_spent", "_guessed"),
        *("_heard", "_last", "_level", "_limit", "_marks", "_newest", "_open", "_refill", "_spent"),
        *("_together", "_told", "_toll", "_tolls", "_word"),
    )

    def __init__(self, guess: float, newest: int, flying: int = 0, *, rooms: bool = False) -> None:
        self._limit = self._level = math.inf
        self._at = 0.0
        self._full_at, self._full_spent = math.inf, 0.0
        self._refill = 0.0
        self._at_once = False
        # When, at what moment it was to be full, and what was left.
        self._told: tuple[float, float, float] | None = None
        self._tolls = (Toll(guess, rooms=rooms), Toll(guess, rooms=rooms))  # of calls that came, and answers
        self._toll = self._tolls[0]
        self._guessed = self._spent = 0.0
        self._first, self._first_open = newest, flying  # calls up to this number left no mark
        self._newest, self._open = newest, flying
        self._heard = 0
        self._word = (0, 0.0)  # which call was told last, and what was left
        self._last = math.inf  # that, and what had been spent by then
        self._marks: deque[Mark] = deque(maxlen=_RING)
        self._together = _ALONE  # calls that are sent now: when the first was, and how many
        self._burst = -math.inf  # when the first was sent of those of which it was heard

    @property
    def rate(self) -> float:
        """Units a second that come back, while that is what decides; infinity while enough is left."""
        low = self._level < 2.0 * _KEPT * self._limit
        return self._refill if low and not self._at_once else math.inf

    def free_at(self, units: float) -> float:
        """When a call that takes so many units, as guessed, may go."""
        kept = _KEPT_AT_ONCE if self._at_once else _KEPT
        wanted = min(self._toll.takes(units) + kept * self._limit, self._limit)
        if self._level >= wanted or (not self._open and self._last - self._spent >= wanted):
            return 0.0  # one by itself tells what there is
        back_at = self._at + (wanted - self._level) / max(self._refill, self._limit / _LONGEST)
        if self._full < wanted:
            return back_at
        return self._full_at if self._at_once else min(back_at, self._full_at)

    @property
    def _full(self) -> float:
        """What is there once it is said to be full, but for what was taken since that was said."""
        return self._limit - (self._spent - self._full_spent)

    def spend(self, now: float, units: float, number: int) -> None:
        """Take ``units`` out for call ``number``."""
        takes = self._toll.takes(units)
        self._guessed += units
        level = self._level + self._back(now - self._at)
        if now >= self._full_at:
            level = max(level, self._full)
        self._level, self._at = min(self._limit, level) - takes, now
        self._spent += takes
        self._open += 1
        self._newest = number
        if now - self._together[0] < BURST:
            self._together[1] += 1.0
        else:
            self._together = [now, 1.0]
        self._marks.append(Mark(number, now, self._guessed, self._spent, self._open, self._together))

    def closed(self, number: int, *, refused: bool = False) -> None:
        """Call ``number`` is in flight no more; a refused one took nothing, which the header says."""
        self._open -= 1
        if refused:
            told, left = self._word
            for toll in self._tolls:
                toll.refused(left if told == number else None)
            return
        room = self._toll.back
        self._spent -= room
        self._full_spent -= room  # what comes back once it is full is lost
        self._level = min(self._limit, self._level + room)

    def heard(self, said: Allowance, now: float, number: int, latency: float) -> None:
        """The provider has said what was left at call ``number``; ``latency`` is of an answer."""
        self._limit = said.limit
        mark = self._moment(said, now, number, latency)
        if mark is None:
            return
        self._judge(mark, said)
        level = said.remaining + self._back(now - mark.sent) - (self._spent - mark.spent)
        crowd, again = mark.burst[1], mark.sent - self._burst < BURST
        if again or (crowd > LEARNT and crowd * self._toll.takes(self._toll.guess) > _KEPT * said.limit):
            # They may have come in another order: of what they are told the least is true.
            level = min(level, self._level + self._back(now - self._at))
        if not again:
            self._burst = mark.sent
        self._level, self._at = min(level, said.limit), now
        self._last = said.remaining + mark.spent
        self._word = (number, said.remaining)
        self._full_at = math.inf if said.reset is None else mark.sent + said.reset * 1.01 + 0.01
        self._full_spent = mark.spent

    def _moment(self, said: Allowance, now: float, number: int, latency: float) -> Mark | None:
        """When that much was left, after learning from it; None where a later word is known."""
        early, late = self._tolls
        came = None if number < self._heard else self._mark(now, number, latency)
        spent = self._spent - self._toll.back
        answered = Mark(self._newest, now, self._guessed, spent, max(self._open - 1, 0), _ALONE)
        if came is not None:
            if not self._heard:
                early.first(came, said)
                late.first(answered, said)
            self._heard = number
            early.heard(came, said, self._back(1.0))
        late.heard(answered, said, self._back(1.0))
        other = late if self._toll is early else early
        # Calls that seem to take far less while they are open fit by chance.
        if other.wrong < self._toll.wrong - _BETTER and other.room > -other.guess:
            self._toll = other
        return answered if self._toll is late else came

    def _mark(self, now: float, number: int, latency: float) -> Mark:
        marks = self._marks
        while marks and marks[0].number < number:
            marks.popleft()
        if marks and marks[0].number == number:
            return marks.popleft()
        before = self._first - number  # it was sent before anybody counted
        toll = self._toll
        spent = -before * toll.takes(toll.guess)
        return Mark(
            number, now - latency, -before * toll.guess, spent, max(1, self._first_open - before), _ALONE
        )

    def _judge(self, mark: Mark, said: Allowance) -> None:
        """Whether it comes back evenly, and how fast, or all at one moment, which then stays as it is."""
        found = said.refill
        if found is None or said.reset is None:
            self._refill = self._refill or said.limit / 60.0
            self._told = None
            return
        missing = 1.0 - said.remaining / said.limit
        if not self._at_once:
            self._refill += (found - self._refill) * (missing if self._refill else 1.0)
        moment, left = mark.sent + said.reset, said.remaining
        if self._told is None or left > self._told[2] + 0.5 * said.limit:
            self._told = (mark.sent, moment, left)
            return
        sent, before, had = self._told
        moves = mark.sent - sent + (had - left) / found  # as long as what was taken needs to come back
        if abs(moves) >= _JUDGED:
            self._at_once = abs(moment - before) < 0.25 * abs(moves)
            self._told = (mark.sent, moment, left)

    def _back(self, seconds: float) -> float:
        return 0.0 if self._at_once else seconds * self._refill


class Sizes:
    """How many tokens a call will take, guessed from its text and from what earlier ones took."""

    __slots__ = ("characters", "completion", "prompt")

    def __init__(self) -> None:
        self.characters = 800.0
        self.prompt = 200.0
        self.completion = 200.0

    def guess(self, request: Request) -> float:
        """Tokens of the prompt; costs a glance at the row's own messages."""
        return _characters(request) * self.prompt / self.characters

    def learn(self, request: Request, usage: Usage) -> None:
        """What a call took in the end."""
        characters = _characters(request)
        if characters and usage.prompt_tokens > 0:
            self.characters += _STEP * (characters - self.characters)
            self.prompt += _STEP * (usage.prompt_tokens - self.prompt)
        self.completion += _STEP * (usage.completion_tokens - self.completion)


def _characters(request: Request) -> int:
    memo = request.head.memo
    size: int | None = memo.get(_MEMO)
    if size is None:
        size = memo[_MEMO] = sum(_size(message.content) for message in request.head.messages)
    return size + sum(_size(message.content) for message in request.tail)


def _size(content: object) -> int:
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, tuple):
        return 0
    texts = [block.get("text") for block in content]
    return sum(len(text) if isinstance(text, str) else _BLOCK for text in texts)
