"""Rates that are known, from settings or from a provider's headers, in requests or in tokens."""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

from dspy_stream.lm.rates import Allowance
from dspy_stream.types import Request, Usage

__all__ = ["Known", "Sizes", "Throttle"]

_SLACK: Final = 0.1
# The share of an allowance that is left alone, for what others use and for guesses that are wrong.
_KEPT: Final = 0.1
# Less where all comes back at one moment: what is left then is lost.
_KEPT_AT_ONCE: Final = 0.03
# Above this share of an allowance it may be full, and says nothing of what a call takes.
_FULL: Final = 0.95
# Seconds, of what comes back, from which it is told whether it does so evenly.
_JUDGED: Final = 3.0
# Seconds within which calls may arrive in another order: of what they were told the least is true.
_BURST: Final = 0.05
# Seconds in which an allowance comes back at the latest, where nothing is heard of it any more.
_LONGEST: Final = 600.0
# Calls from which it is learned what one takes, and over so many it is remembered.
_LEARNT: Final = 4
_MEMORY: Final = 24.0
# Room that is kept for an answer and given back is seen in part: it is soon believed that a call takes
# more than was thought, and late that it takes less.
_SLOWLY: Final = 0.15
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


class _Mark(NamedTuple):
    """A call that was sent: what had been taken out by then, as guessed and as reckoned."""

    number: int
    sent: float
    guessed: float
    spent: float


class Throttle:
    """An allowance as the provider sees it: what it said was left, what came back, and what went since.

    Whatever has been sent after the call that an answer belongs to is taken off what that answer says, so
    neither the time that answers take nor their order matters. A call may go when what it takes is there,
    and a tenth of the allowance beside it. What a call takes is its guess, corrected by what the
    provider took off for the calls before it: it may count otherwise, or keep room for the whole answer.
    """

    __slots__ = (
        *(
            "_at",
            "_at_once",
            "_burst",
            "_first",
            "_full_at",
            "_full_spent",
            "_guess",
            "_guessed",
            "_heard",
            "_level",
            "_limit",
        ),
        *("_marks", "_more", "_refill", "_since", "_spent", "_told"),
    )

    def __init__(self, guess: float, newest: int) -> None:
        self._limit = self._level = math.inf
        self._at = 0.0
        self._full_at, self._full_spent = math.inf, 0.0
        self._refill = 0.0
        self._burst = -math.inf  # when its first call was sent
        self._at_once = False
        self._told: tuple[float, float, float] | None = (
            None  # when, what moment it was to be full, what was left
        )
        self._guess = guess  # units of a call, in the mean, and how many more are taken off
        self._more = 0.0
        self._guessed = self._spent = 0.0
        self._first = newest  # calls up to this number left no mark
        self._heard = 0
        self._marks: deque[_Mark] = deque(maxlen=_RING)
        self._since: tuple[_Mark, float] | None = None  # a call, and what was left when it came

    @property
    def rate(self) -> float:
        """Units a second that come back, while that is what decides; infinity while enough is left."""
        low = self._level < 2.0 * _KEPT * self._limit
        return self._refill if low and not self._at_once else math.inf

    def free_at(self, units: float) -> float:
        """When a call that takes so many units, as guessed, may go."""
        kept = _KEPT_AT_ONCE if self._at_once else _KEPT
        wanted = min(self._takes(units) + kept * self._limit, self._limit)
        if self._level >= wanted:
            return 0.0
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
        takes = self._takes(units)
        self._guessed += units
        level = self._level + self._back(now - self._at)
        if now >= self._full_at:
            level = max(level, self._full)
        self._level, self._at = min(self._limit, level) - takes, now
        self._spent += takes
        self._marks.append(_Mark(number, now, self._guessed, self._spent))

    def heard(self, said: Allowance, now: float, number: int, latency: float) -> None:
        """The provider has said what was left when call ``number`` came; ``latency`` is of an answer."""
        if number < self._heard:
            return  # a later one is known
        self._heard = number
        mark = self._mark(now, number, latency)
        self._limit = said.limit
        self._judge(mark, said)
        self._learn(mark, said.remaining)
        level = said.remaining + self._back(now - mark.sent) - (self._spent - mark.spent)
        if mark.sent - self._burst < _BURST:
            level = min(level, self._level + self._back(now - self._at))
        else:
            self._burst = mark.sent
        self._level, self._at = min(level, said.limit), now
        self._full_at = math.inf if said.reset is None else mark.sent + said.reset * 1.01 + 0.01
        self._full_spent = mark.spent

    def _mark(self, now: float, number: int, latency: float) -> _Mark:
        marks = self._marks
        while marks and marks[0].number < number:
            marks.popleft()
        if marks and marks[0].number == number:
            return marks.popleft()
        before = self._first - number  # it was sent before anybody counted
        return _Mark(number, now - latency, -before * self._guess, -before * self._takes(self._guess))

    def _judge(self, mark: _Mark, said: Allowance) -> None:
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
        if moves >= _JUDGED:
            self._at_once = moment - before < 0.25 * moves
            self._told = (mark.sent, moment, left)

    def _learn(self, mark: _Mark, left: float) -> None:
        """What calls take, from what two answers say and what came back between."""
        if self._since is None:  # as if nobody else had taken any
            more = (self._limit - left) / max(mark.number, 1) - self._guess
            self._more = min(max(0.0, more), 4.0 * self._guess)
            self._since = (mark, left)
            return
        since, before = self._since
        calls = mark.number - since.number
        if calls < _LEARNT:
            return
        self._since = (mark, left)
        if max(left, before) > _FULL * self._limit or left > before + 0.5 * self._limit:
            return  # it may have been full in between, or is again
        guess = (mark.guessed - since.guessed) / calls
        more = (before - left + self._back(mark.sent - since.sent)) / calls - guess
        share = calls / (calls + _MEMORY)
        self._guess += (guess - self._guess) * share
        self._more += (more - self._more) * (share if more > self._more else _SLOWLY * share)

    def _back(self, seconds: float) -> float:
        return 0.0 if self._at_once else seconds * self._refill

    def _takes(self, units: float) -> float:
        # More than was guessed is the same for all, such as room for the answer; less is a share of each.
        if self._more >= 0.0:
            return units + self._more
        return units * max(0.05, 1.0 + self._more / max(self._guess, 1e-6))


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
