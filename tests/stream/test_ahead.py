"""A straight-line ``forward`` as a step: its predictors asked at the same time, all else as it stands."""

import asyncio
import re

import pytest

import dspy_stream as ds
from dspy_stream import events
from dspy_stream.engine import Ticket
from dspy_stream.modules import ahead
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.scope import TICKET, TRACE
from dspy_stream.runtime import aperform, run
from dspy_stream.stream.sinks import MemorySink


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch):
    for name in ("_subscribers", "active", "_armed"):
        monkeypatch.setattr(events, name, getattr(events, name))
    events._keep([each for each in events._subscribers if each.always_told])


class Debate(ds.Module):
    def __init__(self):
        self.pro, self.con = ds.Predict("text -> argument"), ds.ChainOfThought("text -> argument: str")
        self.judge = ds.Predict("pro, con -> verdict")

    def forward(self, text, tone="dry"):
        pro, con = self.pro(text=text), self.con(text=text)
        made = self.judge(pro=pro.argument, con=f"{con.argument} ({tone})")
        return ds.Prediction(verdict=made.verdict, sides=[pro.argument, con.reasoning])


class Sequential(Debate):
    """The same with a line that is not followed."""

    def forward(self, text, tone="dry"):
        pro, con = self.pro(text=text), self.con(text=text)
        made = self.judge(pro=pro.argument, con=str(f"{con.argument} ({tone})"))
        return ds.Prediction(verdict=made.verdict, sides=[pro.argument, con.reasoning])


def lm(fails=(), **options):
    """A model that says for whom it answers what; ``fails`` are outputs that it does not give."""

    def answer(request):
        asked = request.tail[-1].content
        wanted = asked.rsplit("Respond", 1)[-1]
        found = {}
        for name in ("reasoning", "argument", "verdict"):
            if f"[[ ## {name} ## ]]" in wanted:
                found[name] = f"{name} of {hash(asked.split('Respond')[0]) % 1000}"
        kind = "verdict" if "verdict" in found else "con" if "reasoning" in found else "pro"
        if kind in fails:
            raise ValueError(f"no {kind}")
        return found

    return ds.ScriptedLM(answer, **options)


def through(module, model, rows=({"text": "a"}, {"text": "b", "tone": "wry"}), split=None, **options):
    sink, letters = MemorySink(), MemorySink()
    stream = ds.Stream.from_iterable(list(rows), id="text").through(module, order="ordered", split=split)
    report = stream.write(sink, dead_letters=letters).run(lm=model, state=None, quiet=True, **options)
    told = [{k: v for k, v in row.fields["error"].items() if k != "where"} for row in letters.rows]
    return [dict(row.fields) for row in sink.rows], told, report


def test_predictors_that_do_not_need_each_other_are_asked_at_the_same_time():
    rows, letters, _ = through(Debate(), meeting()[0], rows=[{"text": "a"}])
    assert (rows[0]["verdict"], letters) == ("v", [])


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("fails", [(), ("pro",), ("con",), ("verdict",), ("pro", "con")])
def test_all_is_as_one_after_the_other(fails, cache):
    one, two = (through(kind(), lm(fails, cache=cache)) for kind in (Sequential, Debate))
    assert one[0] == two[0]
    assert one[1] == two[1]
    if not fails:
        assert (one[2].calls, one[2].hits) == (two[2].calls, two[2].hits) == (6, 0)


def in_a_row(module, inputs, call):
    ticket, found = Ticket("run", "step", "row"), []
    tokens = TICKET.set(ticket), TRACE.set(found)
    try:
        made = run(aperform(call(module, inputs)))
    finally:
        TICKET.reset(tokens[0])
        TRACE.reset(tokens[1])
    return made, ticket, found


def test_the_trace_and_the_ticket_are_as_one_after_the_other():
    model = lm(cache=True)
    module = Debate()
    module.set_lm(model)
    call = ahead.call_of(module)
    assert call is not heard_steps
    one = in_a_row(module, {"text": "a"}, heard_steps)
    two = in_a_row(module, {"text": "a"}, call)
    assert dict(one[0].items()) == dict(two[0].items())
    assert one[1].calls == two[1].calls == 3
    assert [(p, i, dict(o.items())) for p, i, o in one[2]] == [(p, i, dict(o.items())) for p, i, o in two[2]]
    assert [p for p, _, _ in two[2]] == [module.pro, module.con.predict, module.judge]


@pytest.mark.parametrize("ahead_first", [False, True])
def test_calls_that_are_not_shared_find_their_answers_again(ahead_first):
    """A row that was begun one after the other goes on so, and the other way round."""
    asked = []

    def answer(request):
        asked.append(request.journal_key())
        return {"reasoning": "r", "argument": f"a {ahead_first}", "verdict": "v"}

    module = Debate()
    module.set_lm(ds.ScriptedLM(answer, cache=False))
    calls = [heard_steps, ahead.call_of(module)]
    first, second = reversed(calls) if ahead_first else calls
    inputs = {"text": f"kept {ahead_first}"}
    in_a_row(module, inputs, first)
    assert len({key for key in asked if key is not None}) == 3
    _, ticket, _ = in_a_row(module, inputs, second)
    assert (len(asked), ticket.calls, ticket.hits) == (3, 3, 3)


def test_what_was_foreseen_wrongly_is_simply_asked():
    module = Debate()
    module.set_lm(lm(cache=True))
    module.count = "x"
    call = ahead.call_of(module)
    module.pro = ds.Predict("text -> argument")  # another one since: the reading is of no use
    module.pro.lm = ds.ScriptedLM(lambda _request: {"argument": "another"}, cache=True)
    made, ticket, _ = in_a_row(module, {"text": "something else"}, call)
    assert made.sides[0] == "another"
    assert ticket.calls == 3


class Says(Debate):
    def __init__(self):
        super().__init__()
        self.tone = "first"

    def forward(self, text):
        pro, con = self.pro(text=text), self.con(text=text)
        return ds.Prediction(verdict=self.judge(pro=self.tone, con=con.argument).verdict, sides=pro.argument)


def test_a_setting_that_has_changed_is_asked_with():
    asked = []

    def answer(request):
        asked.append(request.tail[-1].content)
        return {"reasoning": "r", "argument": "a", "verdict": "v"}

    module = Says()
    module.set_lm(ds.ScriptedLM(answer, cache=True))
    call = ahead.call_of(module)
    module.tone = "second"
    in_a_row(module, {"text": "a"}, call)
    assert "second" in asked[-1]


def meeting(**options):
    """A model that gives two answers only once both have been asked for, and how many it was asked for."""
    both, asked = asyncio.Event(), []

    async def answer(request):
        asked.append(request)
        if len(asked) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 20)
        return {"reasoning": "r", "argument": "a", "verdict": "v"}

    return ds.ScriptedLM(answer, **options), asked


class Hears(ds.BaseCallback):
    def __init__(self):
        self.under, self.begun, self.ended = {}, [], []

    def _begins(self, call_id, instance, inputs):
        self.under[call_id] = (type(instance).__name__, events.ACTIVE_CALL_ID.get())
        self.begun.append((call_id, instance))

    def _ends(self, call_id, outputs, exception):
        assert exception is None
        self.ended.append(call_id)

    on_module_start = on_lm_start = _begins
    on_module_end = on_lm_end = _ends

    def above(self, call_id):
        names = []
        while call_id is not None:
            name, call_id = self.under[call_id]
            names.append(name)
        return names


@pytest.mark.parametrize("where", ["context", "model", "module", "part"])
def test_one_who_listens_hears_each_call_within_that_of_its_module(where):
    ears, module = Hears(), Debate()
    model, _ = meeting(callbacks=[ears] if where == "model" else [])
    if where in ("module", "part"):
        (module if where == "module" else module.con).callbacks = [ears]
    with ds.context(callbacks=[ears] if where == "context" else []):
        rows, _, _ = through(module, model, rows=[{"text": "a"}])
    assert rows[0]["verdict"] == "v"
    assert sorted(ears.ended) == sorted(ears.under)
    if where == "context":
        begun = [instance for _, instance in ears.begun if isinstance(instance, ds.Module)]
        assert begun == [module, module.pro, module.con, module.con.predict, module.judge]
        asked = [ears.above(call_id) for call_id, one in ears.begun if not isinstance(one, ds.Module)]
        last = ["Predict", "Debate"]
        assert [one[1:] for one in asked] == [last, ["Predict", "ChainOfThought", "Debate"], last]
    else:
        assert len(ears.begun) == {"model": 3, "module": 1, "part": 1}[where]


def test_a_callback_that_is_no_more_changes_nothing():
    ds.Predict("a -> b").callbacks.append(Hears())
    assert events.active
    model, asked = meeting()
    assert (through(Debate(), model, rows=[{"text": "a"}])[0][0]["verdict"], len(asked)) == ("v", 3)


def test_usage_is_that_of_each_prediction():
    class Used(Debate):
        def forward(self, text):
            pro, con = self.pro(text=text), self.con(text=text)
            made = self.judge(pro=pro.argument, con=con.argument)
            return ds.Prediction(verdict=made.verdict, used=[pro, con, made])

    tokens = []
    for split, model in ((None, meeting()[0]), (False, lm())):
        with ds.context(track_usage=True):
            rows, _, _ = through(Used(), model, rows=[{"text": "a"}], split=split)
        used = [one.get_lm_usage() for one in rows[0]["used"]]
        tokens.append([[usage["prompt_tokens"] for usage in one.values()] for one in used])
    assert tokens[0] == tokens[1]
    assert all(len(one) == 1 for one in tokens[0])


def test_history_and_a_trace_of_the_whole_process_are_kept():
    model, trace, module = meeting()[0], [], Debate()
    with ds.context(history_in_flows=True):
        before = ds.settings.trace
        ds.configure(trace=trace)
        try:
            through(module, model, rows=[{"text": "a"}])
        finally:
            ds.configure(trace=before)
    assert len(model.history) == 3
    assert [entry[0] for entry in trace] == [module.pro, module.con.predict, module.judge]


def counted(module, fails, retries=2, **options):
    asked = []

    def answer(request):
        asked.append(request)
        wanted = request.tail[-1].content.rsplit("Respond", 1)[-1]
        return {n: n for n in ("x", "y", "z", "w") if n not in fails and f"[[ ## {n} ## ]]" in wanted}

    stream = ds.Stream.from_iterable([{"q": "1"}], id="q").through(module, retries=retries, **options)
    report = stream.write(MemorySink()).run(lm=ds.ScriptedLM(answer, cache=False), state=None, quiet=True)
    assert report.dead_letters == 1
    return len(asked)


class Chain(ds.Module):
    def __init__(self):
        self.x, self.y = ds.Predict("q -> x"), ds.Predict("x -> y")
        self.z, self.w = ds.Predict("q -> z"), ds.Predict("z -> w")

    def forward(self, q):
        x = self.x(q=q)
        y, z = self.y(x=x.x), self.z(q=q)
        return ds.Prediction(y=y.y, w=self.w(z=z.z).w)


def test_a_failing_row_costs_no_more_than_what_was_begun_beside_the_failure():
    one_after_the_other = counted(Chain(), "x", split=False)
    assert one_after_the_other == 6  # asked, repaired, three times
    assert counted(Chain(), "x") == 6 + 1  # z of the first attempt; w is not begun
    assert counted(Chain(), "x", retries=0, split=False) == 2
    assert counted(Chain(), "x", retries=0) == 3


class Plain(ds.Module):
    def __init__(self):
        self.pro = ds.Predict("text -> argument")

    def forward(self, text):
        return self.pro(text=text)


def test_other_modules_are_called_as_ever():
    for module in (Plain(), Sequential(), ds.Predict("a -> b")):
        assert ahead.call_of(module) is heard_steps


def test_explain_says_what_is_asked_together_or_which_line_is_in_the_way():
    def explained(module, **options):
        return ds.Stream.from_iterable([]).through(module, **options).compile().explain()

    assert explained(Debate()).splitlines()[-1] == "01_Debate: asks pro, con at the same time"
    last = explained(Sequential()).splitlines()[-1]
    assert "01_Sequential: asks its predictors one after the other: " in last
    assert last.endswith("calls str, which is no predictor of its own")
    assert "at the same time" in explained(ds.Program(d=Debate()))
    last = explained(Debate(), split=True).splitlines()[-1]
    assert re.fullmatch(
        r"01_Debate: runs whole: .*test_ahead\.py:\d+: makes text of the output 'argument' of a call; "
        "asks pro, con at the same time",
        last,
    )
    quiet = {
        "its isolation is 'thread'": (Debate(), {"isolation": "thread"}),
        "a trace is kept of each row": (ds.Recorded(Debate()), {}),
        "it has open and close": (Opened(), {}),
    }
    for why, (module, options) in quiet.items():
        assert explained(module, **options).endswith(f"asks its predictors one after the other: {why}")
    assert "asks" not in explained(Debate(), split=False)


class Opened(Debate):
    def open(self):
        pass

    def close(self):
        pass
