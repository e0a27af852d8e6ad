"""Prompts whose messages a subclass writes whole, with a ``format`` of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dspy_stream import types
from dspy_stream.adapters.blocks import Content
from dspy_stream.adapters.prompt import Prompt
from dspy_stream.adapters.turn import Inputs
from dspy_stream.errors import AdapterRenderError
from dspy_stream.program import Signature
from dspy_stream.types import Capabilities, Message

if TYPE_CHECKING:
    from dspy_stream.adapters.base import Adapter

__all__ = ["OwnPrompt", "turns_of"]


class OwnPrompt(Prompt):
    """What is prepared for an adapter with a ``format`` of its own: it is called for each row."""

    __slots__ = ("_adapter", "_demos")

    def __init__(
        self,
        adapter: Adapter,
        signature: type[Signature],
        demos: list[Any],
        capabilities: Capabilities | None,
    ) -> None:
        self._adapter = adapter
        self._demos = demos
        super().__init__(adapter, signature, (), adapter.request_options(signature, capabilities))

    def _writer(self, adapter: Adapter, signature: type[Signature]) -> Callable[[Inputs], Content]:  # noqa: ARG002
        return lambda _inputs: ""  # never asked: format writes everything

    def render(self, inputs: Inputs) -> tuple[Message, ...]:
        """All turns, as ``format`` gives them."""
        signature = self._signature
        given: dict[str, Any] = {}
        for name in signature.input_fields:
            if name in inputs:
                given[name] = inputs[name]
            elif signature.may_omit(name):
                given[name] = signature.default_of(name)
        write = self._adapter.format
        return turns_of(write(signature, list(self._demos), given), type(self._adapter))


def turns_of(messages: Iterable[Mapping[str, Any]], kind: type[Any]) -> tuple[Message, ...]:
    """Messages in the chat-completions form as turns.

    Raises:
        AdapterRenderError: one has no role, or a content that is neither text nor a list of blocks.
    """
    given = list(messages)  # an error of what writes them is its own
    try:
        return types.turns_of(given)
    except ValueError as error:
        raise AdapterRenderError(f"{kind.__name__}: {error}") from None
