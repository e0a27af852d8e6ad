"""A straight-line ``forward`` as a step: its predictors asked at the same time, all else as it stands."""

import asyncio

import pytest

import dspy_stream as ds
from dspy_stream.engine import Ticket
from dspy_stream.modules import ahead
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.scope import TICKET, TRACE
from dspy_stream.runtime import aperform, run
from dspy_stream.stream.sinks import MemorySink


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


def through(module, model, rows=({"text": "a"}, {"text": "b", "tone": "wry"}), **options):
    sink, letters = MemorySink(), MemorySink()
    stream = ds.Stream.from_iterable(list(rows), id="text").through(module, order="ordered")
    report = stream.write(sink, dead_letters=letters).run(lm=model, state=None, quiet=True, **options)
    told = [{k: v for k, v in row.fields["error"].items() if k != "where"} for row in letters.rows]
    return [dict(row.fields) for row in sink.rows], told, report


def test_predictors_that_do_not_need_each_other_are_asked_at_the_same_time():
    both = asyncio.Event()
    waiting = []

    async def answer(request):
        waiting.append(request)
        if len(waiting) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 20)
        return {"reasoning": "r", "argument": "a", "verdict": "v"}

    rows, letters, _ = through(Debate(), ds.ScriptedLM(answer), rows=[{"text": "a"}])
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


def test_one_who_listens_hears_the_program_s_own_order():
    heard = []

    class Hears(ds.BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            heard.append(inputs["messages"][-1]["content"][:60])

        def on_lm_end(self, call_id, outputs, exception):
            heard.append("end")

    with ds.context(callbacks=[Hears()]):
        through(Debate(), lm(cache=True), rows=[{"text": "a"}])
    assert [line == "end" for line in heard] == [False, True] * 3


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
    assert "at the same time" not in explained(Debate(), isolation="thread")
