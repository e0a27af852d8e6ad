"""Rates that are known, from settings or from a provider's headers, in requests or in tokens."""

from __future__ import annotations

import math
from typing import Final

from dspy_stream.lm.rates import Allowance
from dspy_stream.types import Request, Usage

__all__ = ["Known", "Sizes", "Throttle"]

_SLACK: Final = 0.1
# The share of an allowance below which the pace is bound, and the one at which it is what comes back.
_NEAR: Final = 0.2
_KEPT: Final = 0.1
_LEAST: Final = 0.02
_LEARNT: Final = 0.1
_BLOCK: Final = 4000
_MEMO: Final = "limit.size"


class Known:
    """So many units a second, evenly: what is spent is paid back before the next call may go."""

    __slots__ = ("free_at", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.free_at = 0.0

    def spend(self, now: float, units: float) -> None:
        """Take ``units`` out; moves ``free_at``."""
        self.free_at = max(self.free_at, now - _SLACK) + units / self.rate

    def correct(self, units: float) -> None:
        """So many more units than was thought have been taken out."""
        self.free_at += units / self.rate


class Throttle(Known):
    """A rate that follows what a provider says is left, and slows down before the wall.

    While plenty is left it lets everything pass. Near the end the pace is what comes back, times how
    much is left in comparison with a tenth of the limit: so a tenth is what stays.
    """

    __slots__ = ("_back", "_missing", "_refill")

    def __init__(self) -> None:
        super().__init__(math.inf)
        self._refill = math.inf
        self._back = math.inf  # what comes back in a second, as far as is known
        self._missing = 0.0  # until a tenth is left again

    def spend(self, now: float, units: float) -> None:
        """Take ``units`` out; the next may go when they and what was missing are back, if not before."""
        seconds = min(units / self.rate, (units + self._missing) / self._back)
        self.free_at = max(self.free_at, now - _SLACK) + seconds

    def correct(self, units: float) -> None:
        """So many more units than was thought have been taken out."""
        self.free_at += units / max(self.rate, self._back)

    def heard(self, said: Allowance, pending: float, latency: float) -> None:
        """The provider has said what was left when it began an answer.

        ``pending`` is what calls in flight use up beside it; ``latency`` how long an answer takes.
        """
        found = said.refill
        if found is not None and said.remaining <= 0.5 * said.limit:
            # The smallest of late: in a fixed window what is missing, over what is left of it, grows.
            self._refill += (found - self._refill) * 0.02 if found > self._refill else 0.0
            self._refill = min(self._refill, found)
        refill = self._refill if self._refill < math.inf else found or said.limit / 60.0
        level = said.remaining - pending + refill * latency
        self._back = refill
        self._missing = max(0.0, _KEPT * said.limit - level)
        if level >= _NEAR * said.limit:
            self.rate = math.inf
            self.free_at = 0.0
        else:
            self.rate = refill * max(level / (_KEPT * said.limit), _LEAST)


class Sizes:
    """How many tokens a call will take, guessed from its text and from what earlier ones took."""

    __slots__ = ("completion", "per_character", "prompt")

    def __init__(self) -> None:
        self.per_character = 0.25
        self.prompt = 200.0
        self.completion = 200.0

    def guess(self, request: Request) -> float:
        """Tokens of the prompt; costs a glance at the row's own messages."""
        memo = request.head.memo
        size = memo.get(_MEMO)
        if size is None:
            size = memo[_MEMO] = sum(_size(message.content) for message in request.head.messages)
        for message in request.tail:
            size += _size(message.content)
        return float(size * self.per_character)

    def learn(self, guessed: float, usage: Usage) -> None:
        """What a call whose prompt was guessed at took in the end."""
        if guessed > 0.0 and usage.prompt_tokens > 0:
            ratio = min(max(usage.prompt_tokens / guessed, 0.1), 10.0)
            self.per_character = min(self.per_character * (1.0 + _LEARNT * (ratio - 1.0)), 100.0)
        self.prompt += _LEARNT * (usage.prompt_tokens - self.prompt)
        self.completion += _LEARNT * (usage.completion_tokens - self.completion)


def _size(content: object) -> int:
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, tuple):
        return 0
    texts = [block.get("text") for block in content]
    return sum(len(text) if isinstance(text, str) else _BLOCK for text in texts)
