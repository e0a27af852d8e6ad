"""Fields of a record as bytes, and back, each value as what it was.

See :mod:`dspy_stream.program.marked` for what comes back by itself. A value of a class that nobody can
know by its name (a client, an array, a secret) is written in its JSON form; where the field has a type
that takes this form, it comes back through that type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.program.marked import DEEPEST, MARK, Marker, Unmarker, is_plain, json_form

__all__ = ["dump_fields", "pack", "unpack"]

# Before data in which values are marked, so that data can hold the mark as well.
_MARKED: Final = b"\0"
# The same, and before data without marks, that the fast writer and reader of JSON do not take.
_LOOSE, _LOOSE_MARKED = b"\1", b"\2"
_LOST: Final = "lost"


def dump_fields(fields: Mapping[str, Any]) -> bytes:
    """The fields as JSON bytes.

    Raises:
        TypeError: a value has no JSON form.
    """
    return json_form(fields)


def pack(fields: Mapping[str, Any]) -> bytes:
    """The fields as bytes for :func:`unpack`, which gives equal values of the same classes.

    Raises:
        TypeError: a value is nested beyond 400 levels.

    >>> unpack(pack({"spot": (1, 2), "seen": {"a"}, "by number": {1: b"x"}}))
    {'spot': (1, 2), 'seen': {'a'}, 'by number': {1: b'x'}}
    """
    if type(fields) is not dict:
        fields = dict(fields)
    try:
        if is_plain(fields):
            return orjson.dumps(fields)
    except (TypeError, RecursionError):  # such as a number of 70 bits, or half a character
        pass
    try:
        told = {name: _told(value) for name, value in fields.items()}  # names are texts; json takes halves
    except RecursionError:
        raise TypeError(f"it is nested beyond {DEEPEST} levels") from None
    try:
        return _MARKED + orjson.dumps(told)
    except TypeError:
        return _LOOSE_MARKED + json.dumps(told).encode()


def _told(value: Any) -> Any:
    marker = Marker()
    told = marker.told(value)
    return {MARK: _LOST, "value": told} if marker.lost else told


def unpack(data: bytes, types: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields that :func:`pack` made these bytes of.

    Args:
        data: the bytes.
        types: validators by the names of fields, for values that were written in their JSON form;
            one that does not fit its type stays in that form.
    """
    first = data[:1]
    if first not in (_MARKED, _LOOSE, _LOOSE_MARKED):
        fields: dict[str, Any] = orjson.loads(data)
        return fields
    fields = orjson.loads(data[1:]) if first == _MARKED else json.loads(data[1:])
    if first == _LOOSE:
        return fields
    return {name: _made(value, (types or {}).get(name)) for name, value in fields.items()}


def _made(told: Any, validator: Any) -> Any:
    unmarker = Unmarker()
    lost = isinstance(told, dict) and told.get(MARK) == _LOST
    value = unmarker.made(told["value"] if lost else told)
    if (lost or unmarker.missed) and validator is not None:
        try:
            return validator.validate_python(value)
        except ValueError:  # it did not fit before it went, either
            return value
    return value
