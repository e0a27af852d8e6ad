"""CSV and TSV: framing, bad records, headers, and resuming anywhere."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.errors import InputError
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources import Partition, read


def everything(partition: Partition, limit: int = 3) -> list[Row | DeadLetter]:
    records = []
    while not partition.exhausted:
        records += partition.read(limit)
    partition.close()
    return records


def load(folder: Path, data: bytes, name: str = "a.csv", **options: Any) -> list[Row | DeadLetter]:
    (folder / name).write_bytes(data)
    return everything(read(folder / name, **options).open(name, None))


def values(records: list[Row | DeadLetter]) -> list[list[Any]]:
    return [list(r.fields.values()) if isinstance(r, Row) else [r.error["code"]] for r in records]


GOOD: list[tuple[str, bytes, list[list[str]]]] = [
    ("header alone", b"a,b\n", []),
    ("plain", b"a,b\n1,2\n3,4\n", [["1", "2"], ["3", "4"]]),
    ("no newline at the end", b"a,b\n1,2", [["1", "2"]]),
    ("CRLF", b"a,b\r\n1,2\r\n", [["1", "2"]]),
    ("byte order mark", b"\xef\xbb\xbfa,b\n1,2\n", [["1", "2"]]),
    ("byte order mark before a quote", b'\xef\xbb\xbf"a",b\n1,2\n', [["1", "2"]]),
    ("blank lines", b"\na,b\n\n1,2\n\r\n3,4\n\n", [["1", "2"], ["3", "4"]]),
    ("quoted newlines", b'a,b\n"1\n2\r\n3",4\n5,6\n', [["1\n2\r\n3", "4"], ["5", "6"]]),
    ("quoted quotes and commas", b'a,b\n"x ""y"", z",2\n', [['x "y", z', "2"]]),
    ("empty cells", b'a,b\n,\n"",""\n', [["", ""], ["", ""]]),
    ("a quote inside a plain field", b'a,b\n5" disk,2\n', [['5" disk', "2"]]),
    ("spaces are kept", b"a,b\n 1 , 2\n", [[" 1 ", " 2"]]),
    ("non-ASCII", "a,b\nä,😀\n".encode(), [["ä", "😀"]]),
]


@pytest.mark.parametrize(("data", "rows"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_accepted(tmp_path: Path, data: bytes, rows: list[list[str]]) -> None:
    records = load(tmp_path, data)
    assert values(records) == rows
    assert all(list(r.fields) == ["a", "b"] and r.raw is None for r in records if isinstance(r, Row))


BAD: list[tuple[str, bytes, str, str, bytes]] = [
    ("too few columns", b"only", "bad_columns", "1 columns where the header has 2", b"only"),
    ("too many columns", b"1,2,3", "bad_columns", "3 columns where the header has 2", b"1,2,3"),
    ("too many, over two lines", b'1,"2\n3",4', "bad_columns", "3 columns", b'1,"2\n3",4'),
    ("invalid UTF-8", b"x\xff,2", "bad_utf8", "0xff at byte 1 of the record", b"x\xff,2"),
    ("invalid UTF-8 below", b'"x\n\xfe",2', "bad_utf8", "0xfe at byte 3 of the record", b'"x\n\xfe",2'),
    ("NUL", b"x\0,2", "bad_csv", "NUL", b"x\0,2"),
    ("text after a quote", b'"x"y,2', "bad_csv", "not CSV", b'"x"y,2'),
]


@pytest.mark.parametrize(
    ("line", "code", "words", "raw"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_refused_in_place(tmp_path: Path, line: bytes, code: str, words: str, raw: bytes) -> None:
    before, letter, after = load(tmp_path, b"a,b\n0,0\n" + line + b"\n9,9\n")
    assert values([before, after]) == [["0", "0"], ["9", "9"]]
    assert isinstance(letter, DeadLetter)
    assert letter.error["code"] == code
    assert words in letter.error["message"]
    assert (letter.raw, letter.origin.offset, letter.origin.line) == (raw, 1, 3)


def test_a_quote_never_closed_costs_one_line(tmp_path: Path) -> None:
    rows = b"".join(b"%d,ok\n" % n for n in range(2000))
    records = load(tmp_path, b'a,b\n0,"open\n' + rows)
    assert isinstance(records[0], DeadLetter)
    assert "never closed" in records[0].error["message"]
    assert records[0].raw == b'0,"open'
    assert values(records[1:]) == [[str(n), "ok"] for n in range(2000)]


def test_a_quote_not_closed_within_the_cap_costs_one_line(tmp_path: Path) -> None:
    rows = b"".join(b"%d,ok\n" % n for n in range(2000))
    records = load(tmp_path, b'a,b\n0,"open\n' + rows + b'x,"fine"\n', max_line=1000)
    assert isinstance(records[0], DeadLetter)
    assert "not closed within 1000 bytes" in records[0].error["message"]
    assert values(records[1:]) == [[str(n), "ok"] for n in range(2000)] + [["x", "fine"]]


def test_a_quote_closed_by_the_next_one_costs_one_line(tmp_path: Path) -> None:
    records = load(tmp_path, b'a,b\n0,"open\n1,"fine"\n2,ok\n')
    assert values(records) == [["bad_csv"], ["1", "fine"], ["2", "ok"]]
    assert isinstance(records[0], DeadLetter)
    assert "closed wrongly 1 lines below" in records[0].error["message"]


def test_a_line_over_the_cap(tmp_path: Path) -> None:
    records = load(tmp_path, b"a,b\n0,0\n" + b"x" * 5000 + b"\n1,1\n", max_line=1000)
    assert values(records) == [["0", "0"], ["too_long"], ["1", "1"]]


def test_a_field_beyond_the_csv_modules_own_limit(tmp_path: Path) -> None:
    (row,) = load(tmp_path, b'a,b\n"' + b"x" * 300_000 + b'",2\n')
    assert isinstance(row, Row)
    assert len(row.a) == 300_000


HEADERS = [
    ("empty", b"", "is empty"),
    ("blank", b"\n\n", "is empty"),
    ("twice", b"a,b,a\n1,2,3\n", "column 'a' appears twice"),
    ("not UTF-8", b"a,\xff\n", "not UTF-8"),
    ("open quote", b'a,"b\n1,2\n', "cannot be read"),
]


@pytest.mark.parametrize(("data", "words"), [case[1:] for case in HEADERS], ids=[c[0] for c in HEADERS])
def test_headers_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InputError, match=words):
        read(tmp_path / "a.csv").partitions()


def test_a_missing_column_is_found_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,txt,label\n1,2,3\n")
    with pytest.raises(InputError, match=r"no column 'text'; did you mean 'txt'.*it has: id, txt, label"):
        read(tmp_path / "a.csv", columns=["text"]).partitions()
    with pytest.raises(InputError, match="no column 'key'"):
        read(tmp_path / "a.csv", id="key").partitions()


def test_semicolons_are_suspected(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id;text\n1;2\n")
    with pytest.raises(InputError, match="set delimiter"):
        read(tmp_path / "a.csv", columns=["text"]).partitions()
    (row,) = everything(read(tmp_path / "a.csv", columns=["text"], delimiter=";").open("a.csv", None))
    assert isinstance(row, Row)
    assert dict(row.fields) == {"text": "2"}


def test_tsv_and_ids(tmp_path: Path) -> None:
    records = load(tmp_path, b"k\tb\nx\t1\n\t2\n", "a.tsv", id="k")
    assert isinstance(records[0], Row)
    assert (records[0].id, records[0].b) == ("x", "1")
    assert isinstance(records[1], Row), "a record without an id is named by its place"
    assert (len(records[1].id), records[1].b) == (16, "2")


MESSY = b'\xef\xbb\xbfa,b\r\n1,"two\nlines"\r\n\r\nbad\n"x"y,1\n0,"open\n3,"q ""z"""\n\xff,1\n5,6'


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r\n\r\n"])
def test_resume_at_every_record(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(MESSY + tail)
    source = read(path)
    whole = everything(source.open("a.csv", None))
    assert values(whole) == [
        ["1", "two\nlines"],
        ["bad_columns"],
        ["bad_csv"],
        ["bad_csv"],
        ["3", 'q "z"'],
        ["bad_utf8"],
        ["5", "6"],
    ]
    for done in range(len(whole) + 1):
        first = source.open("a.csv", None)
        for _ in range(done):
            assert len(first.read(1)) == 1
        position = json.loads(json.dumps(first.position()))
        first.close()
        assert everything(source.open("a.csv", position)) == whole[done:]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(max_examples=60)
@given(
    rows=st.lists(st.lists(cells, min_size=3, max_size=3), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    cap=st.sampled_from([300, 10_000]),
)
def test_agrees_with_the_csv_module(tmp_path: Path, rows: list[list[str]], end: str, cap: int) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    assert values(load(tmp_path, text.getvalue().encode(), max_line=cap)) == rows


@settings(max_examples=150)
@given(body=st.lists(st.sampled_from([b'"', b",", b"\n", b"\r\n", b"x", b"\xff", b"\0", b"yy"]), max_size=40))
def test_any_bytes_are_accounted_for(tmp_path: Path, body: list[bytes]) -> None:
    data = b"".join(body)
    (tmp_path / "a.csv").write_bytes(b"a,b\n" + data)
    source = read(tmp_path / "a.csv", max_line=25)
    partition = source.open("a.csv", None)
    whole, positions = [], [partition.position()]
    while not partition.exhausted:
        for record in partition.read(1):
            whole.append(record)
            positions.append(partition.position())
    assert partition.position()["offset"] == len(data) + 4
    assert [r.origin.offset for r in whole] == list(range(len(whole)))
    for done, position in enumerate(positions):
        assert everything(source.open("a.csv", position)) == whole[done:]
