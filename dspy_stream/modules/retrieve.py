"""Retrieve: passages for a query, from the retriever of the settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.module import Module
from dspy_stream.modules.settled import settled
from dspy_stream.program import Example, Prediction
from dspy_stream.program.refusals import SavedStateError

__all__ = ["Retrieve", "RetrieverError", "deduplicate", "saved_k"]


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

    def __init__(self, k: int = 3, callbacks: Iterable[Any] | None = None) -> None:
        super().__init__(callbacks)
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

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """How many passages, as DSPy writes it."""
        return {"k": self.k}

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:  # noqa: ARG002
        """Take over a state of that form."""
        self.k = saved_k(state)

    def input_names(self) -> tuple[str, ...]:
        """The query, and how many passages."""
        return ("query", "k")

    def output_names(self) -> tuple[str, ...]:
        """The passages."""
        return ("passages",)


def saved_k(state: Any) -> int:
    """The number of passages of a state as DSPy writes it.

    Raises:
        SavedStateError: it is no such state.
    """
    k = state.get("k") if isinstance(state, Mapping) and len(state) == 1 else None
    if type(k) is not int:
        raise SavedStateError("the state of a Retrieve is `k`, a whole number, and nothing else")
    return k


def deduplicate(seq: Iterable[str]) -> list[str]:
    """The passages of several searches, each once, in the order of their first place.

    >>> deduplicate(["rain", "snow", "rain"])
    ['rain', 'snow']
    """
    return list(dict.fromkeys(seq))


def _text(passage: Any) -> str:
    if isinstance(passage, str):
        return passage
    held = passage.get("long_text") if isinstance(passage, (Mapping, Example)) else None
    text = held if held is not None else getattr(passage, "long_text", None)
    if not isinstance(text, str):
        raise TypeError(f"a passage is a text, or has a long_text; this is {type(passage).__name__}")
    return text
