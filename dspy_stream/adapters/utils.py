"""What an adapter of one's own needs, under DSPy's names: values read and written, fields described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from dspy_stream.adapters.blocks import Pieces
from dspy_stream.adapters.hints import described
from dspy_stream.adapters.values import Codec, codec_for
from dspy_stream.program.annotations import type_name
from dspy_stream.program.fields import direction_of
from dspy_stream.program.jsonable import to_jsonable

__all__ = [
    "format_field_value",
    "get_annotation_name",
    "get_field_description_string",
    "parse_value",
    "serialize_for_json",
]


def parse_value(value: Any, annotation: Any) -> Any:
    """The value of that type which a text of a model, or plain data, stands for.

    Raises:
        ValueError: it stands for none.

    >>> parse_value("[1, 2,]", list[int]), parse_value("yes", bool), parse_value("3", str)
    ([1, 2], True, '3')
    """
    codec = _codec(annotation)
    return codec.read(value.strip()) if isinstance(value, str) else codec.accept(value)


def format_field_value(field_info: FieldInfo, value: Any) -> str | list[str | Mapping[str, Any]]:
    """The value of an input as it stands in a prompt: text, or the texts and content blocks of a custom type.

    >>> from dspy_stream.program import Signature
    >>> format_field_value(Signature("scores: list[int] -> mean: float").fields["scores"], [1, 2])
    '[1,2]'
    """
    written = _codec(field_info.annotation).write(value)
    return list(written) if isinstance(written, Pieces) else written


def serialize_for_json(value: Any) -> Any:
    """The value as plain JSON data.

    Raises:
        ConfigurationError: it has no JSON form.

    >>> serialize_for_json({"seen": (1, 2)})
    {'seen': [1, 2]}
    """
    return to_jsonable(value)


def get_annotation_name(annotation: Any) -> str:
    """A type as a reader would write it.

    >>> get_annotation_name(list[int])
    'list[int]'
    """
    return type_name(annotation)


def get_field_description_string(fields: Mapping[str, FieldInfo]) -> str:
    """What each field is: a numbered line with its name, type, description and constraints.

    >>> from dspy_stream.program import Signature
    >>> print(get_field_description_string(Signature("text, limit: int -> summary").input_fields))
    1. `text`
    2. `limit` (int)
    """
    lines = [
        described(name, field, _codec(field.annotation), output=direction_of(field) == "output")
        for name, field in fields.items()
    ]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _codec(annotation: Any) -> Codec:
    return codec_for(annotation, TypeAdapter(annotation))
