"""JSONAdapter: inputs below marker lines, the answer as one JSON object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from dspy_stream.adapters.base import Adapter
from dspy_stream.adapters.bound import Bound, fields_of
from dspy_stream.adapters.json_splitter import JSONSplitter
from dspy_stream.adapters.markers import DONE, escape, marker
from dspy_stream.adapters.members import each_text, members_of, texts_of
from dspy_stream.adapters.parse import answers
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.adapters.read import Reader
from dspy_stream.adapters.repeated import with_repeats
from dspy_stream.adapters.salvage import Other, other_markers
from dspy_stream.adapters.strict import strict_format
from dspy_stream.adapters.turn import Inputs
from dspy_stream.adapters.write import json_text
from dspy_stream.errors import AdapterRenderError
from dspy_stream.program import Signature
from dspy_stream.types import NO_OPTIONS, Capabilities

__all__ = ["JSONAdapter"]

_JSON_OBJECT: Final[Mapping[str, Any]] = MappingProxyType({"response_format": {"type": "json_object"}})


class JSONAdapter(Adapter):
    """Outputs as the members of one JSON object, which the provider is asked for as such.

    The first complete object that has a wanted field is the answer, with prose or fences around
    it. Later ones with the same values are ignored; one with others makes the answer unreadable, as in
    :class:`~dspy_stream.adapters.chat.ChatAdapter`. ``null``
    counts as missing where the type does not admit None. Strings are exact, outer blanks included.

    >>> from dspy_stream.program import Signature
    >>> JSONAdapter().parse(Signature("text -> tags: list[str]"), 'Here: {"tags": ["a",],}')
    {'tags': ['a']}
    """

    form = "json"

    use_native_function_calling = True

    def __init__(
        self,
        callbacks: Iterable[Any] | None = None,
        use_native_function_calling: bool = True,
        parallel_tool_calls: bool | None = None,
        *,
        native_response_types: Sequence[type[Any]] | None = None,
    ) -> None:
        super().__init__(callbacks, use_native_function_calling, native_response_types, parallel_tool_calls)

    def request_options(
        self, signature: type[Signature], capabilities: Capabilities | None
    ) -> Sequence[Mapping[str, Any]]:
        """A strict schema, or any JSON object, or nothing: the most that the model is known to hold to.

        Of a model that is not known yet an object is asked for.
        """
        if capabilities is None:
            return (_JSON_OBJECT,)
        wanted: list[Mapping[str, Any]] = []
        if capabilities.structured_outputs:
            strict = strict_format(signature)
            wanted += [strict] if strict is not None else []
        if capabilities.json_mode:
            wanted.append(_JSON_OBJECT)
        return (*wanted, NO_OPTIONS)[:2]

    def format_field_structure(self, signature: type[Signature]) -> str:
        """The layout of the inputs, and the keys of the answer."""
        fields = fields_of(signature)
        inputs = "\n\n".join(f"{marker(field.name)}\n{{{field.name}}}" for field in fields.inputs)
        members = ", ".join(f'"{field.name}": {_place(field)}' for field in fields.outputs)
        return (
            f"Each input is written below a line with its marker:\n\n{inputs}\n\n"
            f"Your answer is one JSON object, and nothing else:\n\n{{{members}}}"
        )

    def user_message_output_requirements(self, signature: type[Signature]) -> str:
        """The keys of the answer, in their order."""
        names = ", ".join(f"`{name}`" for name in signature.output_fields)
        keys = "the key" if len(signature.output_fields) == 1 else "the keys"
        return f"Answer with one JSON object that has {keys} {names}, in this order."

    def format_assistant_message_content(
        self, signature: type[Signature], outputs: Inputs, missing_field_message: str | None = None
    ) -> str:
        """Outputs as one JSON object."""
        members = fields_of(signature).written(
            outputs, missing_field_message, lambda codec, value: codec.plain(value)
        )
        try:
            return json_text(each_text(members, escape))
        except ValueProblem as problem:
            raise AdapterRenderError(f"outputs {', '.join(members)}: {problem}") from None

    def splitter(self, signature: type[Signature]) -> JSONSplitter:
        """What takes one answer apart while it comes."""
        return JSONSplitter(tuple(signature.output_fields))

    def reader(self, signature: type[Signature]) -> Reader:
        """A function from an answer to outputs."""
        fields = fields_of(signature)
        wanted = frozenset(signature.output_fields)
        exact = any(field.codec.exact for field in fields.outputs)
        as_read, digits = members_of(fields, exact=exact), members_of(fields, exact=True)
        texts = texts_of(fields)
        next_question = re.compile(
            rf"^[ \t]*\[\[ *## *(?:{'|'.join((*signature.input_fields, DONE))}) *## *\]\]", re.MULTILINE
        )

        def find(text: str) -> Mapping[str, Any]:
            members = as_read
            found = answers(text, wanted, exact=exact)
            if not exact and any(type(value.get(name)) is float for _, value in found for name in texts):
                found, members = answers(text, wanted, exact=True), digits
            first, *later = found
            if not later:
                return members(first[1], text)
            end = next_question.search(text, first[0])
            limit = len(text) if end is None else end.start()
            again = [members(value, text).items() for start, value in later if start < limit]
            return with_repeats(members(first[1], text), [item for items in again for item in items])

        return Reader(type(self).__name__, signature, fields, find=find, text=False, where=_where)

    def other_reader(self, signature: type[Signature]) -> Other:
        """Reads answers whose fields stand below markers."""
        return other_markers(type(self).__name__, signature)


def _place(field: Bound) -> str:
    choices = field.codec.choices
    text = field.codec.textual if choices is None else all(isinstance(v, str) for v in choices.values)
    return f'"{{{field.name}}}"' if text else f"{{{field.name}}}"


def _where(name: str) -> str:
    return f"key `{name}`"
