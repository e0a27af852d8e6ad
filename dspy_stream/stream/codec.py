"""Rows as plain builtins, for the engine's snapshots.

bytewax keeps what an operator's ``snapshot`` returns. Only tuples, strings and bytes are handed to
it, so that no class of the user's has to be found again by name when a run resumes. Values that
JSON does not know are written in their JSON form; ``types`` brings typed outputs of earlier steps
back to their types. Pictures, sounds, files, tool calls and their like (:mod:`dspy_stream.program.types`)
come back as what they are, wherever they stand in lists and dicts: they are marked by the names of
a closed table, so nothing is imported or opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set
from enum import Enum
from typing import Any, Final

import orjson
from pydantic import BaseModel, TypeAdapter

from dspy_stream.program.types import NAMED
from dspy_stream.rows import Origin, Row

__all__ = ["Frozen", "as_json", "dump_fields", "freeze", "thaw"]

Frozen = tuple[str, bytes, tuple[str, str, int, "int | None"], "bytes | None"]
Types = Mapping[str, TypeAdapter[Any]]

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


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as JSON knows them; a value without a JSON form as text."""
    try:
        made: dict[str, Any] = orjson.loads(dump_fields(fields))
    except (TypeError, RecursionError):
        return {str(name): str(value) for name, value in fields.items()}
    return made


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


def _dump_marked(fields: Mapping[str, Any]) -> bytes:
    marker = _Marker()
    data = orjson.dumps(fields, default=marker, option=_OPTIONS)
    if marker.count == 0:
        return data
    if data.count(_MARK_BYTES) != marker.count:  # the data themselves hold the mark
        return dump_fields(fields)
    return _MARKED + data


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        kind = NAMED.get(value[_MARK]) if _MARK in value else None
        if kind is not None:
            return kind.model_validate(value["value"])
        return {name: _unmarked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    return value


def freeze(row: Row) -> Frozen:
    """A row as builtins."""
    origin = row.origin
    where = (origin.name, origin.partition, origin.offset, origin.line)
    return (row.id, _dump_marked(row.fields), where, row.raw)


def thaw(frozen: Frozen, types: Types) -> Row:
    """The row again, its typed fields validated back to their types."""
    row_id, data, where, raw = frozen
    marked = data.startswith(_MARKED)
    fields = orjson.loads(data[len(_MARKED) :] if marked else data)
    if marked:
        fields = _unmarked(fields)
    for name, adapter in types.items():
        if name in fields:
            fields[name] = adapter.validate_python(fields[name])
    return Row(row_id, fields, Origin(*where), raw)
