"""The members of a JSON answer, as the fields of a signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dspy_stream.adapters.bound import Fields
from dspy_stream.adapters.markers import unescape
from dspy_stream.adapters.parse import floats
from dspy_stream.adapters.shape import bare, without_none

__all__ = ["each_text", "members_of", "texts_of"]


def members_of(fields: Fields, *, exact: bool) -> Callable[[dict[str, Any], str], Mapping[str, Any]]:
    """A function from a parsed object, and the text it was parsed from, to raw values by name.

    ``null`` counts as missing where the type does not admit None. ``exact`` says that numbers were read as
    Decimals: those of a field whose type holds one, or that is text, stay what they are; others become
    floats.
    """
    nullable = {field.name: field.codec.nullable for field in fields.outputs}
    kept = texts_of(fields) | {field.name for field in fields.outputs if field.codec.exact}

    def members(found: dict[str, Any], text: str) -> Mapping[str, Any]:
        if "##" in text:
            # A model that quotes an input quotes it as it was shown, with its markers escaped.
            found = each_text(found, unescape)
        if exact:
            found = {key: value if key in kept else floats(value) for key, value in found.items()}
        if None in found.values():
            return {key: value for key, value in found.items() if value is not None or nullable.get(key)}
        return found

    return members


def texts_of(fields: Fields) -> frozenset[str]:
    """The outputs that are text, in which a number is shown as it was written."""
    return frozenset(
        field.name for field in fields.outputs if without_none(bare(field.codec.annotation))[0] is str
    )


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The same plain data with every string in it changed; at most as deep as the parser goes."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: each_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [each_text(item, change) for item in value]
    return value
