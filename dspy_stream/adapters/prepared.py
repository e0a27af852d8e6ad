"""What an adapter makes of one signature, and what the rest of the package asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from dspy_stream.adapters.splitter import Splitter
from dspy_stream.adapters.turn import Inputs
from dspy_stream.errors import AdapterParseError
from dspy_stream.types import Choice, Message

__all__ = ["Prepared"]


class Prepared(Protocol):
    """One signature and its demos, compiled once and used for every row; safe to share."""

    @property
    def head(self) -> tuple[Message, ...]:
        """The turns that are the same for every row."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What each request asks of the provider, such as a response format."""
        ...

    @property
    def plainer(self) -> Mapping[str, Any] | None:
        """What to ask instead where the provider refuses ``options``; None where there is nothing."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What each request asks where neither the model nor the predictor says otherwise."""
        ...

    @property
    def by_row(self) -> Callable[[Inputs], Mapping[str, Any]] | None:
        """What a row's own request asks beside ``options``, such as its tools; None where none does.

        It raises AdapterRenderError, and gives the same object for equal rows, so that what is made
        from it can be kept.
        """
        ...

    def render(self, inputs: Inputs) -> tuple[Message, ...]:
        """The row's own turns, to follow ``head``.

        Fields that the signature does not have are ignored.

        Raises:
            AdapterRenderError: an input is missing, or cannot be written.
        """
        ...

    def parse(self, text: str) -> dict[str, Any]:
        """The validated outputs of an answer, in the order of the signature.

        Raises:
            AdapterParseError: the answer is not what was asked for.
        """
        ...

    def read(self, choice: Choice) -> dict[str, Any]:
        """The validated outputs of a completion: of its text, and of what came beside it.

        Raises:
            AdapterParseError: the answer is not what was asked for.
        """
        ...

    def salvage(self, choice: Choice, asked: Iterable[Message]) -> dict[str, Any] | None:
        """The outputs of a completion that ``read`` refuses, if it is whole but in another form.

        ``asked`` are the turns that it answers. None where anything is uncertain.
        """
        ...

    def splitter(self) -> Splitter:
        """What takes one answer apart while it comes."""
        ...

    def repair(self, text: str, error: AdapterParseError) -> tuple[Message, ...]:
        """Two turns to follow the row's own: the answer, shortened, and what is wrong with it."""
        ...
