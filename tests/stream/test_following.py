"""Settings that change while a flow runs: what has not begun follows them, all else stays as it is."""

import logging
import threading

import orjson
import pytest

import dspy_stream as ds
from dspy_stream.errors import LMServerError, ProgramChanged
from dspy_stream.state.runs import Runs
from dspy_stream.state.store import Store
from dspy_stream.stream.sinks import MemorySink


class Switch:
    """A model that answers with its name; at the row named in ``at`` it calls ``then`` first."""

    def __init__(self, name, at=None, then=lambda: None):
        self.asked = []

        def answer(request):
            text = request.tail[-1].content
            self.asked.append(text)
            if at is not None and f"[[ ## text ## ]]\n{at}\n" in text:
                then()
            return {"a": name, "b": name}

        self.lm = ds.ScriptedLM(answer, model=f"scripted/{name}", cache=True)


@pytest.fixture(autouse=True)
def _as_before():
    yield
    ds.configure(lm=None, adapter=None)


def rows(count=4):
    return ds.Stream.from_iterable([{"text": f"t{n}"} for n in range(count)], name="follow")


def run(stream, **options):
    sink = MemorySink()
    report = stream.write(sink).run(quiet=True, **{"state": None, **options})
    return [dict(row.fields) for row in sink.rows], report


def elsewhere(work):
    """In a thread of its own, as somebody at a console would."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


STEP = {"capacity": 1, "order": "ordered"}


def test_rows_that_have_not_begun_ask_the_new_model():
    new = Switch("new")
    old = Switch("old", at="t1", then=lambda: elsewhere(lambda: ds.configure(lm=new.lm)))
    ds.configure(lm=old.lm)
    found, _ = run(rows().through(ds.Predict("text -> a"), **STEP))
    assert [row["a"] for row in found] == ["old", "old", "new", "new"]


def test_a_row_at_work_ends_as_it_began():
    class Twice(ds.Module):
        def __init__(self):
            self.one, self.two = ds.Predict("text -> a"), ds.Predict("text, a -> b")

        def forward(self, text):
            one = self.one(text=text)
            return ds.Prediction(a=one.a, b=self.two(text=text, a=one.a).b)

    new = Switch("new")
    old = Switch("old", at="t1", then=lambda: ds.configure(lm=new.lm))
    ds.configure(lm=old.lm)
    found, _ = run(rows(3).through(Twice(), **STEP))
    assert [(row["a"], row["b"]) for row in found] == [("old", "old"), ("old", "old"), ("new", "new")]


@pytest.mark.parametrize("bound", ["predictor", "run", "context"])
def test_what_names_its_own_model_keeps_it(bound):
    new = Switch("new")
    old = Switch("old", at="t1", then=lambda: elsewhere(lambda: ds.configure(lm=new.lm)))
    predict, options = ds.Predict("text -> a"), {}
    if bound == "predictor":
        predict.lm = old.lm
        ds.configure(lm=Switch("other").lm)
    if bound == "run":
        options["lm"] = old.lm
    with ds.context(lm=old.lm) if bound == "context" else ds.context():
        found, _ = run(rows().through(predict, **STEP), **options)
    assert [row["a"] for row in found] == ["old"] * 4
    assert new.asked == []


def test_a_further_attempt_at_a_row_asks_the_new_model():
    """The way out where a model is down: rows that wait for it are asked of the other."""
    new = Switch("new")

    def answer(_request):
        ds.configure(lm=new.lm)
        raise LMServerError("down", status=503)

    ds.configure(lm=ds.ScriptedLM(answer, model="scripted/down"))
    found, _ = run(rows(2).through(ds.Predict("text -> a"), **STEP))
    assert [row["a"] for row in found] == ["new", "new"]


def test_the_adapter_too():
    seen = []

    def answer(request):
        seen.append("json" if "JSON" in request.messages[0].content else "chat")
        if len(seen) == 2:
            ds.configure(adapter="json")
        return {"a": "x"} if seen[-1] == "chat" else '{"a": "x"}'

    ds.configure(lm=ds.ScriptedLM(answer, cache=True))
    run(rows().through(ds.Predict("text -> a"), **STEP))
    assert seen == ["chat", "chat", "json", "json"]


def test_a_model_that_cannot_be_used_is_refused_and_the_flow_goes_on(caplog, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    old = Switch("old", at="t0", then=lambda: ds.configure(lm="openai/gpt-4o-mini"))
    ds.configure(lm=old.lm)
    with caplog.at_level(logging.WARNING, "dspy_stream"):
        found, _ = run(rows().through(ds.Predict("text -> a"), **STEP))
    assert [row["a"] for row in found] == ["old"] * 4
    assert "flow follow goes on with its model and adapter: " in caplog.text


def test_other_settings_and_the_same_model_again_change_nothing(caplog):
    def then():
        ds.configure(num_threads=3)
        ds.configure(lm=old.lm, adapter="chat")  # which it has been without a name

    old = Switch("old", at="t0", then=then)
    ds.configure(lm=old.lm)
    with caplog.at_level(logging.INFO, "dspy_stream"):
        run(rows().through(ds.Predict("text -> a"), **STEP))
    assert "from now on" not in caplog.text


def test_the_record_of_the_run_has_it_and_either_model_may_go_on(tmp_path):
    jobs, new = [], Switch("new")

    def then():
        ds.configure(lm=new.lm)
        jobs[0].stop(30)

    old, out, state = Switch("old", at="t1", then=then), tmp_path / "out.jsonl", tmp_path / "state"
    flow = rows(40).through(ds.Predict("text -> a"), **STEP).write(out)

    def go_on(**options):
        return flow.run(state=state, quiet=True, epoch=0.05, **options)

    ds.configure(lm=old.lm)
    first = go_on(watch=lambda job: (jobs.append(job), lambda: None)[1])
    assert first.status == "stopped"
    with Store.open(state) as store:
        kept = Runs(store).newest("follow")
    (change,) = kept.changes
    assert change["lm"] == ["scripted/old", "scripted/new"]
    assert (change["before"], change["after"]) == (change["before"], kept.program_digest)
    assert change["before"] != change["after"]

    ds.configure(lm=Switch("third").lm)
    with pytest.raises(ProgramChanged):
        go_on()
    ds.configure(lm=new.lm)
    assert go_on().status == "finished"
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [line["a"] for line in lines] == ["old"] * 2 + ["new"] * 38
