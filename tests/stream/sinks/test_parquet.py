"""Parquet output: staged, widened, renamed into place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dspy_stream.errors import ConfigurationError, OutputError
from dspy_stream.rows import Origin, Row
from dspy_stream.stream.sinks import write


def rows(*records: dict[str, Any]) -> list[Row]:
    return [Row(f"id{n}", fields, Origin("m", "0", n)) for n, fields in enumerate(records)]


def test_types_are_widened_over_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dspy_stream.stream.sinks import parquet

    monkeypatch.setattr(parquet, "_BATCH", 2)
    records = rows(
        {"n": 1, "t": None, "l": [], "o": {"a": 1}},
        {"n": 2, "t": None, "l": [], "o": {"a": 2}},
        {"n": 1.5, "t": "x", "l": ["y"], "o": {"a": 3, "b": "z"}},
        {"n": None, "t": "y", "late": True},
        {"n": 3, "t": "z"},
    )
    sink = write(tmp_path / "o.parquet")
    out = sink.open(None)
    out.write(records)
    out.close()
    assert not (tmp_path / "o.parquet").exists()
    sink.finish()
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.schema.names == ["row_id", "n", "t", "l", "o", "late"]
    assert table.column("row_id").to_pylist() == [f"id{n}" for n in range(5)]
    assert table.column("n").to_pylist() == [1.0, 2.0, 1.5, None, 3.0]
    assert table.column("t").to_pylist() == [None, None, "x", "y", "z"]
    assert table.column("l").to_pylist() == [[], [], ["y"], None, None]
    assert table.column("o").to_pylist()[2] == {"a": 3, "b": "z"}
    assert table.column("late").to_pylist() == [None, None, None, True, None]
    assert os.listdir(tmp_path) == ["o.parquet"]


def test_finish_is_idempotent_and_a_finished_run_can_be_opened(tmp_path: Path) -> None:
    sink = write(tmp_path / "o.parquet")
    out = sink.open(None)
    out.write(rows({"n": 1}))
    position = out.flush()
    out.close()
    sink.finish()
    before = (tmp_path / "o.parquet").read_bytes()
    sink.finish()
    again = write(tmp_path / "o.parquet").open(position)
    assert again.flush() == position
    again.write([])
    with pytest.raises(OutputError, match="is finished and takes no more rows"):
        again.write(rows({"n": 2}))
    again.close()
    sink.finish()
    assert (tmp_path / "o.parquet").read_bytes() == before


def test_crash_between_the_rename_and_the_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = write(tmp_path / "o.parquet")
    out = sink.open(None)
    out.write(rows({"n": 1}))
    position = out.flush()
    out.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OutputError, match="Input/output error"):
            sink.finish()
    again = write(tmp_path / "o.parquet").open(position)
    again.write(rows({"n": 1}, {"n": 2})[1:])
    again.close()
    sink.finish()
    assert pq.read_table(tmp_path / "o.parquet").column("n").to_pylist() == [1, 2]
    assert os.listdir(tmp_path) == ["o.parquet"]


def test_resume_cuts_the_staged_rows(tmp_path: Path) -> None:
    sink = write(tmp_path / "o.parquet", columns=["n"])
    out = sink.open(None)
    out.write(rows({"n": 1}))
    position = out.flush()
    out.write(rows({"n": 9}))
    out.close()
    again = write(tmp_path / "o.parquet", columns=["n"]).open(position)
    again.write(rows({"n": 2}))
    again.close()
    sink.finish()
    assert pq.read_table(tmp_path / "o.parquet").column("n").to_pylist() == [1, 2]


@pytest.mark.parametrize("values", [["x", 1], [1, "x"], [[1], {"a": 1}]])
@pytest.mark.parametrize("size", [1, 100])
def test_mixed_types_keep_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], size: int
) -> None:
    from dspy_stream.stream.sinks import parquet

    monkeypatch.setattr(parquet, "_BATCH", size)
    sink = write(tmp_path / "o.parquet")
    out = sink.open(None)
    out.write(rows(*({"mixed": value} for value in values)))
    out.close()
    with pytest.raises(OutputError, match="must hold one type; the rows are whole in") as found:
        sink.finish()
    assert "mixed" in str(found.value)
    assert len((tmp_path / ".o.parquet.rows.jsonl").read_bytes().splitlines()) == 2
    assert not (tmp_path / "o.parquet").exists()


def test_no_rows(tmp_path: Path) -> None:
    sink = write(tmp_path / "o.parquet", columns=["a"])
    sink.open(None).close()
    sink.finish()
    table = pq.read_table(tmp_path / "o.parquet")
    assert (table.num_rows, table.schema.names) == (0, ["row_id", "a"])
    assert table.schema.field("row_id").type == pa.string()


def test_staged_rows_that_are_gone(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"its rows, in .* are gone"):
        write(tmp_path / "o.parquet").finish()


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "dspy_stream.stream.sinks.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'dspy_stream\[parquet\]'"):
        write(tmp_path / "o.parquet")
