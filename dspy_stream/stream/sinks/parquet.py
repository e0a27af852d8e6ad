"""Parquet: rows are staged as JSON lines beside the file and converted once the run has ended.

The only writer that imports pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from dspy_stream.errors import ConfigurationError, OutputError
from dspy_stream.rows import Row
from dspy_stream.stream.sinks.base import Position, SinkPartition
from dspy_stream.stream.sinks.encode import JsonlEncoder
from dspy_stream.stream.sinks.file import FileSink
from dspy_stream.stream.sinks.tape import check_path, sync_folder, unwritable

__all__ = ["ParquetSink"]

_BATCH = 4096


class ParquetSink:
    """One Parquet file, complete when the run is: it appears by a rename, whole or not at all.

    Until then the rows are in a hidden file beside it, exactly once after any number of crashes.
    Types are those of the JSON values, widened over all rows (integers to floats, null to
    anything); a column that holds text in one row and a number in another cannot be converted.
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
            self._staged, lambda: JsonlEncoder(row_id=row_id, columns=columns), overwrite=True
        )

    def check(self) -> None:
        """Raise an OutputError if neither file can be written."""
        check_path(self.path)
        check_path(self._half)
        self._rows.check()

    def occupied(self) -> bool:
        """True if the file is there and not empty."""
        try:
            return os.lstat(self.path).st_size > 0
        except OSError:
            return False

    def open(self, position: Position | None) -> SinkPartition:
        """Open the staged rows; see :class:`~dspy_stream.stream.sinks.base.Sink`."""
        check_path(self.path)
        if position is None and not self.overwrite and self.occupied():
            raise ConfigurationError(
                f"{self.path} exists and is not empty; pass --fresh to `dspy-stream run`, remove it, or "
                "write to another name"
            )
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
        names = [self._row_id] if self._row_id is not None else []
        schema = pa.schema([pa.field(name, pa.string()) for name in names])
        if self._columns is not None:
            chosen = [name for name in self._columns if name != self._row_id]
            schema = pa.schema([*schema, *(pa.field(name, pa.null()) for name in chosen)])
        for batch in self._batches():
            found = pa.schema([pa.field(name, self._array(name, v).type) for name, v in batch.items()])
            try:
                schema = pa.unify_schemas([schema, found], promote_options="permissive")
            except pa.ArrowException as error:
                raise self._mixed(str(error)) from error
        return schema

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

    def _array(self, name: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
        try:
            return pa.array(values, type=kind)
        except (pa.ArrowException, OverflowError) as error:
            raise self._mixed(f"column {name!r}: {error}") from error

    def _mixed(self, what: str) -> OutputError:
        return OutputError(
            f"cannot write {self.path}: {what}; every row of a column must hold one type; "
            f"the rows are whole in {self._staged}: convert the column with .map(), or write .jsonl"
        )

    def _batches(self) -> Iterator[dict[str, list[Any]]]:
        """The staged rows as columns of equal length, some thousand rows at a time."""
        with open(self._staged, "rb") as file:
            rows: list[dict[str, Any]] = []
            for line in file:
                rows.append(orjson.loads(line))
                if len(rows) >= _BATCH:
                    yield _columns(rows)
                    rows = []
            if rows:
                yield _columns(rows)


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
