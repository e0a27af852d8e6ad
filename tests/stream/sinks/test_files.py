"""File sinks: round trips, cutting back, refusals, and disks that fail."""

from __future__ import annotations

import contextlib
import errno
import gc
import gzip
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.errors import ConfigurationError, OutputError
from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.stream.sinks import write
from dspy_stream.stream.sources import read

AS_ROOT = os.geteuid() == 0
NAMES = ["o.jsonl", "o.csv", "o.jsonl.gz", "o.csv.gz"]


def row(n: int, /, **fields: Any) -> Row:
    return Row(f"id{n}", fields or {"n": n}, Origin("m", "0", n))


def rows_in(path: Path) -> list[Row | DeadLetter]:
    partition = read(path, id="row_id").open(path.name, None)
    records = []
    while not partition.exhausted:
        records += partition.read(100)
    partition.close()
    return records


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def test_jsonl_puts_the_id_first(tmp_path: Path) -> None:
    with_fields = row(1, text="ä", tags={"b", "a"}, none=None, x=float("nan"))
    out = write(tmp_path / "o.jsonl").open(None)
    out.write([with_fields])
    assert out.flush() == {"offset": (tmp_path / "o.jsonl").stat().st_size}
    out.close()
    assert (tmp_path / "o.jsonl").read_text() == (
        '{"row_id":"id1","text":"ä","tags":["a","b"],"none":null,"x":null}\n'
    )


def test_columns_and_the_name_of_the_id(tmp_path: Path) -> None:
    for name, expected in {
        "o.jsonl": '{"key":"id1","b":2,"a":1}\n{"key":"id2","b":null,"a":3}\n',
        "o.csv": "key,b,a\nid1,2,1\nid2,,3\n",
        "o.tsv": "key\tb\ta\nid1\t2\t1\nid2\t\t3\n",
    }.items():
        out = write(tmp_path / name, columns=["b", "a", "key"], row_id="key").open(None)
        out.write([row(1, a=1, b=2, c=3), row(2, a=3)])
        out.close()
        assert (tmp_path / name).read_text() == expected


def test_without_an_id(tmp_path: Path) -> None:
    letter = DeadLetter(
        "r", Origin("s", "p", 3, 4), b"\xff", "read", {"code": "c", "type": "t", "message": "m"}
    )
    out = write(tmp_path / "dead.jsonl", row_id=None).open(None)
    out.write([Row(letter.row_id, letter.to_json(), letter.origin)])
    out.close()
    assert DeadLetter.from_json(orjson.loads((tmp_path / "dead.jsonl").read_bytes())) == letter


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv"])
def test_a_column_that_no_row_has(tmp_path: Path, name: str) -> None:
    out = write(tmp_path / name, columns=["intnt"]).open(None)
    with pytest.raises(OutputError, match="no row has the column 'intnt'; did you mean 'intent'"):
        out.write([row(1, intent="x")])
    with pytest.raises(OutputError, match="an earlier write failed"):
        out.flush()
    out.close()


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv"])
def test_a_field_with_the_name_of_the_id(tmp_path: Path, name: str) -> None:
    out = write(tmp_path / name).open(None)
    out.write([row(1, row_id="id1", a=1)])
    with pytest.raises(OutputError, match="read with id='row_id'"):
        out.write([row(2, row_id="other", a=1)])
    out.close()
    assert len(rows_in(tmp_path / name)) == 1


def test_csv_has_no_place_for_a_late_field(tmp_path: Path) -> None:
    out = write(tmp_path / "o.csv").open(None)
    out.write([row(1, a=1), row(2, b=2)])
    position = out.flush()
    assert position["columns"] == ["a", "b"]
    with pytest.raises(OutputError, match=r"row id3 has the field 'c'.*pass columns="):
        out.write([row(3, a=1, c=3)])
    out.close()
    again = write(tmp_path / "o.csv").open(position)
    with pytest.raises(OutputError, match="'c'"):
        again.write([row(3, c=3)])
    again.close()
    assert (tmp_path / "o.csv").read_text() == "row_id,a,b\nid1,1,\nid2,,2\n"


def test_csv_cells(tmp_path: Path) -> None:
    out = write(tmp_path / "o.csv").open(None)
    out.write([row(1, s='x, "y"', n=None, b=True, f=1.5, nan=float("nan"), l=[1, "a"], o={"k": None})])
    out.write([row(2, s="one\rtwo\nthree")])
    out.close()
    first, second = rows_in(tmp_path / "o.csv")
    assert isinstance(first, Row)
    assert {**first.fields} == {
        "row_id": "id1",
        "s": 'x, "y"',
        "n": "",
        "b": "true",
        "f": "1.5",
        "nan": "",
        "l": '[1,"a"]',
        "o": '{"k":null}',
    }
    assert isinstance(second, Row)
    assert second.s == "one\rtwo\nthree"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_written(tmp_path: Path, name: str) -> None:
    write(tmp_path / name).open(None).close()
    assert content(tmp_path / name) == b""
    chosen = write(tmp_path / name, columns=["a"], overwrite=True).open(None)
    chosen.close()
    assert content(tmp_path / name) == (b"row_id,a\n" if "csv" in name else b"")


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)
jsons = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(data=st.lists(st.dictionaries(st.text("abcä\n", max_size=3), jsons, max_size=4), max_size=8))
@pytest.mark.parametrize("name", ["o.jsonl", "o.jsonl.gz"])
def test_jsonl_round_trip(tmp_path: Path, name: str, data: list[dict[str, Any]]) -> None:
    out = write(tmp_path / name, overwrite=True).open(None)
    for n, fields in enumerate(data):
        out.write([Row(f"id{n}", fields, Origin("m", "0", n))])
    out.close()
    found = rows_in(tmp_path / name)
    assert [dict(r.fields) for r in found if isinstance(r, Row)] == [
        {"row_id": f"id{n}", **fields} for n, fields in enumerate(data)
    ]


@settings(max_examples=60)
@given(data=st.lists(st.tuples(texts, texts), max_size=8))
@pytest.mark.parametrize("name", ["o.csv", "o.tsv", "o.csv.gz"])
def test_csv_round_trip(tmp_path: Path, name: str, data: list[tuple[str, str]]) -> None:
    out = write(tmp_path / name, overwrite=True, columns=["a", "b,\n"]).open(None)
    out.write([row(n, **{"a": a, "b,\n": b}) for n, (a, b) in enumerate(data)])
    out.close()
    found = rows_in(tmp_path / name)
    assert [(r.id, r["a"], r["b,\n"]) for r in found if isinstance(r, Row)] == [
        (f"id{n}", a, b) for n, (a, b) in enumerate(data)
    ]
    assert all(isinstance(r, Row) for r in found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("close", [True, False])
def test_cut_back_to_every_position(tmp_path: Path, name: str, close: bool) -> None:
    path = tmp_path / name
    sink = write(path)
    out = sink.open(None)
    positions = [out.flush()]
    states = [content(path)]
    for batch in range(6):
        out.write([row(batch * 3 + n) for n in range(batch % 3)])
        positions.append(json.loads(json.dumps(out.flush())))
        states.append(content(path))
    out.write([row(99)])
    if close:
        out.close()
    final = path.read_bytes()
    for position, state in zip(positions, states, strict=True):
        for damage in (b"", b'{"torn', b"\x1f\x8b\x00"):
            path.write_bytes(final + damage)
            again = sink.open(position)
            assert content(path) == state
            again.write([row(50)])
            again.close()
            if "jsonl" in name:
                assert content(path) == state + b'{"row_id":"id50","n":50}\n'
            else:
                assert content(path) == (state or b"row_id,n\n") + b"id50,50\n"
        path.write_bytes(final)
    if not close:
        out.close()


def test_a_flush_without_rows_adds_no_member(tmp_path: Path) -> None:
    out = write(tmp_path / "o.jsonl.gz").open(None)
    out.write([row(1)])
    assert out.flush() == out.flush()
    out.close()
    assert len(rows_in(tmp_path / "o.jsonl.gz")) == 1


def test_golden_gzip(tmp_path: Path) -> None:
    """The bytes carry no time and no name: the same rows give the same file."""
    found = set()
    for turn in range(2):
        path = tmp_path / f"{turn}.jsonl.gz"
        out = write(path).open(None)
        out.write([row(1), row(2)])
        out.flush()
        out.write([row(3)])
        out.close()
        found.add(hashlib.sha256(path.read_bytes()).hexdigest())
        header = path.read_bytes()[:10]
        assert header[:4] == b"\x1f\x8b\x08\x00"
        assert header[4:8] == b"\0\0\0\0"
    assert len(found) == 1
    inflate = zlib.decompressobj(31)
    assert inflate.decompress(path.read_bytes()) == b'{"row_id":"id1","n":1}\n{"row_id":"id2","n":2}\n'
    assert inflate.eof


@pytest.mark.parametrize("name", NAMES)
def test_a_file_shorter_than_its_position(tmp_path: Path, name: str) -> None:
    out = write(tmp_path / name).open(None)
    out.write([row(1)])
    position = out.flush()
    out.close()
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(OutputError, match="rows are missing from it; put the file back"):
        write(tmp_path / name).open(position)


@pytest.mark.parametrize("name", [*NAMES, "o.parquet"])
def test_what_is_there_is_not_overwritten_unless_allowed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"precious")
    sink = write(path)
    sink.check()
    assert sink.occupied()
    with pytest.raises(ConfigurationError, match="exists and is not empty; pass --fresh"):
        sink.open(None)
    assert path.read_bytes() == b"precious"
    sink.overwrite = True
    out = sink.open(None)
    out.write([row(1)])
    out.close()
    sink.finish()
    assert b"precious" not in path.read_bytes()


def test_an_empty_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").touch()
    sink = write(tmp_path / "o.jsonl")
    assert not sink.occupied()
    sink.open(None).close()


def refused(path: str) -> OutputError:
    sink = write(path)
    folder = os.path.dirname(path)
    before = sorted(os.listdir(folder)) if os.path.isdir(folder) and folder != "/proc" else None
    with pytest.raises(OutputError) as found:
        sink.check()
    with pytest.raises(OutputError):
        sink.open(None)
    if before is not None:
        assert sorted(os.listdir(os.path.dirname(path))) == before
    assert found.value.exit_code == 74
    return found.value


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv.gz", "o.parquet"])
def test_refused_before_the_start(tmp_path: Path, name: str) -> None:
    assert "does not exist; make it first" in str(refused(f"{tmp_path}/none/none/{name}"))
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / name).symlink_to(tmp_path / "real")
    assert "symbolic link; write to the file that it names" in str(refused(f"{tmp_path}/{name}"))
    assert (tmp_path / "real").read_bytes() == b""
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert "it is a folder" in str(refused(f"{tmp_path}/{name}"))
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in str(refused(f"{tmp_path}/{name}"))
    assert "null byte" in str(refused(f"{tmp_path}/a\0{name}"))
    assert "Not a directory" in str(refused(f"{tmp_path}/real/{name}"))


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv.gz", "o.parquet", "new/o.jsonl"])
def test_a_file_system_that_makes_no_files_is_found_out(name: str) -> None:
    if not os.access("/proc", os.W_OK):
        pytest.skip("needs a folder that may be written and cannot, as root has in /proc")
    assert "nothing can be made in /proc" in str(refused(f"/proc/{name}"))


@pytest.mark.skipif(AS_ROOT, reason="root may write everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "no permission" in str(refused(f"{tmp_path}/locked/o.jsonl"))
    (tmp_path / "o.jsonl").touch(mode=0o400)
    assert "Permission denied" in str(refused(f"{tmp_path}/o.jsonl"))


def test_a_link_put_there_after_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dspy_stream.stream.sinks import file

    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "o.jsonl").symlink_to(tmp_path / "victim")
    monkeypatch.setattr(file, "check_path", lambda path: None)
    with pytest.raises(OutputError, match="symbolic link"):
        write(tmp_path / "o.jsonl", overwrite=True).open(None)
    assert (tmp_path / "victim").read_bytes() == b"precious"


HELD = """
import sys
from dspy_stream.stream.sinks import write
out = write(sys.argv[1], overwrite=True).open(None)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_file_that_another_process_is_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dspy_stream.stream.sinks import file

    path = tmp_path / "o.jsonl"
    path.write_bytes(b'{"n":1}\n')
    command = [sys.executable, "-c", HELD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(OutputError, match=r"another run is writing .*o\.jsonl; wait for it"):
            write(path, overwrite=True).check()
        monkeypatch.setattr(file, "check_path", lambda path: None)
        with pytest.raises(OutputError, match=r"another run is writing .*o\.jsonl; wait for it"):
            write(path, overwrite=True).open(None)
        assert path.read_bytes() == b""
        other.stdin.close()
        assert other.wait(30) == 0
    out = write(path, overwrite=True).open(None)
    out.write([row(1)])
    out.close()
    assert len(rows_in(path)) == 1


TRIED = """
import sys
from dspy_stream.errors import OutputError
from dspy_stream.stream.sinks import write
try:
    write(sys.argv[1], overwrite=True).check()
except OutputError:
    print("held")
else:
    print("free")
"""


def tried_elsewhere(path: Path) -> str:
    command = [sys.executable, "-c", TRIED, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_a_file_stays_held_while_it_is_checked_and_read_here(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    out = write(path).open(None)
    out.write([row(1)])
    write(path, overwrite=True).check()
    assert len(rows_in(path)) == 1
    assert tried_elsewhere(path) == "held"
    out.close()
    assert tried_elsewhere(path) == "free"


def test_what_broke_off_here_is_in_nobody_s_way(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    left = write(path).open(None)
    left.write([row(1)])
    again = write(path, overwrite=True).open(None)
    again.write([row(2), row(3)])
    with pytest.raises(OutputError, match="by somebody else"):
        left.write([row(4)])
    again.close()
    assert tried_elsewhere(path) == "free"
    assert [found.id for found in rows_in(path)] == ["id2", "id3"]  # type: ignore[union-attr]


def test_what_is_dropped_unclosed_is_free(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    left = write(path).open(None)
    left.write([row(1)])
    del left
    gc.collect()
    assert tried_elsewhere(path) == "free"


FORKED = """
import os, sys
from dspy_stream.stream.sinks import write
out = write(sys.argv[1], overwrite=True).open(None)
reader, writer = os.pipe()
if os.fork() == 0:
    out.close()  # whatever it does with what it got from its parent
    os.write(writer, b"forked\\n")
    sys.stdin.read()
    os._exit(0)
os.close(writer)
os.write(1, os.read(reader, 7))
os._exit(0)
"""


def test_a_child_that_outlives_a_run_does_not_hold_its_file(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    command = [sys.executable, "-c", FORKED, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"forked\n"
        assert run.wait(30) == 0
        assert tried_elsewhere(path) == "free"
        write(path, overwrite=True).open(None).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refuse)
    write(tmp_path / "o.jsonl").open(None).close()
    assert (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("name", ["o.jsonl", "o.parquet"])
def test_the_umask_decides_the_permissions(tmp_path: Path, name: str) -> None:
    before = os.umask(0o027)
    try:
        sink = write(tmp_path / name)
        sink.open(None).close()
        sink.finish()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("o.xlsx", {}, OutputError, "known suffixes are .jsonl"),
    ("o.parquet.gz", {}, OutputError, "cannot tell the format"),
    ("kafka://h/t", {}, OutputError, "cannot be written here yet"),
    ("o.jsonl", {"format": "xml"}, OutputError, "unknown format 'xml'"),
    ("-", {"format": "parquet"}, OutputError, "give a file"),
    ("o.jsonl", {"columns": "a"}, ConfigurationError, "list of names"),
    ("o.jsonl", {"columns": []}, ConfigurationError, "at least one"),
    ("o.jsonl", {"columns": ["a", "a"]}, ConfigurationError, "only once"),
]


@pytest.mark.parametrize(("path", "options", "kind", "words"), WRONG)
def test_settings_refused(path: str, options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        write(path, **options)


class FaultyOs:
    """The system calls of one file, one of which fails; ``room`` bytes can be written before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, code: int, room: int = 0) -> None:
        self.room = room
        self.armed = False
        real_write, real_fsync = os.write, os.fsync

        def faulty_write(descriptor: int, data: Any) -> int:
            if not self.armed or call != "write":
                return real_write(descriptor, data)
            if self.room <= 0:
                raise OSError(code, os.strerror(code))
            size = real_write(descriptor, data[: self.room])
            self.room -= size
            return size

        def faulty_fsync(descriptor: int) -> None:
            if self.armed and call == "fsync":
                raise OSError(code, os.strerror(code))
            real_fsync(descriptor)

        monkeypatch.setattr(os, "write", faulty_write)
        monkeypatch.setattr(os, "fsync", faulty_fsync)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("write", errno.ENOSPC, "No space left.*free some space and run again"),
        ("write", errno.EIO, "Input/output error.*disk failed"),
        ("write", errno.EDQUOT, "quota"),
        ("fsync", errno.EIO, "Input/output error"),
        ("fsync", errno.ENOSPC, "No space left"),
    ],
)
def test_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str, code: int, words: str
) -> None:
    path = tmp_path / name
    sink = write(path)
    out = sink.open(None)
    out.write([row(1), row(2)])
    position = out.flush()
    good = content(path)
    fault = FaultyOs(monkeypatch, call, code, room=9)
    fault.armed = True
    with pytest.raises(OutputError, match=words) as found:  # noqa: PT012 - either may fail
        out.write([row(n, n="x" * 5000 + str(n * 7919)) for n in range(3, 60)])
        out.flush()
    assert str(path) in str(found.value)
    fault.armed = False
    with pytest.raises(OutputError):  # what failed once is not committed later
        out.flush()
    try:
        out.close()
    except OutputError:
        pass
    again = sink.open(position)
    assert content(path) == good
    again.write([row(3)])
    again.close()
    assert [r.id for r in rows_in(path) if isinstance(r, Row)] == ["id1", "id2", "id3"]


class Odd:
    pass


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv"])
@pytest.mark.parametrize("value", [Odd(), "\ud800", {"a": [Odd()]}], ids=["object", "surrogate", "nested"])
def test_a_value_without_a_form_names_row_and_field(tmp_path: Path, name: str, value: Any) -> None:
    out = write(tmp_path / name).open(None)
    out.write([row(1, a=1)])
    position = out.flush()
    with pytest.raises(OutputError, match=r"row id3: the field 'a' cannot be written|lone surrogate"):
        out.write([row(2, a=1), row(3, a=value)])
    with pytest.raises(OutputError):
        out.flush()
    out.close()
    assert (tmp_path / name).stat().st_size == position["offset"]


def test_integers_of_any_size(tmp_path: Path) -> None:
    out = write(tmp_path / "o.jsonl").open(None)
    out.write([row(1, n=2**70, k={1: "ä"})])
    out.close()
    assert json.loads((tmp_path / "o.jsonl").read_bytes()) == {"row_id": "id1", "n": 2**70, "k": {"1": "ä"}}


def test_describe(tmp_path: Path) -> None:
    assert write("o.csv.gz", columns=["a"], row_id=None).describe() == {
        "kind": "file",
        "path": "o.csv.gz",
        "format": "csv",
        "row_id": None,
        "columns": ["a"],
    }


def in_batches(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def test_a_file_that_the_kernel_really_cuts_short(tmp_path: Path) -> None:
    """A limit on file size makes the kernel write part of a batch and refuse the rest."""
    sink = write(tmp_path / "o.jsonl")
    out = sink.open(None)
    rows = [row(n, text="y" * 1000) for n in range(150)]
    position, done = out.flush(), 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):  # noqa: PT012 - at any batch
            for batch in in_batches(rows, 10):
                out.write(batch)
                position, done = out.flush(), done + len(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    out.close()
    assert (done, (tmp_path / "o.jsonl").stat().st_size) == (90, 100_000)
    again = sink.open(position)
    again.write(rows[done:])
    again.close()
    assert [r.id for r in rows_in(tmp_path / "o.jsonl") if isinstance(r, Row)] == [r.id for r in rows]


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv.gz"])
@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (lambda path: path.unlink(), "removed or replaced"),
        (lambda path: path.rename(path.with_name("moved")), "removed or replaced"),
        (lambda path: os.replace(_other(path), path), "removed or replaced"),
        (lambda path: os.truncate(path, 5), r"has 5 bytes and not the \d+"),
        (lambda path: path.write_bytes(path.read_bytes() + b"mine\n"), "bytes and not the"),
    ],
    ids=["removed", "moved", "replaced", "cut", "added to"],
)
def test_an_output_that_somebody_else_touches_is_not_committed(
    tmp_path: Path, name: str, disturb: Any, words: str
) -> None:
    path = tmp_path / name
    out = write(path).open(None)
    out.write([row(1)])
    out.flush()
    disturb(path)
    with pytest.raises(OutputError, match=words):  # noqa: PT012 - either may find it
        out.write([row(2)])
        out.flush()
    with pytest.raises(OutputError, match="earlier write failed"):
        out.flush()
    with contextlib.suppress(OutputError):
        out.close()


def _other(path: Path) -> Path:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    return other


def test_rows_without_a_form_are_left_out_and_named(tmp_path: Path) -> None:
    out = write(tmp_path / "o.jsonl").open(None)
    rows = [row(1, a=1), row(2, a=Odd()), row(3, a=3), row(4, row_id="another")]
    unfit = out.add(rows)
    assert sorted(str(error)[:7] for error in unfit) == ["row id2", "row id4"]
    assert all(error.row in (rows[1], rows[3]) for error in unfit)
    out.flush()
    out.close()
    assert [r.id for r in rows_in(tmp_path / "o.jsonl") if isinstance(r, Row)] == ["id1", "id3"]
