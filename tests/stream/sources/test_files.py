"""Which files a path names, what is refused before the start, and standard input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_stream.errors import ConfigurationError, InputError
from dspy_stream.rows import Row
from dspy_stream.stream.sources import read
from dspy_stream.stream.sources.options import ReadOptions
from dspy_stream.stream.sources.stdin import PipeSource

LINE = b'{"n":1}\n'
AS_ROOT = os.geteuid() == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "a.ndjson", "c.csv", "notes.txt", ".hidden.jsonl", "deep/d.jsonl"):
        (made / name).write_bytes(b"n\n1\n" if name.endswith("csv") else LINE)
    return made


def test_a_folder_means_its_known_files(folder: Path) -> None:
    source = read(folder)
    assert source.name == "data"
    assert source.partitions() == ["a.ndjson", "b.jsonl", "c.csv"]
    assert source.bytes_total() == 20
    rows = [row for part in source.partitions() for row in source.open(part, None).read(9)]
    assert [row.origin.partition for row in rows] == ["a.ndjson", "b.jsonl", "c.csv"]
    assert len({row.id for row in rows if isinstance(row, Row)}) == 3


def test_a_pattern_means_what_it_matches(folder: Path) -> None:
    source = read(str(folder / "*.jsonl"))
    assert (source.name, source.partitions()) == ("*.jsonl", ["b.jsonl"])
    deep = read(str(folder / "**" / "*.jsonl"))
    assert (deep.name, deep.partitions()) == ("**/*.jsonl", ["b.jsonl", "deep/d.jsonl"])


def test_names_do_not_change_when_the_data_moves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = read(str(folder / "*.jsonl"))
    monkeypatch.chdir(folder)
    relative = read("*.jsonl")
    assert (absolute.name, absolute.partitions()) == (relative.name, relative.partitions())
    first, second = (s.open("b.jsonl", None).read(1)[0] for s in (absolute, relative))
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.id == second.id


def test_a_file_named_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(LINE)
    assert read(tmp_path / "a[1].jsonl").partitions() == ["a[1].jsonl"]


def test_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert read("~/b.jsonl").partitions() == ["b.jsonl"]


REFUSED = [
    ("missing.jsonl", "No such file"),
    ("notes.txt", "cannot tell the format.*\\.jsonl, .*format='jsonl'"),
    ("deep/d.jsonl/x.jsonl", "Not a directory"),
    ("*.parquet", "no file matches"),
    ("empty", "has no file to read"),
    ("a\0b.jsonl", "is not a path"),
    ("", "is not a path"),
]


@pytest.mark.parametrize(("name", "words"), REFUSED, ids=[repr(case[0]) for case in REFUSED])
def test_refused_before_the_start(folder: Path, name: str, words: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        read(f"{folder}/{name}" if name else "").partitions()


@pytest.mark.parametrize("scheme", ["kafka://host/topic", "https://example.org/a.jsonl", "s3://b/a.jsonl"])
def test_schemes_are_not_read_yet(scheme: str) -> None:
    with pytest.raises(InputError, match="cannot be read here yet"):
        read(scheme)


def test_formats_named_by_the_user(folder: Path) -> None:
    assert read(folder / "notes.txt", format="jsonl").partitions() == ["notes.txt"]
    with pytest.raises(InputError, match="unknown format 'xlsx'"):
        read(folder, format="xlsx")


@pytest.mark.parametrize(
    "wrong",
    [{"columns": "text"}, {"columns": []}, {"columns": ["a", "a"]}, {"max_line": 0}, {"delimiter": ";;"}],
)
def test_settings_without_meaning(folder: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        read(folder, **wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(AS_ROOT, reason="root may read everything")
def test_no_permission(folder: Path) -> None:
    (folder / "b.jsonl").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read(folder / "b.jsonl").partitions()


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="not a regular file; use -"):
        read(tmp_path / "a.jsonl").partitions()


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.jsonl")
    (tmp_path / name).write_bytes(LINE)
    with pytest.raises(InputError, match="not UTF-8; rename"):
        read(tmp_path).partitions()


def test_a_partition_that_is_gone(folder: Path) -> None:
    with pytest.raises(InputError, match=r"x.jsonl is not among the files"):
        read(folder).open("x.jsonl", None)


def test_describe(folder: Path) -> None:
    made = read(folder, id="k", columns=["a"], name="set").describe()
    assert made == {
        "kind": "files",
        "name": "set",
        "path": str(folder),
        "format": None,
        "id": "k",
        "columns": ["a"],
        "max_line": 16 * 1024 * 1024,
        "delimiter": None,
    }


class TestPipe:
    """Standard input, over a pipe of the test's own."""

    @pytest.fixture
    def pipe(self) -> object:
        reader, writer = os.pipe()
        yield reader, writer
        os.close(reader)
        try:
            os.close(writer)
        except OSError:
            pass

    def test_rows_as_they_arrive(self, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        source = PipeSource(ReadOptions(), descriptor=reader)
        partition = source.open("-", None)
        assert (partition.read(5), partition.exhausted) == ([], False)
        os.write(writer, b'{"n":1}\n{"n":')
        assert [row.n for row in partition.read(5) if isinstance(row, Row)] == [1]
        assert (partition.read(5), partition.exhausted) == ([], False)
        os.write(writer, b'2}\n{"n":3}')
        assert [row.n for row in partition.read(5) if isinstance(row, Row)] == [2]
        os.close(writer)
        assert [row.n for row in partition.read(5) if isinstance(row, Row)] == [3]
        assert partition.exhausted
        assert partition.position()["live"] is True
        assert (source.size(), source.bytes_total(), source.name) == (None, None, "stdin")

    def test_csv_waits_for_the_header_and_for_the_closing_quote(self, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        partition = PipeSource(ReadOptions(format="csv"), descriptor=reader).open("-", None)
        assert partition.read(5) == []
        os.write(writer, b'a,b\n1,2\n3,"four\n')
        assert [row.b for row in partition.read(5) if isinstance(row, Row)] == ["2"]
        assert (partition.read(5), partition.exhausted) == ([], False)
        os.write(writer, b'more"\n')
        assert [row.b for row in partition.read(5) if isinstance(row, Row)] == ["four\nmore"]
        os.close(writer)
        assert (partition.read(5), partition.exhausted) == ([], True)

    def test_no_way_back(self, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        source = PipeSource(ReadOptions(), descriptor=reader)
        partition = source.open("-", None)
        source.open("-", partition.position())
        os.write(writer, LINE)
        partition.read(1)
        with pytest.raises(InputError, match="cannot be read again from row 1"):
            source.open("-", partition.position())

    def test_parquet_is_refused(self) -> None:
        with pytest.raises(InputError, match="give a file"):
            read("-", format="parquet")

    def test_the_dash_reads_descriptor_zero(self) -> None:
        code = (
            "from dspy_stream.stream.sources import read\n"
            "p = read('-').open('-', None)\n"
            "while not p.exhausted:\n"
            "    for row in p.read(10): print(row.n)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=b'{"n":1}\n{"n":2}',
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert done.stdout.split() == [b"1", b"2"]


def test_importing_sources_and_sinks_imports_no_pyarrow() -> None:
    code = (
        "import sys, dspy_stream.stream.sources, dspy_stream.stream.sinks\n"
        "print([m for m in ('pyarrow', 'pandas', 'polars', 'bytewax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert done.stdout.strip() == b"[]"


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.delitem(sys.modules, "dspy_stream.stream.sources.parquet", raising=False)
    monkeypatch.delattr("dspy_stream.stream.sources.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'dspy_stream\[parquet\]'"):
        read(tmp_path / "a.parquet").partitions()
