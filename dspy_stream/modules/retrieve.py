"""Retrieve: passages for a query, from the retriever of the settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.module import Module
from dspy_stream.modules.settled import settled
from dspy_stream.program import Example, Prediction

__all__ = ["Retrieve", "RetrieverError"]


class RetrieverError(ConfigurationError, AssertionError):
    """A retriever cannot be used as it was set up; DSPy asserts it."""


class Retrieve(Module):
    """Ask the retriever that ``configure(rm=...)`` names for the ``k`` best passages.

    The retriever is a function of the query and ``k``, or an :class:`Embeddings`; it may be a coroutine
    function. It returns passages: texts, things with a ``long_text``, or a prediction with ``passages``.

    Raises:
        RetrieverError: (when called) there is no retriever.
        TypeError: it returned something else.

    >>> from dspy_stream.configuration import context
    >>> with context(rm=lambda query, k: [f"{query} {number}" for number in range(k)]):
    ...     Retrieve(k=2)("rain").passages
    ['rain 0', 'rain 1']
    """

    name = "Search"
    input_variable = "query"
    desc = "takes a search query and returns the passages that fit it best"

    def __init__(self, k: int = 3) -> None:
        self.k = k

    def forward(self, query: str, k: int | None = None, **kwargs: Any) -> Prediction:
        """A prediction with ``passages``; ``kwargs`` go to the retriever."""
        rm: Any = settings.rm
        if rm is None:
            raise RetrieverError("No RM is loaded. Name a retriever with configure(rm=...)")
        found = settled(rm(query, k=self.k if k is None else k, **kwargs))
        if isinstance(found, Example) and "passages" in found:
            found = found["passages"]
        if isinstance(found, (str, Mapping, Example)) or not isinstance(found, Iterable):
            found = [found]
        return Prediction(passages=[_text(passage) for passage in found])

    def input_names(self) -> tuple[str, ...]:
        """The query, and how many passages."""
        return ("query", "k")

    def output_names(self) -> tuple[str, ...]:
        """The passages."""
        return ("passages",)


def _text(passage: Any) -> str:
    if isinstance(passage, str):
        return passage
    held = passage.get("long_text") if isinstance(passage, (Mapping, Example)) else None
    text = held if held is not None else getattr(passage, "long_text", None)
    if not isinstance(text, str):
        raise TypeError(f"a passage is a text, or has a long_text; this is {type(passage).__name__}")
    return text
