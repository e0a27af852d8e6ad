"""Sinks that are no files."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dspy_stream.errors import ConfigurationError, OutputError
from dspy_stream.rows import Origin, Row
from dspy_stream.stream.sinks import MemorySink, NullSink, Sink
from dspy_stream.stream.sinks.encode import CsvEncoder, JsonlEncoder
from dspy_stream.stream.sinks.stdout import PipeSink

ROWS = [Row(f"id{n}", {"n": n}, Origin("m", "0", n)) for n in range(3)]


def test_memory_cuts_back() -> None:
    sink = MemorySink()
    out = sink.open(None)
    out.write(ROWS[:1])
    position = out.flush()
    out.write(ROWS[1:])
    assert sink.rows == ROWS
    assert sink.open(position).rows == ROWS[:1]
    with pytest.raises(ConfigurationError, match="earlier run"):
        sink.open(None)
    assert MemorySink(overwrite=True).open(None).rows == []
    with pytest.raises(OutputError, match="do not outlive the process"):
        MemorySink().open(position)


def test_null_counts() -> None:
    sink = NullSink()
    out = sink.open(None)
    out.write(ROWS)
    assert (out.flush(), sink.count) == ({"count": 3}, 3)
    assert sink.open({"count": 2}).count == 2


@pytest.mark.parametrize("sink", [MemorySink(), NullSink(), PipeSink(JsonlEncoder)])
def test_every_sink_answers_all_questions(sink: Sink) -> None:
    sink.check()
    assert sink.occupied() is False
    assert "kind" in sink.describe()
    sink.finish()


def test_standard_output_comes_after_what_was_printed() -> None:
    code = (
        "from dspy_stream.stream.sinks import write\n"
        "from dspy_stream.rows import Origin, Row\n"
        "print('before')\n"
        "out = write('-').open(None)\n"
        "out.write([Row('a', {'n': 1}, Origin('m', '0', 0))])\n"
        "out.flush(); out.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert done.stdout == b'before\n{"row_id":"a","n":1}\n'


def test_a_reader_that_went_away() -> None:
    reader, writer = os.pipe()
    out = PipeSink(JsonlEncoder, descriptor=writer).open(None)
    out.write(ROWS[:1])
    os.close(reader)
    with pytest.raises(OutputError, match="standard output: Broken pipe; whoever read it has gone"):
        out.write(ROWS)
    with pytest.raises(OutputError, match="earlier write failed"):
        out.flush()
    with pytest.raises(OutputError, match="earlier write failed"):
        out.write(ROWS)
    os.close(writer)


def test_a_closed_descriptor_is_found_before_the_start() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OutputError, match="Bad file descriptor"):
        PipeSink(JsonlEncoder, descriptor=writer).check()


def test_csv_keeps_its_columns_and_repeats_its_header() -> None:
    reader, writer = os.pipe()
    sink = PipeSink(CsvEncoder, descriptor=writer)
    out = sink.open(None)
    out.write(ROWS[:1])
    position = out.flush()
    assert position == {"live": True, "columns": ["n"]}
    sink.open(position).write(ROWS[1:2])
    os.close(writer)
    assert os.read(reader, 1000) == b"row_id,n\nid0,0\nrow_id,n\nid1,1\n"
    os.close(reader)


def test_a_full_non_blocking_pipe_is_waited_for() -> None:
    import threading

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    found: list[bytes] = []

    def drain() -> None:
        while data := os.read(reader, 65536):
            found.append(data)

    thread = threading.Thread(target=drain)
    big = Row("a", {"t": "x" * 500_000}, ROWS[0].origin)
    out = PipeSink(JsonlEncoder, descriptor=writer).open(None)
    thread.start()
    out.write([big])
    os.close(writer)
    thread.join(10)
    os.close(reader)
    assert len(b"".join(found)) == 500_000 + len('{"row_id":"a","t":""}\n')


@pytest.mark.parametrize("encoder", [JsonlEncoder, CsvEncoder])
def test_standard_output_leaves_out_a_row_without_a_form(encoder: type[JsonlEncoder | CsvEncoder]) -> None:
    reader, writer = os.pipe()
    out = PipeSink(encoder, descriptor=writer).open(None)
    bad = Row("bad", {"n": "\ud800"}, ROWS[0].origin)
    (error,) = out.add([ROWS[0], bad, ROWS[1]])  # type: ignore[attr-defined]
    assert error.row is bad
    assert out.flush()["live"]
    os.close(writer)
    assert os.read(reader, 1000) == encoder().encode(ROWS[:2])
    os.close(reader)
