"""Rows from memory: every kind of container, conversion to JSON values, and resuming."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel

from dspy_stream.clock import FakeClock
from dspy_stream.errors import InputError, SourceChanged
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources import Source, from_iterable, read
from dspy_stream.stream.sources.frames import MemorySource
from dspy_stream.stream.sources.options import ReadOptions
from dspy_stream.stream.sources.values import plain


class Ticket(BaseModel):
    n: int
    day: dt.date = dt.date(2026, 1, 2)


@dataclasses.dataclass
class Record:
    n: int


class Named(NamedTuple):
    n: int


class Example:
    def __init__(self, n: int) -> None:
        self.n = n

    def toDict(self) -> dict[str, Any]:
        return {"n": self.n}


class HuggingFaceSet:
    """The part of datasets.Dataset that is used, under its module's name."""

    def __init__(self, rows: list[int]) -> None:
        self._rows = rows
        self.column_names = ["n"]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: slice) -> dict[str, list[int]]:
        return {"n": self._rows[key]}

    def __iter__(self) -> Iterator[dict[str, int]]:
        return iter([{"n": n} for n in self._rows])


class HuggingFaceStream:
    """The part of datasets.IterableDataset that is used."""

    def __init__(self, rows: list[int]) -> None:
        self._rows = rows
        self.skipped = 0

    def skip(self, n: int) -> HuggingFaceStream:
        self.skipped = n
        return HuggingFaceStream(self._rows[n:])

    def __iter__(self) -> Iterator[dict[str, int]]:
        return iter([{"n": n} for n in self._rows])


HuggingFaceSet.__module__ = "datasets.arrow_dataset"
HuggingFaceStream.__module__ = "datasets.iterable_dataset"

COUNT = 10
NUMBERS = list(range(COUNT))


class Again:
    """Can be iterated as often as asked."""

    def __iter__(self) -> Iterator[dict[str, int]]:
        return ({"n": n} for n in NUMBERS)


KINDS: dict[str, Callable[[], Any]] = {
    "list of mappings": lambda: [{"n": n} for n in NUMBERS],
    "tuple of models": lambda: tuple(Ticket(n=n) for n in NUMBERS),
    "dataclasses": lambda: [Record(n) for n in NUMBERS],
    "named tuples": lambda: [Named(n) for n in NUMBERS],
    "examples": lambda: [Example(n) for n in NUMBERS],
    "iterable": Again,
    "function": lambda: lambda: ({"n": n} for n in NUMBERS),
    "pandas": lambda: pd.DataFrame({"n": NUMBERS}),
    "polars": lambda: pl.DataFrame({"n": NUMBERS}),
    "arrow table": lambda: pa.table({"n": NUMBERS}),
    "arrow chunks": lambda: pa.concat_tables([pa.table({"n": NUMBERS[:3]}), pa.table({"n": NUMBERS[3:]})]),
    "hugging face": lambda: HuggingFaceSet(NUMBERS),
    "hugging face stream": lambda: HuggingFaceStream(NUMBERS),
}
ONCE: dict[str, Callable[[], Any]] = {
    "generator": lambda: ({"n": n} for n in NUMBERS),
    "arrow reader": lambda: pa.table({"n": NUMBERS}).to_reader(max_chunksize=4),
}


def everything(source: Source, position: Any = None) -> list[Row | DeadLetter]:
    partition = source.open("0", position)
    records = []
    while not partition.exhausted:
        records += partition.read(4)
    partition.close()
    return records


@pytest.mark.parametrize("kind", [*KINDS, *ONCE])
def test_reads(kind: str) -> None:
    source = read({**KINDS, **ONCE}[kind]())
    assert source.partitions() == ["0"]
    rows = everything(source)
    assert [row.n for row in rows if isinstance(row, Row)] == NUMBERS
    assert len({row.id for row in rows if isinstance(row, Row)}) == COUNT
    assert all(type(row.n) is int for row in rows if isinstance(row, Row))
    assert [row.origin.offset for row in rows] == NUMBERS


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_at_every_row(kind: str) -> None:
    source = read(KINDS[kind]())
    whole = everything(source)
    for done in range(COUNT + 1):
        partition = source.open("0", None)
        for _ in range(done):
            partition.read(1)
        assert everything(source, partition.position()) == whole[done:]
    if kind != "hugging face stream":  # which skips by itself, and does not say how far
        with pytest.raises(SourceChanged, match="10 rows now"):
            source.open("0", {"number": COUNT + 1})


@pytest.mark.parametrize("kind", ONCE)
def test_what_is_read_once_cannot_resume(kind: str) -> None:
    source = read(ONCE[kind]())
    partition = source.open("0", None)
    partition.read(3)
    with pytest.raises(InputError, match="only once, and row 3 comes next; pass a list, or the function"):
        source.open("0", partition.position())
    with pytest.raises(InputError, match="only once"):
        source.open("0", None)


def test_sizes() -> None:
    assert read([{"n": 1}]).size() == 1
    assert read(pd.DataFrame({"n": NUMBERS})).size() == COUNT
    assert read({"n": n} for n in NUMBERS).size() is None
    assert read([{"n": 1}]).bytes_total() is None


def test_a_slow_iterator_gives_what_it_has() -> None:
    clock = FakeClock()

    def slow() -> Iterator[dict[str, int]]:
        for n in itertools.count():
            clock.advance(0.008)
            yield {"n": n}

    partition = MemorySource(slow(), ReadOptions(), clock=clock).open("0", None)
    assert len(partition.read(100)) == 3
    assert len(partition.read(2)) == 2
    partition.close()


def test_an_iterator_that_raises_ends_the_flow_after_its_rows() -> None:
    def broken() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise OSError("gone")

    partition = read(broken()).open("0", None)
    assert len(partition.read(5)) == 1
    for _ in range(2):
        with pytest.raises(InputError, match="failed after row 1: OSError: gone"):
            partition.read(5)


class Colour(enum.Enum):
    RED = "red"


WHEN = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
CONVERSIONS: list[tuple[Any, Any]] = [
    (float("nan"), None),
    (np.float64("nan"), None),
    (np.float32(0.5), 0.5),
    (np.int64(7), 7),
    (np.bool_(True), True),
    (np.str_("x"), "x"),
    (np.datetime64("2026-01-02T03:04:05"), "2026-01-02T03:04:05"),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (pd.NA, None),
    (pd.NaT, None),
    (pd.Timestamp("2026-01-02 03:04:05"), "2026-01-02T03:04:05"),
    (pd.Timedelta(seconds=90), 90.0),
    (pd.Series([1, 2]), [1, 2]),
    (pl.Series([1, 2]), [1, 2]),
    (WHEN, "2026-01-02T03:04:05+00:00"),
    (dt.time(3, 4), "03:04:00"),
    (decimal.Decimal("1.10"), "1.10"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Path("a") / "b", "a/b"),
    (b"hi", "aGk="),
    (Colour.RED, "red"),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset({"b", "a"}), ["a", "b"]),
    ((1, (2, 3)), [1, [2, 3]]),
    ({1: {Colour.RED: WHEN}}, {"1": {"red": "2026-01-02T03:04:05+00:00"}}),
    (Ticket(n=1), {"n": 1, "day": "2026-01-02"}),
    ([Record(1)], [{"n": 1}]),
    (2**70, 2**70),
]


# A set's own order differs between the processes that share the tests, its name must not.
NAMES = ["a set" if isinstance(value, frozenset) else repr(value)[:30] for value, _ in CONVERSIONS]


@pytest.mark.parametrize(("value", "expected"), CONVERSIONS, ids=NAMES)
def test_values(value: Any, expected: Any) -> None:
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD: list[tuple[Any, str]] = [
    ({"a": object()}, "field 'a': a object has no JSON form"),
    ({"a": {"b": [lambda: 1]}}, "field 'a': a function has no JSON form"),
    ({"a": "\ud800"}, "field 'a'.*surrogates not allowed"),
    ({"a": ["x\udfff"]}, "surrogates not allowed"),
    ({"a": float("inf")}, "infinity has no JSON form"),
    ({"a": nest(5000)}, "nested beyond 200 levels"),
    (7, "a record must be a mapping, a model or a dataclass, not a int"),
    ([1, 2], "not a list"),
    (None, "not a NoneType"),
    ("text", "pass columns="),
]


@pytest.mark.parametrize(("record", "words"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_bad_records_are_refused_in_place(record: Any, words: str) -> None:
    first, letter, last = everything(read([{"a": 0}, record, {"a": 2}]))
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(letter, DeadLetter)
    assert letter.error["code"] == "bad_value"
    import re

    assert re.search(words, letter.error["message"], re.S)
    orjson.dumps(letter.to_json())


def test_missing_ids_and_columns_of_memory() -> None:
    row, unnamed = everything(from_iterable([{"k": 1, "a": "x"}, {"a": "y"}], id="k", columns=["a"]))
    assert isinstance(row, Row)
    assert (row.id, dict(row.fields)) == ("1", {"a": "x"})
    assert isinstance(unnamed, Row)
    assert (len(unnamed.id), dict(unnamed.fields)) == (16, {"a": "y"})


def test_strings_need_a_name() -> None:
    rows = everything(from_iterable(["a", "b"], columns=["text"]))
    assert [row.text for row in rows if isinstance(row, Row)] == ["a", "b"]


def test_pandas_missing_values_and_odd_columns() -> None:
    frame = pd.DataFrame(
        {"s": ["x", None], 7: [1.5, float("nan")], "i": pd.array([1, None], dtype="Int64")}, index=[5, 6]
    )
    rows = everything(read(frame))
    assert [dict(row.fields) for row in rows if isinstance(row, Row)] == [
        {"s": "x", "7": 1.5, "i": 1},
        {"s": None, "7": None, "i": None},
    ]
    with pytest.raises(InputError, match="'a' appears twice"):
        read(pd.DataFrame([[1, 2]], columns=["a", "a"])).partitions()


def test_a_frame_without_the_column() -> None:
    with pytest.raises(InputError, match="no column 'text'; did you mean 'txt'"):
        read(pl.DataFrame({"txt": ["a"]}), columns=["text"]).partitions()


async def numbers() -> Any:
    yield 1


OTHERS: list[tuple[Any, str]] = [
    ({"a": [1]}, "is one record"),
    (pl.LazyFrame({"a": [1]}), "pass its .collect"),
    (numbers(), "asynchronous"),
    (b"x", "bytes hold no rows"),
    (7, "a int holds no rows"),
    (None, "a NoneType holds no rows"),
    (Record, "a type holds no rows"),
]


@pytest.mark.parametrize(("data", "words"), OTHERS, ids=[str(n) for n in range(len(OTHERS))])
def test_others_are_refused_at_once(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(data)
