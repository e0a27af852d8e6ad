"""What stands in for an embedding model and a search in tests, under the names that DSPy's programs know."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from dspy_stream.program import Example

__all__ = ["DummyVectorizer", "dummy_rm"]


class DummyVectorizer:
    """Vectors that are alike where texts share pieces of ``n_gram`` characters; the same in every process.

    They have ``max_length`` numbers, a mean of 0, and length 1; all are 0 for a text that is too short.

    >>> near, far = DummyVectorizer()(["the red car", "red cars"]), DummyVectorizer()(["the red car", "blue"])
    >>> dot = lambda pair: sum(a * b for a, b in zip(*pair))
    >>> dot(near) > 0.5 > dot(far)
    True
    """

    def __init__(self, max_length: int = 100, n_gram: int = 2) -> None:
        self.max_length = max_length
        self.n_gram = n_gram

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text."""
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        counts = [0.0] * self.max_length
        for start in range(len(text) - self.n_gram + 1):
            piece = text[start : start + self.n_gram].encode("utf-8", "surrogatepass")
            counts[zlib.crc32(piece) % self.max_length] += 1.0
        mean = sum(counts) / self.max_length
        length = math.sqrt(sum((count - mean) ** 2 for count in counts)) or 1.0
        return [(count - mean) / length for count in counts]


def dummy_rm(passages: Sequence[str] = ()) -> Callable[..., list[Any]]:
    """A search over a few passages, for ``configure(rm=...)``: those that share most pieces with the query.

    Raises (when it is asked):
        ValueError: there are no passages, or fewer than ``k``.

    >>> dummy_rm(["a red car", "blue sky"])("cars", k=1)[0].long_text
    'a red car'
    """
    vectorizer = DummyVectorizer(max(map(len, passages), default=0) + 100)
    vectors = vectorizer(passages)

    def search(query: str, *, k: int, **_: Any) -> list[Any]:
        if not 0 < k <= len(passages):
            raise ValueError(f"{k} passages are wanted of {len(passages)}")
        (wanted,) = vectorizer([query])
        near = [sum(a * b for a, b in zip(vector, wanted, strict=True)) for vector in vectors]
        places = sorted(range(len(passages)), key=lambda place: -near[place])[:k]
        return [Example(long_text=passages[place]) for place in places]

    return search
