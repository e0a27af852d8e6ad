"""From a record's fields to a row with an id, or to a dead letter that says why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from dspy_stream.program.fields import nearest
from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.stream.sources.base import MAX_RAW
from dspy_stream.stream.sources.ids import MAX_ID, ROW_ID, derived_ids
from dspy_stream.stream.sources.lines import TooLong
from dspy_stream.stream.sources.values import plain_fields

__all__ = ["RowBuilder", "missing_message"]

_new: Final[Any] = tuple.__new__


class RowBuilder:
    """Builds the rows of one partition.

    ``id_column`` names the column with the user's ids, and a record without one is named by its
    place. Without such a column, rows that a flow of ours wrote keep the id they were written with
    (text under ``row_id``), and all others are named by their place; ``columns`` are the fields to keep, in
    that order, each of which every record must have.
    """

    __slots__ = ("_columns", "_id_column", "derive", "name", "partition", "plain")

    def __init__(
        self,
        name: str,
        partition: str,
        *,
        id_column: str | None = None,
        columns: tuple[str, ...] | None = None,
    ) -> None:
        self.name = name
        self.partition = partition
        self.derive = derived_ids(name, partition)
        self._id_column = id_column
        self._columns = columns
        # True where a record needs no check at all, so that readers can build the row in place.
        self.plain = id_column is None and columns is None

    @property
    def selects(self) -> bool:
        """True where only some columns are kept."""
        return self._columns is not None

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that every record must have, the id column among them."""
        columns = self._columns or ()
        if self._id_column is None or self._id_column in columns:
            return columns
        return (*columns, self._id_column)

    def make(
        self, row_id: str, fields: Mapping[str, Any], number: int, line: int | None, raw: bytes | None
    ) -> Row:
        """The row of a record that needs no further check."""
        return Row(row_id, fields, _new(Origin, (self.name, self.partition, number, line)), raw)

    def build(
        self, fields: dict[str, Any], number: int, *, line: int | None = None, raw: bytes | None = None
    ) -> Row | DeadLetter:
        """The row of record ``number``, or its dead letter if the id or a column is missing."""
        kept: Mapping[str, Any] = fields
        if self._columns is not None:
            try:
                kept = {name: fields[name] for name in self._columns}
            except KeyError as error:
                message = missing_message(str(error.args[0]), fields, "this record has no field")
                whole = self._bytes(fields, raw)
                return self.refuse("missing_column", message, number=number, line=line, raw=whole)
        row_id = fields.get(self._id_column or ROW_ID)
        if self._id_column is None and not (type(row_id) is str and len(row_id) <= MAX_ID):
            return self.make(self.derive(number), kept, number, line, raw)
        if row_id is None or row_id == "":
            return self.make(self.derive(number), kept, number, line, raw)
        if type(row_id) is int:
            row_id = str(row_id)
        if type(row_id) is str and 0 < len(row_id) <= MAX_ID:
            return self.make(row_id, kept, number, line, raw)
        message = _id_message(self._id_column or ROW_ID, fields)
        return self.refuse("bad_id", message, number=number, line=line, raw=self._bytes(fields, raw))

    def convert(self, record: object, number: int) -> Row | DeadLetter:
        """The row of a Python object; its dead letter if it has no JSON form."""
        try:
            fields = plain_fields(record)
        except (TypeError, ValueError) as error:
            raw = _shown(record).encode("utf-8", "backslashreplace")[:MAX_RAW]
            return self.refuse("bad_value", str(error), number=number, line=None, raw=raw)
        return self.build(fields, number)

    def refuse(self, code: str, message: str, *, number: int, line: int | None, raw: bytes) -> DeadLetter:
        """The dead letter of record ``number``, with its bytes as they stood."""
        origin = Origin(self.name, self.partition, number, line)
        error = {"code": code, "type": "RecordError", "message": f"{origin}: {message}"}
        return DeadLetter(self.derive(number), origin, raw, stage="read", error=error)

    def too_long(self, record: TooLong, cap: int, *, number: int, line: int | None) -> DeadLetter:
        """The dead letter of a record over the cap, with its first bytes only."""
        message = (
            f"the record has {record.length} bytes and the limit is {cap}; only its first "
            f"{len(record.head)} bytes are kept here; raise max_line to accept it"
        )
        return self.refuse("too_long", message, number=number, line=line, raw=record.head)

    def _bytes(self, fields: dict[str, Any], raw: bytes | None) -> bytes:
        return raw if raw is not None else Row("", fields, Origin(self.name, self.partition, 0)).raw_bytes()


def _shown(record: object) -> str:
    try:
        return repr(record)
    except Exception as error:  # noqa: BLE001 - a user's __repr__, or one nested too deeply
        return f"<{type(record).__name__}, whose repr raises {type(error).__name__}>"


def _id_message(column: str, fields: Mapping[str, Any]) -> str:
    if column not in fields:
        return missing_message(column, fields, "this record has no id column")
    value = fields[column]
    if isinstance(value, str):
        return f"the id in column {column!r} has {len(value)} characters; at most {MAX_ID} are allowed"
    return f"the id in column {column!r} is a {type(value).__name__}; it must be a string or an integer"


def missing_message(name: str, known: Iterable[str], opening: str) -> str:
    """``opening`` with the missing name, the names there are, and the most similar of them."""
    names = list(known)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{opening} {name!r}{nearest(name, names)}; it has: {shown or 'nothing'}"
