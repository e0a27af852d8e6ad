"""Say in words what a field holds, for the system message."""

from __future__ import annotations

from typing import Any, Final

from pydantic.fields import FieldInfo

from dspy_stream.adapters.choices import text_of
from dspy_stream.adapters.shape import bare, without_none
from dspy_stream.adapters.values import Codec
from dspy_stream.adapters.write import json_text
from dspy_stream.program.annotations import type_name

__all__ = ["VERBATIM", "described", "kind_in_words"]

_SCALARS: Final[dict[Any, str]] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}
_FORMATS: Final = {
    "date": "a date such as 2031-05-28",
    "date-time": "a time such as 2031-05-28T14:30:00Z",
    "time": "a time of day such as 14:30:00",
    "duration": "a duration in ISO 8601, such as PT1H30M",
    "uuid": "a UUID",
}
# Titles repeat names, and inside these keys everything is the user's own data.
VERBATIM: Final = frozenset(["const", "default", "enum", "examples"])


def described(name: str, field: FieldInfo, codec: Codec | None, *, output: bool) -> str:
    """One line: the field's name, what it holds, its description and its constraints.

    Without a codec it does not say what the field holds.
    """
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind = ""
    if codec is not None:
        kind = kind_in_words(codec) if output else _given(codec)
    line = f"`{name}`" + (f" ({kind})" if kind else "")
    desc = extra.get("desc")
    if isinstance(desc, str) and desc.strip() and desc != f"${{{name}}}":
        line += f": {desc.strip()}"
    constraints = extra.get("constraints")
    if isinstance(constraints, str) and constraints:
        line += f" [{constraints}]"
    return line


def _given(codec: Codec) -> str:
    return "" if codec.annotation is str else type_name(codec.annotation)


def kind_in_words(codec: Codec) -> str:
    """What an output has to be; empty for plain text."""
    inner, optional = without_none(bare(codec.annotation))
    inner = bare(inner)
    if codec.choices is not None:
        words = codec.choices.sums or "exactly one of: " + "; ".join(
            map(_quoted_if_odd, codec.choices.values)
        )
    elif inner in _SCALARS:
        words = _SCALARS[inner]
    else:
        words = _from_schema(codec, inner)
    if optional:
        return f"{words}; or null"
    return "" if inner is str else words


def _quoted_if_odd(value: Any) -> str:
    text = text_of(value)
    odd = not text or text != text.strip() or any(mark in text for mark in ";\n")
    return json_text(text) if odd else text


def _from_schema(codec: Codec, inner: Any) -> str:
    schema = codec.schema
    if schema is None:
        return type_name(inner)
    if "anyOf" in schema and "$defs" not in schema:
        arms = [arm for arm in schema["anyOf"] if arm.get("type") != "null"]
        schema = arms[0] if len(arms) == 1 else schema
    if schema.get("type") == "string":
        return _FORMATS.get(schema.get("format", "")) or schema.get("description") or type_name(inner)
    compact = _without_titles(schema)
    return f"JSON that fits the schema {json_text(compact)}" if compact else type_name(inner)


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value if key in VERBATIM else _without_titles(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }
