"""Rows as bytes: JSON lines and CSV.

The row id comes first, under a name of its own, then the fields: all of them, or the chosen
columns in their order. A chosen column that a row lacks is null, in CSV an empty cell; one that
no row of the first batch has is taken for a typing error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import orjson

from dspy_stream.errors import OutputError
from dspy_stream.program.fields import nearest
from dspy_stream.rows import Row
from dspy_stream.stream.sources.values import plain

__all__ = ["CsvEncoder", "Encoder", "JsonlEncoder", "encode_fit", "unfit"]


class Encoder(Protocol):
    """Turns batches into bytes. A batch is encoded whole or not at all."""

    def encode(self, rows: Sequence[Row]) -> bytes:
        """The bytes of these rows.

        Raises:
            OutputError: a value has no JSON form, or a row does not fit the columns; its ``row`` is
            set where the others could be written without it.
        """
        ...

    def header(self) -> bytes:
        """What has to stand before the first row, as far as it is known, once."""
        ...

    def state(self) -> dict[str, Any]:
        """What a position must hold to go on in the same form."""
        ...

    def restore(self, state: Mapping[str, Any], *, begun: bool) -> None:
        """Go on from a state; ``begun`` where the header has been written."""
        ...

    def recall(self, text: Iterable[str]) -> dict[str, Any]:
        """The state that an output of this form, with at least one byte, was left in."""
        ...


def encode_fit(encoder: Encoder, rows: Sequence[Row]) -> tuple[bytes, list[OutputError]]:
    """The bytes of those rows that have a form; for each of the others an error that holds it as ``row``.

    Raises:
        OutputError: as :meth:`Encoder.encode`, for any reason that is no row's own.
    """
    left = list(rows)
    left_out: list[OutputError] = []
    while True:
        try:
            return encoder.encode(left), left_out
        except OutputError as error:  # noqa: PERF203 - once a row that is left out
            if error.row is None:
                raise
            left_out.append(error)
            left = [row for row in left if row is not error.row]


class JsonlEncoder:
    """One JSON object a line, in UTF-8.

    Models, dataclasses, enums, dates, sets and arrays become JSON as in
    :mod:`~dspy_stream.stream.sources.values`. NaN and infinity become null.
    """

    __slots__ = ("_checked", "_columns", "_row_id")

    def __init__(self, *, row_id: str | None = "row_id", columns: Sequence[str] | None = None) -> None:
        self._row_id = row_id
        self._columns = None if columns is None else tuple(name for name in columns if name != row_id)
        self._checked = False

    def encode(self, rows: Sequence[Row]) -> bytes:
        """One line for each row."""
        if self._row_id is None or self._columns is not None:
            return b"".join([_line(made, row) for row, made in zip(rows, self.objects(rows), strict=True)])
        name, dumps, option = self._row_id, orjson.dumps, orjson.OPT_APPEND_NEWLINE
        for row in rows:
            if name in row.fields:
                _check_id(row, name)
        try:
            return b"".join([dumps({name: row.id, **row.fields}, plain, option) for row in rows])
        except (TypeError, ValueError):
            return b"".join([_line({name: row.id, **row.fields}, row) for row in rows])

    def header(self) -> bytes:
        """JSON lines have none."""
        return b""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any], *, begun: bool) -> None:  # noqa: ARG002 - no state
        """Only the check of the first batch is left out."""
        self._checked = begun

    def recall(self, text: Iterable[str]) -> dict[str, Any]:  # noqa: ARG002 - no state
        """Nothing."""
        return {}

    def objects(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What is written of each row, as it is in Python."""
        if self._columns is not None and not self._checked:
            _check_first(rows, self._columns)
            self._checked = bool(rows)
        return [self._object(row) for row in rows]

    def _object(self, row: Row) -> dict[str, Any]:
        fields = row.fields
        values = fields if self._columns is None else {name: fields.get(name) for name in self._columns}
        if self._row_id is None:
            return dict(values)
        if self._row_id in fields:
            _check_id(row, self._row_id)
        return {self._row_id: row.id, **values}


class _Lines(list[str]):
    """Takes what the csv module writes, one call a row."""

    write = list.append


class CsvEncoder:
    """RFC 4180 with a header; lines end in a newline alone.

    Without ``columns`` the fields of the first batch become the columns. A later row may lack
    some of them, but has no place for another. Lists and objects are written as JSON text,
    booleans as true and false, None as an empty cell.
    """

    def __init__(
        self,
        *,
        row_id: str | None = "row_id",
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
    ) -> None:
        self._row_id = row_id
        self._given = columns is not None
        self._columns = None if columns is None else [name for name in columns if name != row_id]
        self._known: frozenset[str | None] = frozenset()
        self._lines = _Lines()
        # This line end makes the csv module quote both characters in every version of Python;
        # encode() shortens it.
        self._writer = csv.writer(self._lines, delimiter=delimiter, lineterminator="\r\n")
        self._begun = self._checked = False

    def encode(self, rows: Sequence[Row]) -> bytes:
        """One record for each row, the header first where it is due."""
        if not rows:
            return b""
        if self._columns is None:
            names = dict.fromkeys(name for row in rows for name in row.fields)
            _check_names(rows, names)
            self._columns = [name for name in names if name != self._row_id]
            self._known = frozenset((*names, self._row_id))
        elif self._given and not self._checked:
            _check_first(rows, self._columns)
            self._checked = True
        records = [self._record(row, self._columns) for row in rows]
        try:
            body = self._text(records)
        except ValueError:  # a lone surrogate, or an integer of more digits than Python writes
            self._refuse(rows, records)
            raise
        return self.header() + body

    def header(self) -> bytes:
        """The names of the columns, unless they are not known yet or were written."""
        if self._begun or self._columns is None:
            return b""
        self._begun = True
        names = self._names()
        try:
            return self._text([names])
        except UnicodeEncodeError as error:
            raise OutputError(f"the columns {names!r} cannot be written: {error}") from error

    def state(self) -> dict[str, Any]:
        """The columns."""
        return {"columns": self._columns}

    def restore(self, state: Mapping[str, Any], *, begun: bool) -> None:
        """Keep to the columns."""
        if begun and not self._given:
            self._columns = state["columns"]
            self._known = frozenset((*state["columns"], self._row_id))
        self._begun = self._checked = begun

    def recall(self, text: Iterable[str]) -> dict[str, Any]:
        """The columns that its header names."""
        names = next(csv.reader(text, delimiter=self._writer.dialect.delimiter), [])
        return {"columns": [name for name in names if name != self._row_id]}

    def _record(self, row: Row, columns: list[str]) -> list[Any]:
        fields = row.fields
        if self._row_id is not None and self._row_id in fields:
            _check_id(row, self._row_id)
        if not self._given and not fields.keys() <= self._known:
            extra = next(name for name in fields if name not in self._known)
            raise unfit(
                row,
                f"row {row.id} has the field {extra!r}, for which the CSV output has no column; it has: "
                f"{', '.join(map(str, columns))}; pass columns=[...] with every field to write",
            )
        cells = [_cell(fields.get(name), row, name) for name in columns]
        return cells if self._row_id is None else [row.id, *cells]

    def _names(self) -> list[str]:
        names = self._columns or []
        return names if self._row_id is None else [self._row_id, *names]

    def _text(self, records: Iterable[Sequence[Any]]) -> bytes:
        try:
            self._writer.writerows(records)
            return "".join([line[:-2] + "\n" for line in self._lines]).encode("utf-8")
        finally:
            self._lines.clear()

    def _refuse(self, rows: Sequence[Row], records: Sequence[Sequence[Any]]) -> None:
        """Raise an error for the first row with a cell that cannot be written."""
        for row, record in zip(rows, records, strict=True):
            for name, cell in zip(self._names(), record, strict=True):
                try:
                    str(cell).encode("utf-8")
                except ValueError as error:  # noqa: PERF203 - the name is needed
                    raise _no_form(row, name, error) from error


def _cell(value: Any, row: Row, name: str) -> Any:
    if type(value) is str or type(value) is int:
        return value
    if value is None:
        return ""
    try:
        value = plain(value)
        if isinstance(value, str):
            return value
        return "" if value is None else orjson.dumps(value).decode()
    except (TypeError, ValueError) as error:
        raise _no_form(row, name, error) from error


def _line(value: dict[str, Any], row: Row) -> bytes:
    """The slow way, which knows integers beyond 64 bits and keys of other types, and names the culprit."""
    try:
        return orjson.dumps(value, plain, orjson.OPT_APPEND_NEWLINE)
    except (TypeError, ValueError):
        pass
    parts: dict[str, str] = {}
    for name, item in value.items():
        key = str(name)
        try:
            parts[key] = f"{_json(plain(key))}: {_json(plain(item))}"
        except (TypeError, ValueError) as error:
            raise _no_form(row, key, error) from error
    return f"{{{', '.join(parts.values())}}}\n".encode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def unfit(row: Row, message: str) -> OutputError:
    """An error that holds the row that does not fit."""
    error = OutputError(message)
    error.row = row
    return error


def _no_form(row: Row, name: str, error: Exception) -> OutputError:
    return unfit(
        row,
        f"row {row.id}: the field {name!r} cannot be written: {error}; "
        "turn it into text, numbers, lists or objects with .map() before .write()",
    )


def _check_id(row: Row, name: str) -> None:
    if row.fields[name] != row.id and str(row.fields[name]) != row.id:
        raise unfit(
            row,
            f"row {row.id} has a field {name!r} of its own, the name under which the row id is written; "
            f"read with id={name!r} to keep it, or write with row_id='another_name'",
        )


def _check_names(rows: Sequence[Row], names: Iterable[Any]) -> None:
    """Refuse a row with a field whose name cannot stand in a header."""
    for name in names:
        try:
            str(name).encode("utf-8")
        except UnicodeEncodeError as error:  # noqa: PERF203 - the name is needed
            culprit = next(row for row in rows if name in row.fields)
            raise _no_form(culprit, str(name), error) from error


def _check_first(rows: Sequence[Row], columns: Sequence[str]) -> None:
    missing = [name for name in columns if not any(name in row.fields for row in rows)] if rows else []
    if missing:
        known = list(dict.fromkeys(str(name) for row in rows for name in row.fields))
        raise OutputError(
            f"no row has the column {missing[0]!r}{nearest(missing[0], known)}; "
            f"the fields are: {', '.join(known)}"
        )
