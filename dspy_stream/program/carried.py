"""Fields of a record as JSON bytes, and back.

Values that JSON does not know are written in their JSON form. Pictures, sounds, files, tool calls and
their like (:mod:`dspy_stream.program.types`) come back as what they are, wherever they stand in lists
and dicts: they are marked by the names of a closed table, so nothing is imported or opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set
from enum import Enum
from typing import Any, Final

import orjson
from pydantic import BaseModel

from dspy_stream.program.types import NAMED

__all__ = ["dump_fields", "pack", "unpack"]

# Before data in which values of the types are marked, so that data can hold the mark as well.
_MARKED: Final = b"\0"
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
    """The fields as bytes for :func:`unpack`.

    Raises:
        TypeError: a value has no JSON form.
    """
    marker = _Marker()
    data = orjson.dumps(fields, default=marker, option=_OPTIONS)
    if marker.count == 0:
        return data
    if data.count(_MARK_BYTES) != marker.count:  # the data themselves hold the mark
        return dump_fields(fields)
    return _MARKED + data


def unpack(data: bytes) -> dict[str, Any]:
    """The fields that :func:`pack` made these bytes of."""
    if not data.startswith(_MARKED):
        fields: dict[str, Any] = orjson.loads(data)
        return fields
    return {name: _unmarked(value) for name, value in orjson.loads(data[len(_MARKED) :]).items()}


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        kind = NAMED.get(value[_MARK]) if _MARK in value else None
        if kind is not None:
            return kind.model_validate(value["value"])
        return {name: _unmarked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    return value
