"""Fields of a record as JSON bytes, and back.

Values that JSON does not know are written in their JSON form. Pictures, sounds, files, tool calls and
their like (:mod:`dspy_stream.program.types`) come back as what they are, wherever they stand in lists
and dicts: they are marked by the names of a closed table, so nothing is imported or opened.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Set
from enum import Enum
from typing import Any, Final

import orjson
from pydantic import BaseModel

from dspy_stream.program.types import NAMED

__all__ = ["dump_fields", "pack", "unpack"]

# Before data in which values of the types are marked, so that data can hold the mark as well.
_MARKED: Final = b"\0"
# The same, and before data without marks, that the fast writer and reader of JSON do not take.
_LOOSE, _LOOSE_MARKED = b"\1", b"\2"
_DEEPEST: Final = 400
_MARK: Final = "\0type"
_MARK_BYTES: Final = orjson.dumps(_MARK)

_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Set):
        return sorted(value, key=str)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    return str(value)


def dump_fields(fields: Mapping[str, Any]) -> bytes:
    """The fields as JSON bytes.

    Raises:
        TypeError: a value has no JSON form.
    """
    return orjson.dumps(fields, default=_plain, option=_OPTIONS)


class _Marker:
    """Gives the JSON form of values, and marks those of the types."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if NAMED.get(kind.__name__) is not kind:
            return _plain(value)
        self.count += 1
        return {_MARK: kind.__name__, "value": value.model_dump(mode="json")}


def pack(fields: Mapping[str, Any]) -> bytes:
    """The fields as bytes for :func:`unpack`, whole numbers of any size and halves of characters included.

    Raises:
        TypeError: a value is nested beyond 400 levels, or is a number of thousands of digits.
    """
    marker = _Marker()
    try:
        data = orjson.dumps(fields, default=marker, option=_OPTIONS)
    except TypeError:
        return _loosely(fields)
    if marker.count == 0:
        return data
    if data.count(_MARK_BYTES) != marker.count:  # the data themselves hold the mark
        return dump_fields(fields)
    return _MARKED + data


def _loosely(fields: Mapping[str, Any]) -> bytes:
    marker = _Marker()
    try:
        data = json.dumps(_walked(fields, marker, 0)).encode()
    except ValueError as error:  # a number of more digits than Python converts
        raise TypeError(str(error)) from error
    if marker.count == 0:
        return _LOOSE + data
    if data.count(_MARK_BYTES) != marker.count:  # the data themselves hold the mark
        return _LOOSE + json.dumps(_walked(fields, _plain, 0)).encode()
    return _LOOSE_MARKED + data


def _walked(value: Any, form: Callable[[Any], Any], depth: int) -> Any:
    """The value as dicts, lists and what :mod:`json` writes; ``form`` gives the form of other values."""
    if depth > _DEEPEST:
        raise TypeError(f"it is nested beyond {_DEEPEST} levels")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): _walked(item, form, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_walked(item, form, depth + 1) for item in value]
    try:
        return orjson.loads(orjson.dumps(value, default=form, option=_OPTIONS))
    except TypeError:  # it holds what that does not take
        return _walked(form(value), form, depth + 1)


def unpack(data: bytes) -> dict[str, Any]:
    """The fields that :func:`pack` made these bytes of."""
    first = data[:1]
    if first not in (_MARKED, _LOOSE, _LOOSE_MARKED):
        fields: dict[str, Any] = orjson.loads(data)
        return fields
    fields = orjson.loads(data[1:]) if first == _MARKED else json.loads(data[1:])
    if first == _LOOSE:
        return fields
    return {name: _unmarked(value) for name, value in fields.items()}


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        kind = NAMED.get(value[_MARK]) if _MARK in value else None
        if kind is not None:
            return kind.model_validate(value["value"])
        return {name: _unmarked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    return value
