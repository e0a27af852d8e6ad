"""Rows as plain builtins, for the engine's snapshots.

bytewax keeps what an operator's ``snapshot`` returns. Only tuples, strings and bytes are handed to
it, so that no class of the user's has to be found again by name when a run resumes. Values that
JSON does not know are written in their JSON form; ``types`` brings typed outputs of earlier steps
back to their types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set
from enum import Enum
from typing import Any, Final

import orjson
from pydantic import BaseModel, TypeAdapter

from dspy_stream.rows import Origin, Row

__all__ = ["Frozen", "dump_fields", "freeze", "thaw"]

Frozen = tuple[str, bytes, tuple[str, str, int, "int | None"], "bytes | None"]
Types = Mapping[str, TypeAdapter[Any]]

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


def freeze(row: Row) -> Frozen:
    """A row as builtins."""
    origin = row.origin
    where = (origin.name, origin.partition, origin.offset, origin.line)
    return (row.id, dump_fields(row.fields), where, row.raw)


def thaw(frozen: Frozen, types: Types) -> Row:
    """The row again, its typed fields validated back to their types."""
    row_id, data, where, raw = frozen
    fields = orjson.loads(data)
    for name, adapter in types.items():
        if name in fields:
            fields[name] = adapter.validate_python(fields[name])
    return Row(row_id, fields, Origin(*where), raw)
