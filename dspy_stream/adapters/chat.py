"""ChatAdapter: every field below a marker line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dspy_stream.adapters.base import Adapter
from dspy_stream.adapters.bound import fields_of
from dspy_stream.adapters.incremental import ChatSplitter
from dspy_stream.adapters.json import JSONAdapter
from dspy_stream.adapters.markers import DONE, escape, finder, marker, sections
from dspy_stream.adapters.read import Reader
from dspy_stream.adapters.salvage import Other, other_json
from dspy_stream.adapters.turn import Inputs
from dspy_stream.errors import AdapterParseError
from dspy_stream.program import Signature
from dspy_stream.types import Choice

__all__ = ["ChatAdapter"]


class ChatAdapter(Adapter):
    """Fields below ``[[ ## name ## ]]``, in prompt and answer alike; the default.

    Markers inside values are escaped, so that no input can pass for an output; see
    :mod:`dspy_stream.adapters.markers`. Outer blanks of a text are not kept. A field that is given
    twice with different values cannot be read; see :mod:`dspy_stream.adapters.repeated`. Text before
    the first marker, and fields nobody asked for, are ignored. An answer that is one JSON object instead
    is read without a further call where no mistake is possible; see :mod:`dspy_stream.adapters.salvage`.

    An answer that cannot be read is repaired once. With ``use_json_adapter_fallback`` a failed repair
    is followed by one question through :class:`~dspy_stream.adapters.json.JSONAdapter`, which is not
    repaired: a bad row then costs three calls. It is off by default, unlike in DSPy: there is no
    repair there, so that both make two calls at most.

    >>> from dspy_stream.program import Signature
    >>> adapter = ChatAdapter()
    >>> signature = Signature("question -> answer: int")
    >>> adapter.parse(signature, "[[ ## answer ## ]]\\n42\\n\\n[[ ## completed ## ]]")
    {'answer': 42}
    """

    def __init__(
        self,
        callbacks: Iterable[Any] | None = None,
        use_native_function_calling: bool = False,
        native_response_types: Sequence[type[Any]] | None = None,
        use_json_adapter_fallback: bool = False,
        parallel_tool_calls: bool | None = None,
    ) -> None:
        super().__init__(callbacks, use_native_function_calling, native_response_types, parallel_tool_calls)
        self.use_json_adapter_fallback = use_json_adapter_fallback
        self.fallback = JSONAdapter() if use_json_adapter_fallback else None

    def format_field_structure(self, signature: type[Signature]) -> str:
        """The layout of both sides, with each value's place in braces."""
        fields = fields_of(signature)
        inputs = "\n\n".join(f"{marker(field.name)}\n{{{field.name}}}" for field in fields.inputs)
        outputs = "\n\n".join(f"{marker(field.name)}\n{{{field.name}}}" for field in fields.outputs)
        return (
            f"Each field is written below a line with its marker. The inputs come like this:\n\n{inputs}\n\n"
            f"Your answer has this form, and nothing else:\n\n{outputs}\n\n{marker(DONE)}"
        )

    def user_message_output_requirements(self, signature: type[Signature]) -> str:
        """The markers of the answer, in their order."""
        names = ", then ".join(f"`{marker(name)}`" for name in signature.output_fields)
        return f"Answer with {names}, and close with `{marker(DONE)}`."

    def format_assistant_message_content(
        self, signature: type[Signature], outputs: Inputs, missing_field_message: str | None = None
    ) -> str:
        """Outputs below their markers, closed by the last marker."""
        texts = fields_of(signature).written(
            outputs, missing_field_message, lambda codec, value: escape(codec.show(value))
        )
        return "\n\n".join([*(f"{marker(name)}\n{text}" for name, text in texts.items()), marker(DONE)])

    def splitter(self, signature: type[Signature]) -> ChatSplitter:
        """What takes one answer apart while it comes."""
        return ChatSplitter(tuple(signature.output_fields))

    def reader(self, signature: type[Signature]) -> Reader:
        """A function from an answer to outputs."""
        find = finder(signature.input_fields, signature.output_fields)
        return Reader(
            type(self).__name__, signature, fields_of(signature), find=find, text=True, where=_where
        )

    def text_reader(self, signature: type[Signature]) -> Callable[[Choice], str]:
        """A function from a completion to its text, which refuses one whose last field is cut short."""

        def text_of(choice: Choice) -> str:
            text = choice.text
            if choice.finish_reason == "length" and DONE not in sections(text):
                reason = f"it was cut off at the limit of tokens, before `{marker(DONE)}`"
                raise AdapterParseError(type(self).__name__, signature, text, reason)
            return text

        return text_of

    def other_reader(self, signature: type[Signature]) -> Other:
        """Reads answers that are one JSON object."""
        return other_json(type(self).__name__, signature)


def _where(name: str) -> str:
    return f"`{marker(name)}`"
