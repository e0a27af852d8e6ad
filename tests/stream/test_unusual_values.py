"""Values that the fast writer of JSON does not take, in rows that are under way when an epoch ends."""

import asyncio
import json
import threading

import pytest

from dspy_stream.errors import FlowError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.stream import Stream, compile

LARGE = 123456789012345678901234567890


@pytest.fixture
def under_way(monkeypatch):
    """A model that answers when its row has been kept for a crash."""
    kept = threading.Event()
    freeze = compile.freeze_item

    def frozen(item):
        try:
            return freeze(item)
        finally:
            kept.set()

    async def answer(request):
        text = request.tail[-1].content
        if "`[[ ## word ## ]]`" not in text:
            return f"[[ ## number ## ]]\n{LARGE}\n\n[[ ## completed ## ]]"
        await asyncio.get_running_loop().run_in_executor(None, kept.wait, 20)
        return {"word": "seen"}

    monkeypatch.setattr(compile, "freeze_item", frozen)
    return ScriptedLM(answer)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(stream, tmp_path, lm):
    return stream.write(tmp_path / "out.jsonl").run(lm=lm, state=tmp_path / "state", quiet=True, epoch=0.05)


def test_a_large_number_of_the_model_s(tmp_path, under_way):
    source = tmp_path / "in.jsonl"
    source.write_text('{"question": "how many?"}\n')
    stream = Stream.read(source).through(Predict("question -> number: int"))
    report = run(stream.through(Predict("number -> word")), tmp_path, under_way)
    assert (report.rows_out, report.dead_letters) == (1, 0)
    assert rows(tmp_path / "out.jsonl")[0]["number"] == LARGE


def test_a_large_number_of_the_file_s_is_exact(tmp_path, under_way):
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"number": {LARGE}}}\n{{"number": "{LARGE}"}}\n')
    report = run(Stream.read(source).through(Predict("number -> word")), tmp_path, under_way)
    assert report.rows_out == 2
    assert sorted((row["number"] for row in rows(tmp_path / "out.jsonl")), key=str) == [LARGE, str(LARGE)]


@pytest.mark.parametrize(
    "value", [2**70, (1, (2**80,)), {"a": {2**70}}, "x \ud800"], ids=["large", "tuple", "set", "half"]
)
def test_values_that_a_function_makes(tmp_path, under_way, value):
    stream = Stream.from_iterable([{"number": 1}]).map(lambda row: row.with_fields(made=value))
    report = run(stream.through(Predict("number -> word")), tmp_path, under_way)
    assert report.rows_in == 1
    assert report.rows_out + report.dead_letters == 1


def test_a_row_whose_value_cannot_be_kept_is_named(tmp_path, under_way):
    deep = []
    for _ in range(600):
        deep = [deep]
    stream = Stream.from_iterable([{"number": 1}]).map(lambda row: row.with_fields(made=deep))
    with pytest.raises(FlowError, match=r"row \w+ .* cannot be kept for a crash: it is nested beyond 400"):
        run(stream.through(Predict("number -> word")), tmp_path, under_way)


def test_a_letter_of_such_a_row_says_what_it_held(tmp_path):
    def fail(row):
        raise ValueError("no")

    stream = Stream.from_iterable([{"number": 2**70}]).map(fail)
    letters = tmp_path / "dead.jsonl"
    report = stream.write(tmp_path / "out.jsonl", dead_letters=letters).run(state=None, quiet=True)
    assert report.dead_letters == 1
    assert len(rows(letters)) == 1
