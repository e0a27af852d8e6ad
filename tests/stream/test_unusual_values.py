"""Values that the fast writer of JSON does not take, in rows that are under way when an epoch ends."""

import asyncio
import json
import threading

import pytest

from dspy_stream.errors import FlowError, LMAuthError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.part import Apply
from dspy_stream.stream import Stream, compile
from dspy_stream.stream.retry import retry_letters

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


class Handle:
    """Something that only this process can hold."""


KEPT, MENDED = threading.Event(), threading.Event()


async def uses(n, handle=None):
    if not MENDED.is_set():
        await asyncio.get_running_loop().run_in_executor(None, KEPT.wait, 20)
        raise LMAuthError("revoked")
    return {"m": type(handle).__name__}


@pytest.mark.parametrize("order", ["unordered", "ordered"])
@pytest.mark.parametrize("forked", [False, True])
def test_an_object_without_a_form_makes_its_row_a_dead_letter_after_a_crash(
    tmp_path, monkeypatch, order, forked
):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(6)))
    KEPT.clear()
    MENDED.clear()

    def flow():
        program = Fork(x=Apply(uses), y=Apply(lambda n: {"k": n})) if forked else Apply(uses)
        stream = Stream.read(tmp_path / "in.jsonl", name="held")
        stream = stream.map(lambda row: {**row, **({"handle": Handle()} if row.n % 2 else {})})
        stream = stream.through(program, order=order).map(lambda row: {"n": row.n, "m": row.m})
        return stream.write(tmp_path / "out.jsonl", dead_letters=tmp_path / "dead.jsonl")

    def run():
        return flow().run(state=tmp_path / "state", quiet=True, epoch=0.0)

    freeze = compile.freeze_item
    monkeypatch.setattr(compile, "freeze_item", lambda item: (freeze(item), KEPT.set())[0])
    with pytest.raises(LMAuthError):
        run()
    MENDED.set()
    report = run()
    assert (report.resumed, report.rows_in, report.rows_out, report.dead_letters) == (True, 6, 3, 3)
    assert {(row["n"], row["m"]) for row in rows(tmp_path / "out.jsonl")} == {
        (n, "NoneType") for n in (0, 2, 4)
    }
    letters = rows(tmp_path / "dead.jsonl")
    assert all("'handle' held an object without a form" in letter["error"]["message"] for letter in letters)
    report = retry_letters(flow(), tmp_path / "state", quiet=True)
    assert (report.rows_out, report.dead_letters) == (3, 0)
    assert {(row["n"], row["m"]) for row in rows(tmp_path / "out.jsonl")} >= {
        (n, "Handle") for n in (1, 3, 5)
    }
