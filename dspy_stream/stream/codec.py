"""Rows as plain builtins, for the engine's snapshots.

bytewax keeps what an operator's ``snapshot`` returns. Only tuples, strings and bytes are handed to
it, so that no class of the user's has to be found again by name when a run resumes. Values that
JSON does not know are written in their JSON form; ``types`` brings typed outputs of earlier steps
back to their types. See :mod:`dspy_stream.program.carried` for what comes back by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import TypeAdapter

from dspy_stream.errors import FlowError
from dspy_stream.program.carried import dump_fields, pack, unpack
from dspy_stream.rows import Origin, Row, written

__all__ = ["Frozen", "as_json", "dump_fields", "freeze", "thaw"]

Frozen = tuple[str, bytes, tuple[str, str, int, "int | None"], "bytes | None"]
Types = Mapping[str, TypeAdapter[Any]]


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as JSON knows them; a value without a JSON form as text."""
    try:
        made: dict[str, Any] = orjson.loads(dump_fields(fields))
    except (TypeError, RecursionError):
        return {written(str(name)): written(str(value)) for name, value in fields.items()}
    return made


def freeze(row: Row) -> Frozen:
    """A row as builtins.

    Raises:
        FlowError: a value of it cannot be kept, so that the row would be lost in a crash.
    """
    origin = row.origin
    where = (origin.name, origin.partition, origin.offset, origin.line)
    try:
        data = pack(row.fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise FlowError(
            f"row {row.id} ({origin}) has a value that cannot be kept for a crash: {error}; "
            "make it text or plain data before the next step"
        ) from error
    return (row.id, data, where, row.raw)


def thaw(frozen: Frozen, types: Types) -> Row:
    """The row again, its typed fields validated back to their types."""
    row_id, data, where, raw = frozen
    fields = unpack(data)
    for name, adapter in types.items():
        if name in fields:
            fields[name] = adapter.validate_python(fields[name])
    return Row(row_id, fields, Origin(*where), raw)
