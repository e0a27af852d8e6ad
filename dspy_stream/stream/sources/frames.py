"""Rows that are already in memory or behind an iterator.

Lists, tuples and any iterable of mappings, dataclasses, pydantic models and examples; data frames
of pandas and polars, Arrow tables and readers, data sets of Hugging Face. They are recognised by
their shape: this file imports none of these libraries.

What can be indexed resumes at a row number. What can be iterated again is skipped forward. What
can be iterated only once, such as a generator, cannot resume: pass the function that makes it
instead, and it is called again. Nothing checks that the data is still the same, save its length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from dspy_stream.clock import Clock, SystemClock
from dspy_stream.errors import InputError
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources.base import Partition, Position
from dspy_stream.stream.sources.fingerprint import changed
from dspy_stream.stream.sources.options import ReadOptions
from dspy_stream.stream.sources.rows import RowBuilder, missing_message

__all__ = ["MemorySource"]

_PATIENCE = 0.02  # seconds that one read waits for more rows of a slow iterator once it has one


class MemorySource:
    """Python data as a source with one partition, named ``0``.

    Values become JSON-able as :mod:`~dspy_stream.stream.sources.values` says; the index of a data
    frame is left out. A list of plain strings needs ``columns`` with one name, which each string
    is then a record of.

    Raises:
        InputError: the data is nothing that holds rows.

    >>> source = MemorySource([{"text": "hi"}, {"text": "ho"}], ReadOptions())
    >>> [row.text for row in source.open("0", None).read(10)]
    ['hi', 'ho']
    """

    def __init__(
        self, data: Any, options: ReadOptions, *, name: str | None = None, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._table = _table_of(data)
        if self._table is None or isinstance(data, bytes | bytearray):
            _refuse_others(data)
        self._data = data
        self._options = options
        self._once = not callable(data) and self._table is None and iter(data) is data
        self._used = False
        self.name = name if name is not None else "memory"

    def partitions(self) -> list[str]:
        """The one partition.

        Raises:
            InputError: a data frame lacks a column, or has one twice.
        """
        names = self._table.columns if self._table is not None else None
        if names is not None:
            missing = [c for c in self._options.rows(self.name, "0").required if c not in names]
            if missing:
                raise InputError(missing_message(missing[0], names, f"{self.name} has no column"))
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise InputError(f"{self.name}: the column {twice[0]!r} appears twice; rename one of them")
        return ["0"]

    def open(self, partition: str, position: Position | None) -> Partition:
        """Open the data; see :class:`~dspy_stream.stream.sources.base.Source`."""
        number = position["number"] if position else 0
        rows = self._options.rows(self.name, partition)
        wrap = self._options.columns[0] if self._options.columns and len(self._options.columns) == 1 else None
        if self._table is not None:
            if self._table.size < number:
                raise changed(self.name, f"it has {self._table.size} rows now and {number} had been read")
            return _TablePartition(self._table, rows, number, wrap)
        if self._once and (number or self._used):
            raise InputError(
                f"{self.name} is an iterator that can be read only once, and row {number} comes next; "
                "pass a list, or the function that makes the iterator"
            )
        self._used = True
        records = _iterate(self._data, number, self.name)
        return _IteratorPartition(records, rows, number, wrap, self._clock)

    def size(self) -> int | None:
        """Rows, where the data has a length."""
        if self._table is not None:
            return self._table.size
        return len(self._data) if hasattr(self._data, "__len__") else None

    def bytes_total(self) -> int | None:
        """Unknown."""
        return None

    def describe(self) -> dict[str, Any]:
        """Name, type of the data, and settings."""
        return {
            "kind": "memory",
            "name": self.name,
            "type": type(self._data).__name__,
            **self._options.to_json(),
        }


class _Table(Protocol):
    """Rows that can be reached by number."""

    @property
    def size(self) -> int: ...

    @property
    def columns(self) -> list[str] | None: ...

    def slice(self, start: int, stop: int) -> Sequence[Any]: ...


class _Sequence:
    def __init__(self, data: Sequence[Any]) -> None:
        self._data = data
        self.columns: list[str] | None = None

    @property
    def size(self) -> int:
        return len(self._data)

    def slice(self, start: int, stop: int) -> Sequence[Any]:
        return self._data[start:stop]


class _Frame:
    """A data frame, read through the one method in which the libraries differ."""

    def __init__(self, size: int, columns: list[Any], cut: Callable[[int, int], Sequence[Any]]) -> None:
        self.size = size
        self.columns: list[str] | None = [str(column) for column in columns]
        self.slice = cut


def _table_of(data: Any) -> _Table | None:
    """The data as a table, where its rows can be reached by number."""
    library = _library(data)
    if library == "pandas" and hasattr(data, "iloc") and hasattr(data, "columns"):
        return _Frame(len(data), list(data.columns), lambda start, stop: _pandas_rows(data, start, stop))
    if library == "polars" and hasattr(data, "to_dicts"):
        return _Frame(data.height, data.columns, lambda start, stop: data[start:stop].to_dicts())
    if library == "pyarrow" and hasattr(data, "to_pylist") and hasattr(data, "column_names"):
        cut = data.slice
        return _Frame(
            data.num_rows, data.column_names, lambda start, stop: cut(start, stop - start).to_pylist()
        )
    if library == "datasets" and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _Frame(len(data), data.column_names, lambda start, stop: _by_column(data[start:stop]))
    return _Sequence(data) if isinstance(data, Sequence) else None


def _library(data: Any) -> str:
    """The package that defined the type, or a base of it."""
    for base in type(data).__mro__:
        package = base.__module__.partition(".")[0]
        if package in {"pandas", "polars", "pyarrow", "datasets"}:
            return package
    return ""


def _pandas_rows(frame: Any, start: int, stop: int) -> list[dict[str, Any]]:
    part = frame.iloc[start:stop]
    columns = [part.iloc[:, index].tolist() for index in range(len(frame.columns))]
    names = [str(name) for name in frame.columns]
    if not columns:
        return [{} for _ in range(len(part))]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _by_column(part: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(part, values, strict=True)) for values in zip(*part.values(), strict=True)]


def _refuse_others(data: Any) -> None:
    kind = type(data).__name__
    if _library(data) == "polars" and hasattr(data, "collect"):
        raise InputError(f"a polars {kind} holds no rows yet; pass its .collect()")
    if isinstance(data, Mapping):
        raise InputError(f"a {kind} is one record, or several named sets; pass a list of records, or one set")
    if hasattr(data, "__aiter__"):
        raise InputError(f"a {kind} is asynchronous; pass something that plain `for` can read")
    if isinstance(data, bytes | bytearray):
        raise InputError("bytes hold no rows; pass a path, or a list of records")
    if isinstance(data, type) or not (hasattr(data, "__iter__") or callable(data)):
        raise InputError(f"a {kind} holds no rows; pass a path, a list of records or a data frame")


def _iterate(data: Any, skip: int, name: str) -> Iterator[Any]:
    """The records from number ``skip`` on."""
    data = data() if callable(data) and not hasattr(data, "__iter__") else data
    if skip and _library(data) == "datasets" and callable(getattr(data, "skip", None)):
        return iter(data.skip(skip))
    records = _flat(data)
    done = sum(1 for _ in itertools.islice(records, skip))
    if done < skip:
        raise changed(name, f"it has {done} rows now and {skip} had been read")
    return records


def _flat(data: Any) -> Iterator[Any]:
    """Records; those of each batch, where the data is a reader of Arrow batches."""
    if _library(data) == "pyarrow":
        return (record for batch in data for record in batch.to_pylist())
    return iter(data)


class _TablePartition:
    def __init__(self, table: _Table, rows: RowBuilder, number: int, wrap: str | None) -> None:
        self._table = table
        self._rows = rows
        self._number = number
        self._wrap = wrap
        self.bytes_read = 0

    @property
    def exhausted(self) -> bool:
        return self._number >= self._table.size

    def read(self, limit: int) -> list[Row | DeadLetter]:
        stop = min(self._number + limit, self._table.size)
        found = self._table.slice(self._number, stop)
        records = [_record(self._rows, value, i, self._wrap) for i, value in enumerate(found, self._number)]
        self._number += len(records)
        return records

    def position(self) -> Position:
        return {"number": self._number}

    def close(self) -> None:
        """Nothing to release."""


class _IteratorPartition:
    def __init__(
        self, records: Iterator[Any], rows: RowBuilder, number: int, wrap: str | None, clock: Clock
    ) -> None:
        self._records = records
        self._now = clock.monotonic
        self._rows = rows
        self._number = number
        self._wrap = wrap
        self._fault: InputError | None = None
        self.exhausted = False
        self.bytes_read = 0

    def read(self, limit: int) -> list[Row | DeadLetter]:
        records: list[Row | DeadLetter] = []
        if self._fault is not None:
            raise self._fault
        until = self._now() + _PATIENCE
        try:
            while len(records) < limit and not (records and self._now() > until):
                value = next(self._records)
                records.append(_record(self._rows, value, self._number, self._wrap))
                self._number += 1
        except StopIteration:
            self.exhausted = True
        except Exception as error:  # the user's iterator may raise anything
            self._fault = InputError(
                f"{self._rows.name} failed after row {self._number}: {type(error).__name__}: {error}"
            )
            self._fault.__cause__ = error
            if not records:
                raise self._fault from error
        return records

    def position(self) -> Position:
        return {"number": self._number}

    def close(self) -> None:
        close = getattr(self._records, "close", None)
        if callable(close):
            close()


def _record(rows: RowBuilder, value: Any, number: int, wrap: str | None) -> Row | DeadLetter:
    if isinstance(value, str):
        if wrap is None:
            message = "a plain string is no record; pass columns=['text'] to name what the strings are"
            return rows.refuse(
                "bad_value", message, number=number, line=None, raw=value.encode("utf-8", "backslashreplace")
            )
        value = {wrap: value}
    return rows.convert(value, number)
