"""Parquet: rows are staged as JSON lines beside the file and converted once the run has ended.

The only writer that imports pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from dspy_stream.errors import OutputError
from dspy_stream.rows import Row
from dspy_stream.stream.sinks.base import Position, SinkPartition
from dspy_stream.stream.sinks.encode import JsonlEncoder, unfit
from dspy_stream.stream.sinks.file import FileSink
from dspy_stream.stream.sinks.kinds import Mixed, widened
from dspy_stream.stream.sinks.tape import check_empty, check_path, is_occupied, sync_folder, unwritable

__all__ = ["ParquetSink"]

_BATCH = 4096


class ParquetSink:
    """One Parquet file, complete when the run is: it appears by a rename, whole or not at all.

    Until then the rows are in a hidden file beside it, exactly once after any number of crashes.
    Types are those of the JSON values, widened over all rows (integers to floats, null to
    anything). A row that holds another kind of value than the rows before it, as text where there were
    numbers, is not written: it becomes a dead letter of the stage ``write``.
    """

    def __init__(
        self,
        path: str,
        *,
        row_id: str | None = "row_id",
        columns: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = os.path.expanduser(path)
        self.overwrite = overwrite
        folder, base = os.path.split(self.path)
        self._staged = os.path.join(folder, f".{base}.rows.jsonl")
        self._half = os.path.join(folder, f".{base}.half")
        self._row_id = row_id
        self._columns = None if columns is None else tuple(columns)
        self._rows = FileSink(
            self._staged, lambda: TypedLines(JsonlEncoder(row_id=row_id, columns=columns)), overwrite=True
        )

    def check(self) -> None:
        """Raise an OutputError if neither file can be written."""
        check_path(self.path)
        check_path(self._half)
        self._rows.check()

    def occupied(self) -> bool:
        """True if the file is there and not empty."""
        return is_occupied(self.path)

    def open(self, position: Position | None) -> SinkPartition:
        """Open the staged rows; see :class:`~dspy_stream.stream.sinks.base.Sink`."""
        check_path(self.path)
        if position is None and not self.overwrite:
            check_empty(self.path)
        if position and position["offset"] and not os.path.lexists(self._staged) and self.occupied():
            return _Finished(self.path, position)
        return self._rows.open(position)

    def finish(self) -> None:
        """Convert the staged rows, and give the result its name."""
        if not os.path.lexists(self._staged):
            if os.path.lexists(self.path):
                return
            raise OutputError(f"cannot finish {self.path}: its rows, in {self._staged}, are gone")
        try:
            self._convert(self._schema())
            os.replace(self._half, self.path)
            sync_folder(self.path)
            os.unlink(self._staged)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def describe(self) -> dict[str, Any]:
        """Path and settings."""
        columns = None if self._columns is None else list(self._columns)
        return {
            "kind": "file",
            "path": self.path,
            "format": "parquet",
            "row_id": self._row_id,
            "columns": columns,
        }

    def _schema(self) -> pa.Schema:
        kinds: dict[str, Any] = {self._row_id: "text"} if self._row_id is not None else {}
        kinds.update((name, None) for name in self._columns or () if name not in kinds)
        try:
            for row in self._lines():
                kinds = _widened(kinds, row)
        except Mixed as error:  # rows that an earlier version staged
            raise self._mixed(str(error)) from error
        return pa.schema([pa.field(name, _type(kind)) for name, kind in kinds.items()])

    def _convert(self, schema: pa.Schema) -> None:
        if os.path.lexists(self._half):
            os.unlink(self._half)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._half, flags, 0o666), "wb") as file:
            with pq.ParquetWriter(file, schema) as writer:
                for batch in self._batches():
                    count = len(next(iter(batch.values()), []))
                    arrays = [
                        self._array(field.name, batch.get(field.name) or [None] * count, field.type)
                        for field in schema
                    ]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            file.flush()
            os.fsync(file.fileno())

    def _array(self, name: str, values: list[Any], kind: pa.DataType) -> pa.Array:
        try:
            return pa.array([_fitting(value, kind) for value in values], type=kind)
        except (pa.ArrowException, OverflowError) as error:
            raise self._mixed(f"column {name!r}: {error}") from error

    def _mixed(self, what: str) -> OutputError:
        return OutputError(
            f"cannot write {self.path}: {what}; every row of a column must hold one type; "
            f"the rows are whole in {self._staged}: convert the column with .map(), or write .jsonl"
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The staged rows."""
        with open(self._staged, "rb") as file:
            for line in file:
                yield orjson.loads(line)

    def _batches(self) -> Iterator[dict[str, list[Any]]]:
        """The staged rows as columns of equal length, some thousand rows at a time."""
        lines = self._lines()
        while rows := list(islice(lines, _BATCH)):
            yield _columns(rows)


class TypedLines:
    """JSON lines whose columns keep to one kind of value each; see :mod:`~dspy_stream.stream.sinks.kinds`."""

    def __init__(self, inner: JsonlEncoder) -> None:
        self._inner = inner
        self._kinds: dict[str, Any] = {}

    def encode(self, rows: Sequence[Row]) -> bytes:
        """One line for each row, none where one of them does not fit the rows before it."""
        data = self._inner.encode(rows)
        kinds = self._kinds
        for row, line in zip(rows, data.splitlines(), strict=True):
            try:
                kinds = _widened(kinds, orjson.loads(line))
            except Mixed as error:  # noqa: PERF203 - the row is needed
                raise unfit(
                    row,
                    f"row {row.id}: {error}; a Parquet column holds values of one type: convert it with "
                    ".map(), or write .jsonl",
                ) from error
        self._kinds = kinds
        return data

    def header(self) -> bytes:
        """JSON lines have none."""
        return self._inner.header()

    def state(self) -> dict[str, Any]:
        """The columns' kinds so far."""
        return {**self._inner.state(), "kinds": self._kinds}

    def restore(self, state: Mapping[str, Any], *, begun: bool) -> None:
        """Go on with them."""
        self._inner.restore(state, begun=begun)
        self._kinds = dict(state.get("kinds") or {})

    def recall(self, text: Iterable[str]) -> dict[str, Any]:
        """Nothing is added to a finished file."""
        return self._inner.recall(text)


def _widened(kinds: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What the columns hold with one more row."""
    try:
        return widened(kinds, row)
    except Mixed as error:
        raise Mixed(f"the column {error}") from None


def _type(kind: Any) -> pa.DataType:
    if kind is None:
        return pa.null()
    if isinstance(kind, str):
        return {"bool": pa.bool_(), "text": pa.string(), "number": pa.float64()}[kind]
    if kind[0] == "integer":
        return pa.int64() if kind[2] < 2**63 else pa.uint64()
    if kind[0] == "list":
        return pa.list_(_type(kind[1]))
    if not kind[1]:
        return pa.null()  # the format has no objects without names
    return pa.struct([pa.field(name, _type(item)) for name, item in kind[1].items()])


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """The value without objects that have no names, where the column has none with any."""
    if value is None or pa.types.is_null(kind):
        return None
    if pa.types.is_list(kind):
        return [_fitting(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _fitting(value.get(field.name), field.type) for field in kind}
    return value


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


class _Finished:
    """What a finished run has left: it can be opened and committed again, but not added to."""

    def __init__(self, path: str, position: Position) -> None:
        self._path = path
        self._position = position

    def write(self, rows: Sequence[Row]) -> None:
        if rows:
            raise OutputError(f"{self._path} is finished and takes no more rows; start a fresh run")

    def flush(self) -> Position:
        return dict(self._position)

    def close(self) -> None:
        """Nothing is open."""
