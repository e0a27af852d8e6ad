"""Rows as plain builtins, for the engine's snapshots.

bytewax keeps what an operator's ``snapshot`` returns. Only tuples, strings and bytes are handed to
it, so that no class of the user's has to be found again by bytewax when a run resumes. Values come back
as what they were, whether or not they fit the types of their fields; see
:mod:`dspy_stream.program.carried`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

import orjson
from pydantic import TypeAdapter

from dspy_stream.errors import FlowError
from dspy_stream.modules.traced import OF_CALLS
from dspy_stream.program.carried import dump_fields, pack, unpack
from dspy_stream.rows import Origin, Row, written

__all__ = ["Frozen", "as_json", "dump_fields", "freeze", "thaw"]

_Where = tuple[str, str, int, "int | None"]
_Raw = Union["bytes", "tuple[bytes]", None]  # the bytes that were read, or the packed fields
Frozen = Union[  # noqa: UP007 - the last is what the row's parts have written, where that matters
    tuple[str, bytes, _Where, "_Raw"], tuple[str, bytes, _Where, "_Raw", tuple[str, ...]]
]
Types = Mapping[str, TypeAdapter[Any]]


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as JSON knows them, for a reader; a value without a JSON form as text."""
    fields = {str(name).removeprefix(OF_CALLS): value for name, value in fields.items()}
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
        data, raw = pack(row.fields), row.raw
        kept: _Raw = raw if raw is None or isinstance(raw, bytes) else (pack(raw),)
    except (TypeError, ValueError, RecursionError) as error:
        raise FlowError(
            f"row {row.id} ({origin}) has a value that cannot be kept for a crash: {error}; "
            "make it text or plain data before the next step"
        ) from error
    return (row.id, data, where, kept, row.written) if row.written else (row.id, data, where, kept)


def thaw(frozen: Frozen, types: Types) -> Row:
    """The row again; fields that JSON only knows in another form come back by their types."""
    row_id, data, where, kept, *written = frozen
    raw = unpack(kept[0]) if isinstance(kept, tuple) else kept
    return Row(row_id, unpack(data, types), Origin(*where), raw, *written)
