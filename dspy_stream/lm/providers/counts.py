"""Token counts as a provider reports them, made believable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dspy_stream.lm.cost import Price
from dspy_stream.types import Usage

__all__ = ["Counter"]

_MOST: Final = 10_000_000_000


class Counter:
    """Reads counts out of one answer; what cannot be true is zero, and ``clean`` is then False.

    >>> counter = Counter({"in": 12, "out": -1})
    >>> counter.take("in"), counter.take("out"), counter.take("none"), counter.clean
    (12, 0, 0, False)
    """

    __slots__ = ("_counts", "clean")

    def __init__(self, counts: Any) -> None:
        self.clean = counts is None or isinstance(counts, dict)
        self._counts: Mapping[str, Any] = counts if isinstance(counts, dict) else {}

    def take(self, name: str) -> int:
        """The count of that name; zero where there is none."""
        value = self._counts.get(name)
        if type(value) is int and 0 <= value <= _MOST:
            return value
        if value is not None:
            self.clean = False
        return 0

    def detail(self, group: str, name: str) -> int:
        """A count inside a group, which servers leave out or fill with what they like."""
        inner = self._counts.get(group)
        value = inner.get(name) if isinstance(inner, dict) else None
        return value if type(value) is int and 0 <= value <= _MOST else 0

    def usage(
        self,
        prompt: int,
        completion: int,
        price: Price | None,
        *,
        cached: int = 0,
        reasoning: int = 0,
        written: int = 0,
    ) -> Usage:
        """The usage; its cost is unknown where a count was wrong, or where that of the prompt is missing."""
        known = self.clean and prompt > 0
        cost = price.of(prompt, completion, cached, written) if known and price is not None else None
        return Usage(prompt, completion, cost, min(cached, prompt), min(reasoning, completion), written)
