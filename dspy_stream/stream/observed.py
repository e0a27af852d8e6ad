"""The calls of one step to one model in a sample, and what they say about the whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from dspy_stream.lm.reserve import meter_of
from dspy_stream.lm.tokens import BYTES_PER_TOKEN
from dspy_stream.stream.estimate import Between, StepEstimate
from dspy_stream.types import Usage

if TYPE_CHECKING:
    from dspy_stream.lm.base import Model
    from dspy_stream.state.spend import Part, Spend

__all__ = ["Observed", "Questions"]

# How far the truth may lie from what is expected, as factors: of tokens counted before, and of tokens judged
# by bytes; of answers seen before, and of answers judged by the types of a signature.
_COUNTED = (0.9, 1.1)
_JUDGED = (0.75, 1.4)
_SEEN = (0.8, 1.25)
_ASSUMED = (0.3, 4.0)
# What a model that thinks may add to an answer.
_THOUGHTS = 4000.0


class Observed:
    """Calls as they are met, each with the number of calls of the whole that it stands for."""

    def __init__(self, model: Model | None, batch: bool) -> None:
        self._model = model
        self._batch = batch
        self._calls = 0.0
        self._hits = 0.0
        self._paid = 0.0
        self._bytes = 0.0
        self._sizes: list[int] = []
        self._answers = 0.0
        self._most: float | None = 0.0  # what all answers together may have; None where one has no limit
        self._known_bytes = 0
        self._known = Usage()
        self._known_calls = 0

    @property
    def pays(self) -> bool:
        """True where any call is to be paid."""
        return self._paid > 0

    @property
    def thinks(self) -> bool:
        """True for a model that is known to think before it answers, where none of its answers was seen."""
        able = getattr(self._model, "capabilities", None)
        return able is not None and able.reasoning and not self._known_calls

    def found(self, weight: float, size: int, usage: Usage | None) -> None:
        """A call that the journal answers; ``usage`` is what it took when it was made."""
        self._calls += weight
        self._hits += weight
        if usage is not None:
            self._known_bytes += size if usage.prompt_tokens else 0
            self._known += usage
            self._known_calls += 1

    def asked(self, weight: float, size: int, tokens: float, limit: int | None) -> None:
        """A call to be paid, and how many tokens its answer is taken to have."""
        self._calls += weight
        self._paid += weight
        self._bytes += weight * size
        self._sizes.append(size)
        self._answers += weight * (tokens if limit is None else min(tokens, limit))
        self._most = None if self._most is None or limit is None else self._most + weight * limit

    def estimate(self, part: Part, before: Spend | None, whole: bool) -> StepEstimate:
        """What the calls take altogether; ``before`` is what an earlier run used in this step."""
        spread = 1.0 if whole else _spread(self._sizes)
        ratio, (low, high) = self._ratio(before)
        prompts = Between(low / spread, 1.0, high * spread).times(self._bytes * ratio)
        answers, basis = self._answered(before)
        if self._most is not None:
            answers = Between(*[min(number, self._most) for number in answers])
        return StepEstimate(
            part[0], part[1], self._calls, self._hits, prompts, answers, self._cost(prompts, answers), basis
        )

    def _ratio(self, before: Spend | None) -> tuple[float, tuple[float, float]]:
        """Tokens in a byte of a prompt, and how far that may be off."""
        if self._known.prompt_tokens:
            return self._known.prompt_tokens / self._known_bytes, _COUNTED
        if before is not None and before.calls and before.prompt_tokens and self._sizes:
            return before.prompt_tokens / before.calls / (sum(self._sizes) / len(self._sizes)), _COUNTED
        return 1.0 / BYTES_PER_TOKEN, _JUDGED

    def _answered(self, before: Spend | None) -> tuple[Between, Literal["observed", "assumed"]]:
        """Tokens of all answers to be paid."""
        if self._known.completion_tokens:
            mean = self._known.completion_tokens / self._known_calls
        elif before is not None and before.completion_tokens:
            mean = before.completion_tokens / before.calls
        else:
            low, high = _ASSUMED
            thoughts = self._paid * _THOUGHTS if self.thinks else 0.0
            return Between(low * self._answers, self._answers, high * self._answers + thoughts), "assumed"
        low, high = _SEEN
        return Between(low, 1.0, high).times(mean * self._paid), "observed"

    def _cost(self, prompts: Between, answers: Between) -> Between | None:
        if self._model is None:
            return None
        price = meter_of(self._model).price
        if price is None:
            return None
        if not self._paid:
            return Between(0.0, 0.0, 0.0)
        # By the mean call, because a long prompt may have another price.
        each = [
            price.of(round(prompt / self._paid), round(answer / self._paid), batch=self._batch) * self._paid
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return Between(*each)


def _spread(sizes: list[int]) -> float:
    """How far the mean of a sample may be off, as a factor: two standard errors."""
    if len(sizes) < 2:
        return 1.5
    mean = sum(sizes) / len(sizes)
    variance = sum((size - mean) ** 2 for size in sizes) / (len(sizes) - 1)
    return 1.0 + 2.0 * math.sqrt(variance / len(sizes)) / mean if mean else 1.0


class Questions:
    """Which questions were asked before in a dry run, so that in a run the journal would answer them.

    Made-up answers are all alike, real ones are not. So what is asked of one counts as the same for those
    rows only that were alike before it as well.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[bytes, str], str] = {}  # who asked it, of the rows of one origin
        self._own: set[tuple[bytes, str]] = set()
        self._origins: dict[
            str, str
        ] = {}  # the first of the rows that are alike, for rows with made-up answers

    def again(self, key: bytes | None, row_id: str, *, made_up: bool) -> bool:
        """Note a question; True where it was asked before. A row with a ``made_up`` answer has an origin."""
        if key is None or (key, row_id) in self._own:
            return key is not None
        self._own.add((key, row_id))
        asked = (key, self._origin(row_id))
        known = asked in self._first
        first = self._first.setdefault(asked, row_id)
        if made_up:
            self._origins[row_id] = first
        return known

    def _origin(self, row_id: str) -> str:
        while row_id not in self._origins and "/" in row_id:  # made of another by a function
            row_id = row_id.rsplit("/", 1)[0]
        return self._origins.get(row_id, "")
