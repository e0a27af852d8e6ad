"""Compressed text: members, resuming, and what a cut or damaged file gives."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from dspy_stream.errors import InputError, SourceChanged
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources import Partition, read

LINES = [b'{"n":%d,"text":"%s"}\n' % (n, bytes([97 + n % 26]) * (n % 40)) for n in range(3000)]


def everything(partition: Partition, limit: int = 500) -> list[Row | DeadLetter]:
    records = []
    while not partition.exhausted:
        records += partition.read(limit)
    return records


def numbers(records: list[Row | DeadLetter]) -> list[int]:
    return [record.n for record in records if isinstance(record, Row)]


@pytest.mark.parametrize("members", [1, 7])
@pytest.mark.parametrize("padding", [b"", b"\0" * 512])
def test_members_and_padding(tmp_path: Path, members: int, padding: bytes) -> None:
    step = len(LINES) // members + 1
    parts = [gzip.compress(b"".join(LINES[at : at + step])) for at in range(0, len(LINES), step)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(parts) + padding)
    source = read(path)
    assert source.partitions() == ["a.jsonl.gz"]
    partition = source.open("a.jsonl.gz", None)
    assert numbers(everything(partition)) == list(range(3000))
    assert partition.bytes_read == source.bytes_total()


def test_resume(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(LINES[:2000])) + gzip.compress(b"".join(LINES[2000:])))
    source = read(path)
    for done in (0, 1, 1999, 2000, 2500, 3000):
        first = source.open("a.jsonl.gz", None)
        count = 0
        while count < done:
            count += len(first.read(done - count))
        position = first.position()
        assert numbers(everything(source.open("a.jsonl.gz", position))) == list(range(done, 3000))


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"n,t\n" + b"".join(b'%d,"x\ny"\n' % n for n in range(100))))
    source = read(path)
    first = source.open("a.csv.gz", None)
    first.read(60)
    rest = everything(source.open("a.csv.gz", first.position()))
    assert [row.n for row in rest if isinstance(row, Row)] == [str(n) for n in range(60, 100)]


def test_truncated_gives_its_whole_rows_and_then_stops(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b"".join(LINES))
    path.write_bytes(whole[: len(whole) // 2])
    partition = read(path).open("a.jsonl.gz", None)
    records: list[Row | DeadLetter] = []

    def read_on() -> None:
        while True:
            records.extend(partition.read(256))

    with pytest.raises(InputError, match=r"cut short.*goes on from there"):
        read_on()
    assert all(isinstance(record, Row) for record in records)
    count = len(records)
    assert 500 < count < 3000
    assert numbers(records) == list(range(count))
    with pytest.raises(InputError, match="cut short"):
        partition.read(1)
    position = partition.position()
    path.write_bytes(whole)
    assert numbers(everything(read(path).open("a.jsonl.gz", position))) == list(range(count, 3000))


@pytest.mark.parametrize("cut", [0, 5, 30])
def test_truncated_at_the_start(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(LINES))[:cut])
    with pytest.raises(InputError, match="cut short"):
        everything(read(path).open("a.jsonl.gz", None))


def test_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = bytearray(gzip.compress(b"".join(LINES)))
    data[-8] ^= 1  # the checksum
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        everything(read(path).open("a.jsonl.gz", None))
    path.write_bytes(gzip.compress(LINES[0]) + b"garbage")
    with pytest.raises(InputError, match="damaged"):
        everything(read(path).open("a.jsonl.gz", None))


def test_names_and_content_that_disagree(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"n":0}\n')
    with pytest.raises(InputError, match="not gzip data"):
        read(tmp_path / "a.jsonl.gz").partitions()
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(b'{"n":0}\n'))
    assert numbers(everything(read(tmp_path / "b.jsonl").open("b.jsonl", None))) == [0]


def test_resume_on_shorter_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES[0]) + gzip.compress(b"".join(LINES[1:])))
    partition = read(path).open("a.jsonl.gz", None)
    partition.read(100)
    position = partition.position()
    position["head"] = [10, position["head"][1]]
    with pytest.raises(SourceChanged, match="first bytes"):
        read(path).open("a.jsonl.gz", position)
    small = tmp_path / "small"
    small.mkdir()
    (small / "a.jsonl.gz").write_bytes(gzip.compress(LINES[0]))
    fresh = read(small / "a.jsonl.gz").open("a.jsonl.gz", None)
    start = fresh.position()
    start["offset"], start["number"] = 10_000, 100
    with pytest.raises(SourceChanged, match=r"ends .* before the position"):
        everything(read(small / "a.jsonl.gz").open("a.jsonl.gz", start))


def test_a_bomb_is_read_in_blocks(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * 60_000_000 + b'\n{"n":1}\n'))
    tracemalloc.start()
    letter, row = everything(read(path, max_line=1_000_000).open("a.jsonl.gz", None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(letter, DeadLetter)
    assert isinstance(row, Row)
    assert peak < 5_000_000
