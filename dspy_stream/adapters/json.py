"""JSONAdapter: inputs below marker lines, the answer as one JSON object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from dspy_stream.adapters.base import Adapter, Inputs
from dspy_stream.adapters.bound import Bound, Fields, fields_of
from dspy_stream.adapters.markers import escape, marker, unescape
from dspy_stream.adapters.parse import first_object
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.adapters.read import Reader
from dspy_stream.adapters.write import json_text
from dspy_stream.errors import AdapterRenderError
from dspy_stream.program import Signature

__all__ = ["JSONAdapter"]

_JSON_OBJECT: Final[Mapping[str, Any]] = MappingProxyType({"response_format": {"type": "json_object"}})


class JSONAdapter(Adapter):
    """Outputs as the members of one JSON object, which the provider is asked for as such.

    The first complete object that has a wanted field is the answer, with prose or fences around
    it; a later one is ignored, as in :class:`~dspy_stream.adapters.chat.ChatAdapter`. ``null``
    counts as missing where the type does not admit None. Strings are exact, outer blanks included.

    >>> from dspy_stream.program import Signature
    >>> JSONAdapter().parse(Signature("text -> tags: list[str]"), 'Here: {"tags": ["a",],}')
    {'tags': ['a']}
    """

    options = _JSON_OBJECT

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
        members: dict[str, Any] = {}
        for field in fields_of(signature).outputs:
            if field.given_in(outputs):
                try:
                    members[field.name] = field.codec.plain(outputs[field.name])
                except ValueProblem as problem:
                    raise AdapterRenderError(f"output field `{field.name}`: {problem}") from None
            elif missing_field_message is not None:
                members[field.name] = missing_field_message
        try:
            return json_text(_each_text(members, escape))
        except ValueProblem as problem:
            raise AdapterRenderError(f"outputs {', '.join(members)}: {problem}") from None

    def reader(self, signature: type[Signature]) -> Reader:
        """A function from an answer to outputs."""
        fields = fields_of(signature)
        return Reader(type(self).__name__, signature, fields, find=_finder(fields), text=False, where=_where)


def _finder(fields: Fields) -> Callable[[str], Mapping[str, Any]]:
    wanted = {field.name: field.codec.nullable for field in fields.outputs}

    def find(text: str) -> Mapping[str, Any]:
        found = first_object(text, wanted.keys())
        if "##" in text:
            # A model that quotes an input quotes it as it was shown, with its markers escaped.
            found = _each_text(found, unescape)
        if None in found.values():
            found = {key: value for key, value in found.items() if value is not None or wanted.get(key)}
        return found

    return find


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The same plain data with every string in it changed; at most as deep as the parser goes."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    return value


def _place(field: Bound) -> str:
    choices = field.codec.choices
    text = field.codec.textual if choices is None else all(isinstance(v, str) for v in choices.values)
    return f'"{{{field.name}}}"' if text else f"{{{field.name}}}"


def _where(name: str) -> str:
    return f"key `{name}`"
