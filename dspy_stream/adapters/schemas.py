"""The JSON schemas of a signature's outputs, with the definitions that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dspy_stream.adapters.bound import Bound, fields_of
from dspy_stream.adapters.choices import text_of
from dspy_stream.adapters.hints import VERBATIM
from dspy_stream.program import Signature
from dspy_stream.program.annotations import schema_of

__all__ = ["Schemas", "referred", "schemas_of"]

_REFERENCE: Final = "#/$defs/"


class Schemas(NamedTuple):
    """``fields`` by name, None for a type that has no schema; ``definitions`` by the names they refer to."""

    fields: dict[str, dict[str, Any] | None]
    definitions: dict[str, dict[str, Any]]


def schemas_of(signature: type[Signature]) -> Schemas:
    """The schemas of all outputs, as an answer in JSON is read.

    Types of one name that are not the same type get different names.

    Raises:
        SignatureError: a field's type cannot be checked.

    >>> schemas_of(Signature("text -> mood: Literal['good', 'bad'] | None")).fields
    {'mood': {'enum': ['good', 'bad', None]}}
    """
    made = Schemas({}, {})
    for field in fields_of(signature).outputs:
        made.fields[field.name] = _field(signature, field, made.definitions)
    return made


def referred(schema: Mapping[str, Any]) -> str | None:
    """The name of the definition that a schema stands for; None where it is one itself."""
    reference = schema.get("$ref")
    return reference.removeprefix(_REFERENCE) if isinstance(reference, str) else None


def _field(
    signature: type[Signature], field: Bound, definitions: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    choices = field.codec.choices
    if choices is not None and choices.sums:
        whole = {"type": "integer", "description": choices.sums}
        return {"anyOf": [whole, {"type": "null"}]} if field.codec.nullable else whole
    if choices is not None:
        values = [_choice(value) for value in choices.values]
        return {"enum": [*values, None] if field.codec.nullable and None not in values else values}
    schema = schema_of(signature.validator(field.name), field.codec.annotation)
    if not isinstance(schema, Mapping):
        return None
    own = {name: _renamed(value, {}) for name, value in schema.get("$defs", {}).items()}
    # One that differs may be meant by all the others, which then look the same and are not.
    if any(definitions.get(name, value) != value for name, value in own.items()):
        names = {name: _free(f"{name}_{field.name}", definitions) for name in own}
        own = {names[name]: _renamed(value, names) for name, value in own.items()}
    else:
        names = {}
    definitions.update(own)
    return {key: _renamed(value, names) for key, value in schema.items() if key != "$defs"}


def _free(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _choice(value: Any) -> Any:
    """A choice as the model writes it; numbers and truth values need no quotes."""
    inner = getattr(value, "value", value)
    return inner if inner is None or type(inner) in (str, int, bool) else text_of(value)


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """A copy whose references use the given names."""
    if isinstance(schema, list):
        return [_renamed(item, names) for item in schema]
    if not isinstance(schema, Mapping):
        if isinstance(schema, str) and schema.startswith(_REFERENCE):
            name = schema.removeprefix(_REFERENCE)
            return _REFERENCE + names.get(name, name)
        return schema
    return {key: value if key in VERBATIM else _renamed(value, names) for key, value in schema.items()}
