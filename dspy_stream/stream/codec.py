"""Rows as plain builtins, for the engine's snapshots.

bytewax keeps what an operator's ``snapshot`` returns. Only tuples, strings and bytes are handed to
it, so that no class of the user's has to be found again by bytewax when a run resumes. Values come back
as what they were, whether or not they fit the types of their fields; see
:mod:`dspy_stream.program.carried`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Union

import orjson
from pydantic import TypeAdapter

from dspy_stream.errors import FlowError
from dspy_stream.modules.traced import OF_CALLS
from dspy_stream.program.carried import dump_fields, pack, unpack
from dspy_stream.program.marked import formless, is_plain
from dspy_stream.rows import Origin, Row, written

__all__ = ["Frozen", "as_json", "dump_fields", "freeze", "thaw", "thaw_noted"]

_Where = tuple[str, str, int, "int | None"]
_Raw = Union["bytes", "tuple[bytes]", None]  # the bytes that were read, or the packed fields
Frozen = Union[  # noqa: UP007 - the last is what the row's parts have written, where that matters
    tuple[str, bytes, _Where, "_Raw"], tuple[str, bytes, _Where, "_Raw", tuple[str, ...]]
]
Types = Mapping[str, TypeAdapter[Any]]
_FORMLESS: Final = "\0formless"  # names the fields that held what has no form; no field of a row's own does


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
        data, raw = _packed(row.fields), row.raw
        kept: _Raw = raw if raw is None or isinstance(raw, bytes) else (pack(raw),)
    except (TypeError, ValueError, RecursionError) as error:
        raise FlowError(
            f"row {row.id} ({origin}) has a value that cannot be kept for a crash: {error}; "
            "make it text or plain data before the next step"
        ) from error
    return (row.id, data, where, kept, row.written) if row.written else (row.id, data, where, kept)


def _packed(fields: Mapping[str, Any]) -> bytes:
    data = pack(fields)
    if data.startswith(b"{"):  # all of it is plain
        return data
    names = [name for name, value in fields.items() if not is_plain(value) and formless(value) is not None]
    return pack({**fields, _FORMLESS: names}) if names else data


def thaw(frozen: Frozen, types: Types) -> Row:
    """The row again; fields that JSON only knows in another form come back by their types."""
    return thaw_noted(frozen, types)[0]


def thaw_noted(frozen: Frozen, types: Types) -> tuple[Row, list[str]]:
    """The row again, and which of its fields held objects without a form and now hold the text of them."""
    row_id, data, where, kept, *written = frozen
    raw = unpack(kept[0]) if isinstance(kept, tuple) else kept
    fields = unpack(data, types)
    formless_ones = fields.pop(_FORMLESS, [])
    return Row(row_id, fields, Origin(*where), raw, *written), formless_ones
