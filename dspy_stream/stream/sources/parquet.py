"""Parquet files, row group by row group. The only reader that imports pyarrow.

Values become JSON-able Python as :mod:`~dspy_stream.stream.sources.values` says: time stamps are
ISO 8601 text, decimals text, bytes base64, and NaN is null.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from dspy_stream.errors import InputError
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources.base import Position
from dspy_stream.stream.sources.blocks import open_for_reading
from dspy_stream.stream.sources.fingerprint import changed, head_of, marks, verify
from dspy_stream.stream.sources.rows import RowBuilder, missing_message

__all__ = ["ParquetPartition", "count_rows", "open_parquet"]

_BATCH = 1024


def count_rows(path: str, name: str) -> int:
    """Rows by the file's footer.

    Raises:
        InputError: the file is not Parquet.
    """
    file = _open(open_for_reading(path, name), name)
    try:
        return int(file.metadata.num_rows)
    finally:
        file.close(force=True)


def open_parquet(path: str, name: str, rows: RowBuilder, position: Position | None) -> ParquetPartition:
    """Open a file at its first row, or after as many rows as ``position`` says.

    Raises:
        InputError: it is not a Parquet file, or lacks a column.
        SourceChanged: it is not the file ``position`` was taken from.
    """
    descriptor = open_for_reading(path, name)
    size = os.fstat(descriptor).st_size
    try:
        if position is not None:
            verify(descriptor, name, position, position["size"])
            if size != position["size"]:
                raise changed(name, f"it has {size} bytes now and had {position['size']}")
        # The footer lies at the end, so the marks cover the schema and every row group's place.
        found = {"size": size, **marks(descriptor, head_of(descriptor), size)}
    except InputError:
        os.close(descriptor)
        raise
    return ParquetPartition(
        _open(descriptor, name), rows, name=name, marks=found, number=position["number"] if position else 0
    )


def _open(descriptor: int, name: str) -> pq.ParquetFile:
    handle = os.fdopen(descriptor, "rb")
    try:
        return pq.ParquetFile(pa.PythonFile(handle, mode="r"))
    except (pa.ArrowException, OSError) as error:
        handle.close()
        raise InputError(f"{name} cannot be read as Parquet: {error}") from error


class ParquetPartition:
    """The rows of one file; ``number`` of them are skipped."""

    def __init__(
        self, file: pq.ParquetFile, rows: RowBuilder, *, name: str, marks: dict[str, Any], number: int
    ) -> None:
        self._file = file
        self._rows = rows
        self._name = name
        self._marks = marks
        self._number = number
        self._total = int(file.metadata.num_rows)
        self._batch: list[dict[str, Any]] = []
        names = file.schema_arrow.names
        missing = [column for column in rows.required if column not in names]
        if missing:
            self.close()
            raise InputError(missing_message(missing[0], names, f"{name} has no column"))
        twice = sorted({column for column in names if names.count(column) > 1})
        if twice:
            self.close()
            raise InputError(f"{name}: the column {twice[0]!r} appears twice; rename one of them")
        # With an id column alone every field is kept.
        self._columns = list(rows.required) if rows.selects else names
        kinds = [file.schema_arrow.field(column).type for column in self._columns]
        self._plain = all(map(_is_plain, kinds))
        self._batches = self._read_batches()

    @property
    def exhausted(self) -> bool:
        """True once every row was read."""
        return self._number >= self._total

    @property
    def bytes_read(self) -> int:
        """The share of the file's bytes that the rows read so far make up."""
        size: int = self._marks["size"]
        return size * self._number // self._total if self._total else size

    def read(self, limit: int) -> list[Row | DeadLetter]:
        """Return the next rows; see :class:`~dspy_stream.stream.sources.base.Partition`."""
        while not self._batch and not self.exhausted:
            try:
                batch = next(self._batches)
            except StopIteration:
                raise InputError(
                    f"{self._name} holds fewer rows than its footer says: {self._number}"
                ) from None
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self._name} cannot be read after row {self._number}: {error}") from error
            self._batch = batch.to_pylist()
        taken, self._batch = self._batch[:limit], self._batch[limit:]
        build = self._rows.build if self._plain else self._rows.convert
        records = [build(fields, number) for number, fields in enumerate(taken, self._number)]
        self._number += len(records)
        return records

    def position(self) -> Position:
        """The number of the next row, and what the file looked like."""
        return {"number": self._number, **self._marks}

    def close(self) -> None:
        """Release the file."""
        self._file.close(force=True)

    def _read_batches(self) -> Iterator[pa.RecordBatch]:
        """Batches from the row group that holds the next row, cut so that it comes first."""
        before, group = 0, 0
        while group < self._file.num_row_groups:
            rows = self._file.metadata.row_group(group).num_rows
            if before + rows > self._number:
                break
            before += rows
            group += 1
        skip = self._number - before
        groups = list(range(group, self._file.num_row_groups))
        for batch in self._file.iter_batches(_BATCH, row_groups=groups, columns=self._columns):
            if skip < batch.num_rows:
                yield batch.slice(skip)
                skip = 0
            else:
                skip -= batch.num_rows


def _is_plain(kind: pa.DataType) -> bool:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind))
