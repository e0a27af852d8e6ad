"""JSON lines: what is accepted, what becomes a dead letter, and resuming anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import InputError, SourceChanged
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources import Partition, read
from dspy_stream.stream.sources.base import MAX_RAW
from dspy_stream.stream.sources.lines import LineCutter, TooLong


def everything(partition: Partition, limit: int = 7) -> list[Row | DeadLetter]:
    records = []
    while not partition.exhausted:
        records += partition.read(limit)
    partition.close()
    return records


def load(folder: Path, data: bytes, **options: Any) -> list[Row | DeadLetter]:
    (folder / "a.jsonl").write_bytes(data)
    return everything(read(folder / "a.jsonl", **options).open("a.jsonl", None))


GOOD: list[tuple[str, bytes, list[dict[str, Any]]]] = [
    ("empty file", b"", []),
    ("only blank lines", b"\n \r\n\t\n", []),
    ("newline at the end", b'{"a":1}\n', [{"a": 1}]),
    ("no newline at the end", b'{"a":1}\n{"a":2}', [{"a": 1}, {"a": 2}]),
    ("CRLF", b'{"a":1}\r\n{"a":2}\r\n', [{"a": 1}, {"a": 2}]),
    ("byte order mark", b'\xef\xbb\xbf{"a":1}\n{"a":2}\n', [{"a": 1}, {"a": 2}]),
    ("byte order mark alone", b"\xef\xbb\xbf", []),
    ("blank between", b'{"a":1}\n\n\n{"a":2}\n', [{"a": 1}, {"a": 2}]),
    ("escaped NUL", b'{"a":"\\u0000"}\n', [{"a": "\0"}]),
    ("right-to-left mark and emoji", '{"a":"\u200f😀"}\n'.encode(), [{"a": "\u200f😀"}]),
    ("surrogate pair escaped", b'{"a":"\\ud83d\\ude00"}\n', [{"a": "😀"}]),
    (
        "a key in several objects",
        b'{"a":{"a":1,"b":[{"a":2},{"a":3}]}}\n',
        [{"a": {"a": 1, "b": [{"a": 2}, {"a": 3}]}}],
    ),
    ("a text like a key", b'{"a":"\\"a\\":1"}\n', [{"a": '"a":1'}]),
    ("spaces before colons", b'{"a" :{"a" : 1}}\n', [{"a": {"a": 1}}]),
    ("nested", b'{"a":{"b":[1,2]}}\n', [{"a": {"b": [1, 2]}}]),
    (
        "numbers beyond 64 bits",
        b'{"a":18446744073709551616,"b":[-9223372036854775809]}\n',
        [{"a": 18446744073709551616, "b": [-9223372036854775809]}],
    ),
]


@pytest.mark.parametrize(("data", "fields"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_accepted(tmp_path: Path, data: bytes, fields: list[dict[str, Any]]) -> None:
    assert [dict(row.fields) for row in load(tmp_path, data) if isinstance(row, Row)] == fields
    assert len(load(tmp_path, data)) == len(fields)


BAD: list[tuple[str, bytes, str, str]] = [
    ("torn", b'{"a": "half', "bad_json", "not JSON"),
    ("invalid UTF-8", b'{"a":"x\xff"}', "bad_utf8", "0xff at byte 7"),
    ("UTF-8 cut in a character", b'{"a":"\xf0\x9f\x98"}', "bad_utf8", "0xf0 at byte 6"),
    ("encoded surrogate", b'{"a":"\xed\xa0\x80"}', "bad_utf8", "0xed at byte 6"),
    ("lone surrogate", b'{"a":"\\ud800"}', "bad_json", "surrogate"),
    ("raw NUL", b'{"a":"\x00"}', "bad_json", "not JSON"),
    ("NaN", b'{"a":NaN}', "bad_json", "not JSON"),
    ("Infinity", b'{"a":-Infinity}', "bad_json", "not JSON"),
    ("out of range", b'{"a":1e999}', "bad_json", "not JSON"),
    ("5000 digits", b'{"a":' + b"9" * 5000 + b"}", "bad_json", "not JSON"),
    ("nested too deeply", b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "bad_json", "beyond 200 levels"),
    ("deep", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad_json", "not JSON"),
    ("garbage after", b'{"a":1} x', "bad_json", "not JSON"),
    ("a key twice", b'{"a":1,"a":2}', "bad_json", "the key 'a' is there twice"),
    ("a key twice with spaces", b'{"a" : 1, "a" : 2}', "bad_json", "the key 'a' is there twice"),
    ("a key twice within", b'{"a":[{"b":{"c":1,"c":1}}]}', "bad_json", "the key 'c' is there twice"),
    ("two objects", b'{"a":1}{"a":2}', "bad_json", "not JSON"),
    ("array", b"[1]", "not_an_object", "an array"),
    ("string", b'"a"', "not_an_object", "a string"),
    ("null", b"null", "not_an_object", "null"),
    ("number", b"7", "not_an_object", "a number"),
    ("boolean", b"true", "not_an_object", "a boolean"),
]


@pytest.mark.parametrize(("line", "code", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_refused_in_place_and_reading_goes_on(tmp_path: Path, line: bytes, code: str, words: str) -> None:
    before, letter, after = load(tmp_path, b'{"n":0}\n' + line + b'\n{"n":2}\n')
    assert isinstance(before, Row)
    assert isinstance(after, Row)
    assert (before.n, after.n) == (0, 2)
    assert isinstance(letter, DeadLetter)
    assert letter.error["code"] == code
    assert letter.error["type"] == "RecordError"
    assert words in letter.error["message"]
    assert "line 2" in letter.error["message"]
    assert (letter.raw, letter.stage, letter.origin.offset, letter.origin.line) == (line, "read", 1, 2)
    assert len({before.id, letter.row_id, after.id}) == 3
    assert DeadLetter.from_json(orjson.loads(orjson.dumps(letter.to_json()))) == letter


def test_a_torn_last_line_is_said_to_be_one(tmp_path: Path) -> None:
    records = load(tmp_path, b'{"n":0}\n{"n":')
    assert isinstance(records[1], DeadLetter)
    assert "the file ends inside this line" in records[1].error["message"]


def test_a_million_keys_are_one_row(tmp_path: Path) -> None:
    data = b"{" + b",".join(b'"k%d":1' % n for n in range(200_000)) + b"}\n"
    (row,) = load(tmp_path, data)
    assert isinstance(row, Row)
    assert len(row.fields) == 200_000


@pytest.mark.parametrize("newline", [b"\n", b""], ids=["inside", "last"])
def test_a_line_over_the_cap_is_dropped_in_pieces(tmp_path: Path, newline: bytes) -> None:
    size = 3_000_000
    records = load(
        tmp_path, b'{"n":0}\n"' + b"x" * (size - 1) + newline + b'{"n":2}\n' * bool(newline), max_line=500_000
    )
    letter = records[1]
    assert isinstance(letter, DeadLetter)
    assert letter.error["code"] == "too_long"
    assert f"has {size} bytes and the limit is 500000" in letter.error["message"]
    assert letter.raw == b'"' + b"x" * (MAX_RAW - 1)
    assert [row.n for row in records if isinstance(row, Row)] == ([0, 2] if newline else [0])


def test_memory_stays_below_the_line(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(b"x" * 1_000_000)
        file.write(b'\n{"n":1}\n')
    tracemalloc.start()
    records = everything(read(path, max_line=1_000_000).open("a.jsonl", None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(records[1], Row)
    assert peak < 4_000_000


def test_utf16_stops_the_flow(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="UTF-16"):
        load(tmp_path, '{"a":1}\n'.encode("utf-16"))


def test_ids(tmp_path: Path) -> None:
    data = b'{"k":"a"}\n{"k":7}\n{}\n{"k":null}\n{"k":""}\n{"k":1.5}\n{"k":true}\n{"k":"%s"}\n' % (b"x" * 600)
    records = load(tmp_path, data, id="k")
    assert [r.id for r in records if isinstance(r, Row)][:2] == ["a", "7"]
    unnamed = [r.id for r in records if isinstance(r, Row)][2:]
    assert [len(row_id) for row_id in unnamed] == [16] * 3, "a record without an id is named by its place"
    letters = [r for r in records if isinstance(r, DeadLetter)]
    assert [letter.error["code"] for letter in letters] == ["bad_id"] * 3
    assert "is a float" in letters[0].error["message"]
    assert letters[0].raw == b'{"k":1.5}'


def test_derived_ids_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    ids = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        ids.append([row.id for row in load(tmp_path / folder, b'{"a":1}\n{"a":1}\n') if isinstance(row, Row)])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids[0])
    other = load(tmp_path, b'{"a":1}\n', name="other")
    assert isinstance(other[0], Row)
    assert other[0].id not in ids[0]


def test_columns_choose_and_are_required(tmp_path: Path) -> None:
    row, letter = load(tmp_path, b'{"a":1,"text":"x","b":2}\n{"a":1,"txt":"x"}\n', columns=["text", "a"])
    assert isinstance(row, Row)
    assert list(row.fields.items()) == [("text", "x"), ("a", 1)]
    assert row.raw == b'{"a":1,"text":"x","b":2}'
    assert isinstance(letter, DeadLetter)
    assert letter.error["code"] == "missing_column"
    assert "did you mean 'txt'?" in letter.error["message"]


MESSY = (
    b'\xef\xbb\xbf{"n":0}\r\n\n{"n":1}\n[]\n{"n":"'
    + b"y" * 100
    + b'"}\n\xff\n{"n":"\xf0\x9f\x98\x80"}\n\n{"n":3}'
)


@pytest.mark.parametrize("tail", [b"", b"\n", b"\n\n"])
def test_resume_at_every_record(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(MESSY + tail)
    source = read(path, max_line=60)
    whole = everything(source.open("a.jsonl", None))
    assert len(whole) == 7
    for done in range(len(whole) + 1):
        first = source.open("a.jsonl", None)
        for _ in range(done):
            assert len(first.read(1)) == 1
        position = json.loads(json.dumps(first.position()))
        first.close()
        assert everything(source.open("a.jsonl", position)) == whole[done:]


@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=5), st.integers(-(2**53), 2**53) | st.text(max_size=20)), max_size=12
    ),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\n\n"]), min_size=12, max_size=12),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_lines_survive_any_slicing(rows: list[dict[str, Any]], ends: list[str], cuts: list[int]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    data = "".join(line + end for line, end in zip(lines, ends, strict=False)).encode()
    cutter, found, at, turn = LineCutter(30), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += cutter.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    found += cutter.finish()
    expected = data.split(b"\n")[:-1] if data else []
    assert [len(line) for line in found] == [len(line) for line in expected]
    assert [f for f in found if isinstance(f, bytes)] == [e for e in expected if len(e) <= 30]
    assert all(f.head == e for f, e in zip(found, expected, strict=True) if isinstance(f, TooLong))


def test_growth_before_the_end_is_read_and_after_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n":0}\n')
    partition = read(path).open("a.jsonl", None)
    assert len(partition.read(1)) == 1
    with path.open("ab") as file:
        file.write(b'{"n":1}\n')
    assert len(partition.read(5)) == 1
    assert partition.exhausted
    with path.open("ab") as file:
        file.write(b'{"n":2}\n')
    assert partition.read(5) == []
    later = everything(read(path).open("a.jsonl", partition.position()))
    assert [row.n for row in later if isinstance(row, Row)] == [2]


def test_a_last_line_without_newline_may_get_one_but_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n":0}\n{"n":1}')
    source = read(path)
    partition = source.open("a.jsonl", None)
    everything(partition)
    again = source.open("a.jsonl", None)
    while not again.exhausted:
        again.read(9)
    position = again.position()
    assert everything(source.open("a.jsonl", position)) == []
    path.write_bytes(b'{"n":0}\n{"n":1}\n{"n":2}\n')
    (row,) = everything(source.open("a.jsonl", position))
    assert isinstance(row, Row)
    assert (row.n, row.origin.offset, row.origin.line) == (2, 2, 3)
    path.write_bytes(b'{"n":0}\n{"n":1}5}\n')
    with pytest.raises(SourceChanged, match="line 2, which ended the file, has grown"):
        everything(source.open("a.jsonl", position))


def long_file(path: Path) -> None:
    path.write_bytes(b"".join(b'{"n":%d}\n' % n for n in range(60_000)))


def test_shrunk_while_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long_file(path)
    partition = read(path).open("a.jsonl", None)
    assert len(partition.read(10)) == 10
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(SourceChanged, match="100 bytes now"):
        everything(partition, 1000)


@pytest.mark.parametrize("how", ["rename", "rewrite", "remove"])
def test_replaced_while_read(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.jsonl"
    long_file(path)
    partition = read(path).open("a.jsonl", None)
    assert len(partition.read(10)) == 10
    if how == "remove":
        path.unlink()
    elif how == "rewrite":
        path.write_bytes(b'{"other":1}\n' * 60_000)
    else:
        (tmp_path / "b").write_bytes(b'{"other":1}\n' * 60_000)
        (tmp_path / "b").rename(path)
    with pytest.raises(SourceChanged, match="start a fresh run"):
        everything(partition, 1000)


def test_a_copy_may_take_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long_file(path)
    partition = read(path).open("a.jsonl", None)
    partition.read(10)
    (tmp_path / "b").write_bytes(path.read_bytes())
    (tmp_path / "b").rename(path)
    assert len(everything(partition, 5000)) == 59_990


def test_resume_on_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"n":%d,"pad":"%s"}\n' % (n, b"x" * 50) for n in range(100)]
    path.write_bytes(b"".join(lines))
    partition = read(path).open("a.jsonl", None)
    partition.read(60)
    position = partition.position()
    path.write_bytes(b"".join(lines[:40]))
    with pytest.raises(SourceChanged, match="bytes now"):
        read(path).open("a.jsonl", position)
    path.write_bytes(b'{"m":0}\n' + b"".join(lines))
    with pytest.raises(SourceChanged, match="first bytes"):
        read(path).open("a.jsonl", position)
    path.write_bytes(b"".join(lines[:55]) + b"".join(reversed(lines[55:])))
    with pytest.raises(SourceChanged, match="bytes before offset"):
        read(path).open("a.jsonl", position)
    path.write_bytes(b"".join(lines) + b'{"n":100}\n')
    assert len(everything(read(path).open("a.jsonl", position))) == 41


def test_progress(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n":0}\n' * 10)
    source = read(path)
    partition = source.open("a.jsonl", None)
    everything(partition)
    assert partition.bytes_read == source.bytes_total() == 80
    assert source.size() is None
