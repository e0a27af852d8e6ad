"""Parquet output: staged, widened, renamed into place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dspy_stream.errors import ConfigurationError, OutputError
from dspy_stream.rows import Origin, Row
from dspy_stream.stream import Stream
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


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (["x", 1], "'mixed' would hold text and an integer"),
        ([1, "x"], "'mixed' would hold an integer and text"),
        ([[1], {"a": 1}], "'mixed' would hold a list and an object"),
        ([True, 1], "'mixed' would hold true or false and an integer"),
        ([{"a": [1.5]}, {"a": ["x"]}], "'mixed' would hold 'a' would hold a number and text"),
        ([None, [1, "x"]], "'mixed' would hold an integer and text"),
        ([2**60, 0.5], "integers of more than 53 bits and other numbers"),
        ([-1, 2**63], "integers below zero and of 64 bits"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_a_row_of_another_type_is_left_out(
    tmp_path: Path, values: list[Any], what: str, together: bool
) -> None:
    """When it is written, not when the run has been paid for; also after the flow was resumed."""
    good, bad = rows(*({"n": number, "mixed": value} for number, value in enumerate(values)))
    sink = write(tmp_path / "o.parquet")
    out = sink.open(None)
    if together:
        found = out.add([good, bad])
    else:
        assert out.add([good]) == []
        position = out.flush()
        out.close()
        out = write(tmp_path / "o.parquet").open(position)
        found = out.add([bad])
    assert [error.row for error in found] == [bad]
    assert what in str(found[0])
    assert "row id1: the column 'mixed'" in str(found[0])
    out.close()
    sink.finish()
    assert pq.read_table(tmp_path / "o.parquet").column("n").to_pylist() == [0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 0.5, None], pa.float64()),
        ([1, 2**62], pa.int64()),
        ([1, 2**63], pa.uint64()),
        ([[], [1], [0.5, None]], pa.list_(pa.float64())),
        ([{}, {"a": {}}, {"b": 1}], pa.struct([("a", pa.null()), ("b", pa.int64())])),
        ([{}, None], pa.null()),
    ],
)
def test_types_that_have_one_above_them(tmp_path: Path, values: list[Any], kind: pa.DataType) -> None:
    sink = write(tmp_path / "o.parquet")
    out = sink.open(None)
    assert out.add(rows(*({"v": value} for value in values))) == []
    out.close()
    sink.finish()
    table = pq.read_table(tmp_path / "o.parquet")
    assert (table.schema.field("v").type, table.num_rows) == (kind, len(values))


def test_an_object_whose_names_are_data_is_left_out(tmp_path: Path) -> None:
    out = write(tmp_path / "o.parquet").open(None)
    (error,) = out.add(rows({"o": {str(number): number for number in range(5_001)}}, {"o": {"1": 1}}))
    assert "more than 5,000 different names" in str(error)
    out.close()


def test_in_a_flow_it_is_a_dead_letter(tmp_path: Path) -> None:
    letters = tmp_path / "letters.jsonl"
    stream = Stream.from_iterable([{"score": 1}, {"score": "high"}, {"score": 0.5}])
    report = stream.write(tmp_path / "o.parquet", dead_letters=letters).run(state=None, quiet=True)
    assert (report.rows_out, report.dead_letters) == (2, 1)
    (letter,) = [json.loads(line) for line in letters.read_bytes().splitlines()]
    assert letter["stage"] == "write"
    assert "the column 'score' would hold an integer and text" in letter["error"]["message"]
    assert pq.read_table(tmp_path / "o.parquet").column("score").to_pylist() == [1.0, 0.5]


def test_mixed_rows_that_were_staged_before_are_kept(tmp_path: Path) -> None:
    staged = tmp_path / ".o.parquet.rows.jsonl"
    staged.write_bytes(b'{"row_id":"a","mixed":1}\n{"row_id":"b","mixed":"x"}\n')
    with pytest.raises(OutputError, match=r"the column 'mixed'.*the rows are whole in"):
        write(tmp_path / "o.parquet").finish()
    assert len(staged.read_bytes().splitlines()) == 2
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
