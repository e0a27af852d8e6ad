"""Scopes: one module object under several parameter sets at the same time."""

import asyncio
import contextvars

import pytest

import dspy_stream as ds
from dspy_stream.adapters import JSONAdapter
from dspy_stream.configuration import context
from dspy_stream.errors import LMNotConfiguredError
from dspy_stream.lm import LocalLM
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Module, Predict
from dspy_stream.modules.scope import SCOPE, Clients, Scope, default_adapter, default_lm, process_clients
from dspy_stream.program import Prediction, PredictorParameters
from dspy_stream.runtime import aperform, perform, run
from dspy_stream.state.journal import MemoryJournal


class Pair(Module):
    def __init__(self):
        self.first = Predict("question -> answer")
        self.second = Predict("question -> answer")

    def forward(self, question):
        a = self.first(question=question).answer
        return Prediction(answers=[a, self.second(question=question).answer])


def instructed(request):
    """Answers with the instructions it was given."""
    return {"answer": request.messages[0].content.rsplit("Your task:\n", 1)[1].strip()}


def scope_of(module, lm, **instructions):
    parts = dict(module.named_parameters())
    parameters = {
        id(parts[name]): PredictorParameters.of(instructions=text) for name, text in instructions.items()
    }
    return Scope(Clients(MemoryJournal()), lm=lm, parameters=parameters)


def under(scope, fn, *args):
    found = contextvars.copy_context()
    found.run(SCOPE.set, scope)
    return found.run(fn, *args)


def test_two_scopes_over_one_module_answer_differently_and_leave_it_alone():
    module, lm = Pair(), ScriptedLM(instructed)
    before = module.dump_state()
    one = scope_of(module, lm, first="One.", second="One too.")
    two = scope_of(module, lm, first="Two.")

    async def row(scope, number):
        SCOPE.set(scope)
        return (await aperform(module.steps({"question": str(number)}))).answers

    async def main():
        return await asyncio.gather(*(row((one, two)[number % 2], number) for number in range(40)))

    own = module.second.signature.instructions
    answers = run(main())
    assert answers[0::2] == [["One.", "One too."]] * 20
    assert answers[1::2] == [["Two.", own]] * 20
    assert module.dump_state() == before
    assert SCOPE.get() is None


def test_demos_and_config_come_from_the_parameters():
    predict, lm = Predict("question -> answer", temperature=0.9), ScriptedLM({"": {"answer": "x"}})
    predict.demos = [{"question": "own", "answer": "1"}]
    given = PredictorParameters.of(demos=[{"question": "given", "answer": "2"}], config={"top_p": 0.5})
    scope = Scope(Clients(None), lm=lm, parameters={id(predict): given})
    under(scope, perform, predict.steps({"question": "q"}))
    (request,) = lm.calls
    assert dict(request.options) == {"top_p": 0.5}
    assert "given" in request.messages[1].content
    assert predict.demos == [{"question": "own", "answer": "1"}]


def test_a_model_in_the_parameters_goes_before_the_predictors_own():
    predict, own = Predict("question -> answer"), ScriptedLM([])
    predict.lm = own
    given = PredictorParameters.of(
        demos=[{"question": "a b", "answer": "demo"}], lm={"model": "local/nearest"}
    )
    scope = Scope(Clients(None), parameters={id(predict): given})
    assert under(scope, perform, predict.steps({"question": "a b"})).answer == "demo"
    assert own.call_count == 0


def test_a_plan_is_made_once_for_a_scope():
    module, lm = Pair(), ScriptedLM({"": {"answer": "x"}}, cache=False)
    scope = scope_of(module, lm, first="One.")
    for _ in range(3):
        under(scope, perform, module.steps({"question": "q"}))
    assert set(scope.plans) == {id(module.first), id(module.second)}
    assert len({id(request.head) for request in lm.calls}) == 2


def test_an_override_of_a_call_still_counts_under_a_scope():
    lm, other = ScriptedLM({"": {"answer": "scope"}}), ScriptedLM({"": {"answer": "call"}})
    predict = Predict("question -> answer")
    scope = Scope(Clients(None), lm=lm)

    def both():
        return predict(question="q").answer, predict(question="q", lm=other).answer

    assert under(scope, both) == ("scope", "call")


def test_an_override_of_one_thing_keeps_the_scopes_other_parameters():
    predict, lm = Predict("question -> answer"), ScriptedLM(instructed)
    scope = Scope(
        Clients(None), lm=lm, parameters={id(predict): PredictorParameters.of(instructions="Sing.")}
    )

    def call():
        return predict(question="q", config={"temperature": 0.5}).answer

    assert under(scope, call) == "Sing."


def test_the_scopes_model_goes_before_the_settings_and_after_the_predictors_own():
    own, scoped, configured = (ScriptedLM({"": {"answer": name}}) for name in ("own", "scope", "settings"))
    predict = Predict("question -> answer")
    scope = Scope(Clients(None), lm=scoped)

    def call():
        return predict(question="q").answer

    with context(lm=configured):
        assert call() == "settings"
        assert under(scope, call) == "scope"
    predict.lm = own
    assert under(Scope(Clients(None), lm=scoped), call) == "own"


def test_defaults():
    lm, adapter = LocalLM(), JSONAdapter()
    assert default_lm(Scope(Clients(None), lm=lm)) is lm
    assert default_adapter(Scope(Clients(None), adapter=adapter)) is adapter
    with pytest.raises(LMNotConfiguredError):
        default_lm(None)
    with context(lm="local/nearest", adapter=adapter):
        assert default_lm(Scope(Clients(None))).model == "local/nearest"
        assert default_adapter(None) is adapter


class TestClients:
    def test_a_model_is_connected_once(self):
        clients, lm = Clients(None), LocalLM()
        assert clients.get(lm) is clients.get(lm)
        assert clients.get(LocalLM()) is clients.get(lm), "equal models share their layers"
        assert clients.get(LocalLM(rollout_id=1)) is not clients.get(lm)

    def test_closing_reaches_every_layer(self):
        closed = []

        class Model(ScriptedLM):
            def connect(self, journal=None, **options):
                class Layer:
                    async def aclose(self):
                        closed.append(1)

                return Layer()

        clients = Clients(None)
        clients.get(Model([]))
        clients.get(Model([]))
        run(clients.aclose())
        assert closed == [1, 1]

    def test_outside_flows_there_is_one_set_for_each_journal(self):
        journal = MemoryJournal()
        assert process_clients() is process_clients()
        with context(journal=journal):
            inside = process_clients()
            assert inside is process_clients()
        assert inside is not process_clients()


class TestContextInAProgram:
    """A block in ``forward`` means the same in a flow as in a script."""

    class Two(ds.Module):
        def __init__(self, **block):
            self.a, self.b, self.own = (ds.Predict("text -> x") for _ in range(3))
            self.own.lm = answering("own")
            self.block = block

        def forward(self, text):
            before = self.a(text=text).x
            with ds.context(**self.block):
                inside, own = self.a(text=text).x, self.own(text=text).x
            return ds.Prediction(before=before, inside=inside, own=own, after=self.a(text=text).x)

    @pytest.mark.parametrize("isolation", ["inline", "thread"])
    def test_its_model(self, isolation):
        made = self.Two(lm=answering("inner"))
        expected = {"before": "outer", "inside": "inner", "own": "own", "after": "outer"}
        with ds.context(lm=answering("outer")):
            assert made(text="t").toDict() == expected
        for limit in (1, 3):
            stream = ds.Stream.from_iterable([{"text": f"t{n}"} for n in range(limit)])
            rows = stream.through(made, isolation=isolation).to_list(lm=answering("outer"))
            assert rows == [{"text": f"t{n}", **expected} for n in range(limit)]

    def test_its_adapter(self):
        asked = []

        def answer(request):
            asked.append("JSON" in request.messages[0].content)
            return {"x": "1"} if not asked[-1] else '{"x": "1"}'

        made = self.Two(adapter="json")
        made.own.lm = None
        stream = ds.Stream.from_iterable([{"text": "t"}]).through(made)
        stream.to_list(lm=ds.ScriptedLM(answer, cache=False))
        assert asked == [False, True, True, False]

    def test_adapters_made_for_every_row_are_not_kept(self):
        scope = Scope(process_clients())
        for _ in range(200):
            scope.within(None, ds.JSONAdapter())
        assert len(scope.inner) <= 64

    def test_in_an_attempt_of_a_refined_module(self):
        made = ds.BestOfN(
            self.Two(lm=answering("inner")), N=2, reward_fn=lambda _args, _made: 1.0, threshold=1.0
        )
        with ds.context(lm=answering("outer")):
            assert made(text="t").inside == "inner"


def answering(name):
    return ds.ScriptedLM(lambda _request: {"x": name}, model=f"scripted/{name}", cache=False)
