"""XMLAdapter: every field between tags of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dspy_stream.adapters.base import Adapter
from dspy_stream.adapters.bound import fields_of
from dspy_stream.adapters.incremental import XMLSplitter
from dspy_stream.adapters.json import JSONAdapter
from dspy_stream.adapters.nested import json_of
from dspy_stream.adapters.read import Reader
from dspy_stream.adapters.repeated import Repeated, with_repeats
from dspy_stream.adapters.salvage import Other, other_json
from dspy_stream.adapters.tags import Tags, unescape
from dspy_stream.adapters.turn import Inputs, Layout
from dspy_stream.program import Signature
from dspy_stream.types import Choice

__all__ = ["XMLAdapter"]


class XMLAdapter(Adapter):
    """Fields between ``<name>`` and ``</name>``, in prompt and answer alike.

    What is no text stands between its tags as JSON; elements within elements are read as well. Tags
    inside values are escaped, so that no input can pass for an output; see
    :mod:`dspy_stream.adapters.tags`. Outer blanks of a text are not kept. The last field may lack its
    closing tag where the provider says that the answer is complete, as when that tag is a stop
    sequence. ``use_json_adapter_fallback`` as for :class:`~dspy_stream.adapters.chat.ChatAdapter`.

    >>> from dspy_stream.program import Signature
    >>> XMLAdapter().parse(Signature("question -> answer: int"), "So:\\n<answer>42</answer>")
    {'answer': 42}
    """

    form = "xml"

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
        inputs = "\n\n".join(_element(field.name, f"{{{field.name}}}") for field in fields.inputs)
        outputs = "\n\n".join(_element(field.name, f"{{{field.name}}}") for field in fields.outputs)
        return (
            f"Each field is written between tags of its name. The inputs come like this:\n\n{inputs}\n\n"
            f"Your answer has this form, and nothing else:\n\n{outputs}"
        )

    def user_message_output_requirements(self, signature: type[Signature]) -> str:
        """The tags of the answer, in their order; not as tags, which must not stand in a question."""
        names = ", then ".join(f"`{name}`" for name in signature.output_fields)
        return f"Answer with {names}, each between an opening and a closing tag of its name."

    def format_assistant_message_content(
        self, signature: type[Signature], outputs: Inputs, missing_field_message: str | None = None
    ) -> str:
        """Outputs between their tags."""
        escape = _tags(signature).escape
        texts = fields_of(signature).written(
            outputs, missing_field_message, lambda codec, value: escape(codec.show(value))
        )
        return "\n\n".join(_element(name, text) for name, text in texts.items())

    def text_reader(self, signature: type[Signature]) -> Callable[[Choice], str]:
        """A function from a completion to its text, with the last tag where only that is missing."""
        closed = _tags(signature).closed
        return lambda choice: closed(choice.text) if choice.finish_reason == "stop" else choice.text

    def other_reader(self, signature: type[Signature]) -> Other:
        """Reads answers that are one JSON object."""
        return other_json(type(self).__name__, signature)

    def layout(self, signature: type[Signature]) -> Layout:
        """Tags around each input."""
        return Layout(lambda name: f"<{name}>\n", lambda name: f"\n</{name}>", _tags(signature).escape, "")

    def splitter(self, signature: type[Signature]) -> XMLSplitter:
        """What takes one answer apart while it comes."""
        return XMLSplitter(tuple(signature.input_fields), tuple(signature.output_fields))

    def reader(self, signature: type[Signature]) -> Reader:
        """A function from an answer to outputs."""
        elements = _tags(signature).elements
        outputs = fields_of(signature).outputs
        texts = {field.name for field in outputs if field.codec.textual}
        lists = {field.name for field in outputs if (field.codec.schema or {}).get("type") == "array"}

        def raw(name: str, body: str) -> str:
            if not body and name in lists:
                return "[]"
            return unescape(body) if name in texts else (_nested(body) or unescape(body))

        def find(text: str) -> Mapping[str, str]:
            found = elements(text)
            read = {name: raw(name, body) for name, body in found.items()}
            if type(found) is not Repeated:
                return read
            return with_repeats(read, ((name, raw(name, body)) for name, body in found.again))

        return Reader(
            type(self).__name__,
            signature,
            fields_of(signature),
            find=find,
            text=True,
            where=_where,
            thoughts="think" not in signature.output_fields,
        )


def _nested(body: str) -> str | None:
    """A value that is written as elements, as JSON."""
    return json_of(body) if body.startswith("<") else None


def _tags(signature: type[Signature]) -> Tags:
    return Tags(signature.input_fields, signature.output_fields)


def _element(name: str, text: str) -> str:
    return f"<{name}>\n{text}\n</{name}>"


def _where(name: str) -> str:
    return f"`<{name}>`"
