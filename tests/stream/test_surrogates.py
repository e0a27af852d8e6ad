"""Ids and values with halves of characters, which no UTF-8 has room for: never the end of a flow."""

import io
import json

import pytest

from dspy_stream.cli.main import main
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.rows import DeadLetter, Origin, Row, written
from dspy_stream.state import DeadLetterBox, Store
from dspy_stream.stream import Stream
from dspy_stream.stream.codec import as_json
from dspy_stream.stream.compile import by_id, freeze_item, thaw_item
from dspy_stream.stream.gather import Gather, Gathering
from dspy_stream.stream.work import Dropped

HALF = "a\ud800"
HERE = Origin("own", "0", 0)


class OwnSource:
    """A source of the user's own, which checks no text."""

    name = "own"
    exhausted = False
    bytes_read = 0

    def __init__(self, rows, named=False):
        self._rows, self._named = rows, named

    def partitions(self):
        return ["0"]

    def open(self, partition, position):
        made = OwnSource(self._rows, self._named)
        made.exhausted = bool(position and position["done"])
        return made

    def read(self, limit):
        if self.exhausted:
            return []
        self.exhausted = True
        return list(self._rows)

    def position(self):
        return {"done": self.exhausted}

    def close(self):
        pass

    def size(self):
        return len(self._rows)

    def bytes_total(self):
        return None

    def describe(self):
        return {"kind": "own", "name": "own", **({"id": "id"} if self._named else {})}


def answer(request):
    return {"number": 3} if "good" in request.tail[0].content else "no number"


def own_rows():
    return [
        Row(HALF, {"question": "good one"}, Origin("own", "0", 0)),
        Row("b\udfff", {"question": "a bad one"}, Origin("own", "0", 1)),
        Row("b\udfff", {"question": "good, but not what came before"}, Origin("own", "0", 2)),
        Row("c", {"question": "good", "more": {"k\ud800": ["v\ud800"]}}, Origin("own", "0", 3)),
        Row("d", {"question": "good"}, Origin("own", "0", 4)),
    ]


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_a_flow_over_them_comes_to_its_end(tmp_path, name, state):
    flow = (
        Stream.read(OwnSource(own_rows(), named=True))
        .filter(lambda row: row.id != "nobody")
        .through(Predict("question -> number: int"), name="ask")
        .limit_failures(consecutive=None, ratio=None)
        .write(tmp_path / name, dead_letters=tmp_path / "dead.jsonl", columns=["question", "number", "more"])
    )
    folder = tmp_path / "state" if state else None
    report = flow.run(lm=ScriptedLM(answer, cache=True), state=folder, quiet=True)
    assert (report.rows_in, report.rows_out + report.dead_letters) == (5, 5)
    dead = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_bytes().splitlines()]
    assert len(dead) == report.dead_letters >= 3
    assert {letter["row_id"] for letter in dead} >= {"b\\udfff", "c"}


@pytest.fixture
def letters(tmp_path):
    """A state folder with such letters, and the flow."""
    flow = (
        Stream.read(OwnSource(own_rows()))
        .through(Predict("question -> number: int"), name="ask")
        .limit_failures(consecutive=None, ratio=None)
        .write(tmp_path / "out.jsonl")
    )
    flow.run(lm=ScriptedLM(answer, cache=True), state=tmp_path / "state", quiet=True)
    return tmp_path / "state"


def said(capfdbinary, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["dspy-stream", *map(str, arguments)])
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True))
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    import sys

    return code, sys.stdout.buffer.getvalue().decode()


def test_letters_are_listed_shown_exported_and_resolved(letters, tmp_path, capfdbinary, monkeypatch):
    def verb(*arguments):
        return said(capfdbinary, monkeypatch, "dlq", *arguments)

    code, text = verb("list", letters, "--json")
    ids = {json.loads(line)["row_id"] for line in text.splitlines()}
    assert (code, "b\\udfff" in ids) == (0, True)
    assert verb("list", letters)[0] == 0
    for name in ("b\\udfff", "b\udfff"):  # as it is listed, and as it was
        code, text = verb("show", letters, name)
        assert (code, json.loads(text)["row_id"]) == (0, "b\\udfff")
    code, text = verb("export", letters)
    assert (code, {json.loads(line)["row_id"] for line in text.splitlines()}) == (0, ids)
    assert verb("export", letters, tmp_path / "letters.jsonl")[0] == 0
    assert verb("resolve", letters, "b\\udfff", "--note", "half \udc80")[0] == 0
    assert verb("show", letters, "nobody\udcff")[0] == 78


def test_letters_are_retried(letters, tmp_path):
    from dspy_stream.stream.retry import retry_letters

    flow = (
        Stream.read(OwnSource(own_rows()))
        .through(Predict("question -> number: int"), name="ask")
        .write(tmp_path / "out.jsonl")
    )
    report = retry_letters(flow, letters, refs=["b\\udfff"], lm=ScriptedLM(lambda _: {"number": 4}))
    assert (report.rows_in, report.rows_out) == (1, 1)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [row["row_id"] for row in rows if row["number"] == 4] == ["b\\udfff"]


class TestParts:
    def test_rows_are_spread_by_such_ids(self):
        rows = [Row(HALF, {}, HERE), Dropped(HALF, HERE), Row("b", {}, HERE)]
        keyed = by_id(iter(rows))
        assert [item for _, item in keyed] == rows
        assert keyed[0][0] == keyed[1][0]
        assert by_id([rows[2]]) == [keyed[2]], "the way it goes changes no shard"

    def test_what_became_of_a_row_survives_a_snapshot(self):
        assert thaw_item(freeze_item(Dropped(HALF, HERE)), {}).row_id == HALF
        letter = DeadLetter(
            HALF, HERE, b"", "map", {"code": "c", "message": "m\ud800"}, fields={"x": "\ud800"}
        )
        assert thaw_item(freeze_item(letter), {}).fields == {"x": "\\ud800"}

    def test_batches_are_named(self):
        (made,), _ = Gather(1, Gathering(), None).on_batch([Row(HALF, {"x": 1}, HERE)])
        assert made.fields == {"x": [1]}

    def test_fields_as_json_can_be_written(self):
        assert json.dumps(as_json({HALF: "\ud800", "n": 1})).isascii()
        json.dumps(as_json({"x": "\ud800"}), ensure_ascii=False).encode()

    def test_a_box_takes_them(self, tmp_path):
        with Store.open(tmp_path / "state") as store:
            box = DeadLetterBox(store)
            box.open("run", 0)
            box.append([DeadLetter(name, HERE, b"", "map", {"code": "c"}) for name in (HALF, "a\ud801")])
            assert [filed.letter.row_id for filed in box.list()] == ["a\\ud800", "a\\ud801"]
            assert box.resolve(HALF, stamp="now", note="n\ud800") == 1
            assert [filed.letter.row_id for filed in box.list()] == ["a\\ud801"]

    def test_what_utf8_has_room_for_stays(self):
        value = {"é": ["\U0001f600", 1, None, True], "b": 1.5}
        assert written(value) == value
