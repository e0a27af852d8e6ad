"""Parquet: row groups, types, resuming at every row, and damaged files."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dspy_stream.errors import InputError, SourceChanged
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources import Partition, read


def everything(partition: Partition, limit: int = 7) -> list[Row | DeadLetter]:
    records = []
    while not partition.exhausted:
        records += partition.read(limit)
    partition.close()
    return records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    table = pa.table({"n": list(range(50)), "text": [f"t{n}" for n in range(50)], "x": [0.5] * 50})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=8)
    return tmp_path / "a.parquet"


def test_reads(path: Path) -> None:
    source = read(path, columns=["text", "n"])
    assert (source.partitions(), source.size()) == (["a.parquet"], 50)
    partition = source.open("a.parquet", None)
    rows = everything(partition)
    assert [list(row.fields.items()) for row in rows if isinstance(row, Row)] == [
        [("text", f"t{n}"), ("n", n)] for n in range(50)
    ]
    assert partition.bytes_read == source.bytes_total()


def test_resume_at_every_row(path: Path) -> None:
    source = read(path, id="n")
    whole = everything(source.open("a.parquet", None))
    assert [row.id for row in whole if isinstance(row, Row)] == [str(n) for n in range(50)]
    for done in range(51):
        first = source.open("a.parquet", None)
        for _ in range(done):
            first.read(1)
        position = json.loads(json.dumps(first.position()))
        first.close()
        assert everything(source.open("a.parquet", position)) == whole[done:]


def test_types(tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {
        "when": [dt.datetime(2026, 1, 2, 3, 4, 5), None],
        "day": [dt.date(2026, 1, 2), None],
        "money": [decimal.Decimal("1.10"), None],
        "bytes": [b"hi", None],
        "float": [float("nan"), 1.5],
        "list": [[1, 2], None],
        "struct": [{"a": dt.date(2026, 1, 2)}, None],
    }
    pq.write_table(pa.table(values), tmp_path / "a.parquet")
    first, second = everything(read(tmp_path / "a.parquet").open("a.parquet", None))
    assert isinstance(first, Row)
    assert dict(first.fields) == {
        "when": "2026-01-02T03:04:05",
        "day": "2026-01-02",
        "money": "1.10",
        "bytes": "aGk=",
        "float": None,
        "list": [1, 2],
        "struct": {"a": "2026-01-02"},
    }
    assert json.loads(first.raw_bytes()) == dict(first.fields)
    assert isinstance(second, Row)
    assert second["float"] == 1.5
    assert second.when is None


def test_infinity_is_one_bad_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, float("inf"), 2.0]}), tmp_path / "a.parquet")
    records = everything(read(tmp_path / "a.parquet").open("a.parquet", None))
    assert [type(r) for r in records] == [Row, DeadLetter, Row]


def test_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    source = read(tmp_path / "a.parquet")
    assert (everything(source.open("a.parquet", None)), source.size()) == ([], 0)


def test_a_missing_column(path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'txt'; did you mean 'text'.*it has: n, text, x"):
        read(path, columns=["txt"]).partitions()


def test_damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read(path).partitions()
    path.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read(path).partitions()
    broken = bytearray(data)
    broken[4:600] = b"\xff" * 596
    path.write_bytes(broken)
    partition = read(path).open("a.parquet", None)
    with pytest.raises(InputError, match="cannot be read after row 0"):
        everything(partition)
    partition.close()


def test_another_file(path: Path) -> None:
    source = read(path)
    first = source.open("a.parquet", None)
    first.read(5)
    position = first.position()
    first.close()
    pq.write_table(pa.table({"n": list(range(50, 100))}), path)
    with pytest.raises(SourceChanged, match="replaced or rewritten"):
        source.open("a.parquet", position)
