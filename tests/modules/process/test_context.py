"""What a row runs under reaches its worker: hints, settings, traces; and nothing of another row does."""

import math

import pytest

import dspy_stream as ds
from dspy_stream import configuration
from dspy_stream.lm.cache import DictJournal
from dspy_stream.modules import hosts
from dspy_stream.modules.process.scopes import _KEPT
from dspy_stream.modules.process.workers import _SCOPES
from dspy_stream.modules.scope import SCOPE, Scope, process_clients
from dspy_stream.runtime import run as on_loop
from tests.modules.process.programs import Hinted, Leaves, Raises, Settles, Threaded

WHERE = [{}, {"isolation": "thread"}, {"isolation": "process", "workers": 1}]


@pytest.fixture(autouse=True)
def settings():
    ds.configure(journal=DictJournal())
    yield
    ds.configure(journal=None, lm=None, adapter=None, max_trace_size=10_000)
    configuration._given.pop("mine", None)
    for found in hosts._process:
        on_loop(found.aclose())
    hosts._process.clear()


def part(module, options):
    return ds.Program(part=module.using(**options))


def host_of(_program):
    (found,) = hosts._process
    return next(iter(found._hosted.values())).host


@pytest.mark.parametrize("options", WHERE, ids=["inline", "thread", "process"])
class TestEverywhere:
    def test_a_hint_of_refine_reaches_the_predictor(self, options):
        seen = []

        def answer(request):
            text = request.messages[-1].content
            seen.append(text)
            if "module_names" in text:
                return {"discussion": "A sentence.", "advice": {next(iter(parts)): "Write one word."}}
            return {"answer": "one" if "Write one word." in text else "a sentence"}

        program = part(Hinted(), options)
        parts = dict(program.named_predictors())
        refined = ds.Refine(program, 3, lambda args, pred: float(" " not in pred.answer), 1.0)
        with ds.context(lm=ds.ScriptedLM(answer, cache=True)):
            assert refined(question="q").answer == "one"
        assert len(seen) == 3
        assert "a sentence" in seen[1]  # the adviser has seen the calls

    def test_settings_of_a_context_hold(self, options):
        program = part(Hinted(), options)
        lm = ds.ScriptedLM(lambda request: {"answer": "x"}, cache=True)
        with ds.context(lm=lm, track_usage=True, num_threads=3):
            made = program(question="q")
        assert (made.tracked, made.threads, made.calls) == (True, 3, 1)
        assert len(made.get_lm_usage()) == 1
        with ds.context(lm=lm):
            assert program(question="q").tracked is False

    def test_settings_of_the_program_s_own_hold(self, options):
        program = part(Settles(), options)
        ds.configure(mine="mine", max_trace_size=77, adapter=ds.JSONAdapter())
        wanted = {"mine": "mine", "table": "none", "size": 77, "adapter": "JSONAdapter"}
        assert program(n=1).toDict() == wanted
        with ds.context(mine={"a": [1.5, None]}, table=[True], adapter=ds.XMLAdapter()):
            made = program(n=1).toDict()
        assert made == {"mine": {"a": [1.5, None]}, "table": [True], "size": 77, "adapter": "XMLAdapter"}
        assert program(n=1).toDict() == wanted

    @pytest.mark.parametrize("fallback", [True, False])
    def test_an_adapter_with_options_holds(self, options, fallback):
        program = part(Hinted(), options)
        adapter = ds.ChatAdapter(use_json_adapter_fallback=fallback)
        answers = iter(["no answer", "still none", '{"answer": "json"}'])
        with ds.context(lm=ds.ScriptedLM(lambda request: next(answers)), adapter=adapter):
            if fallback:
                assert program(question="q").answer == "json"
            else:
                with pytest.raises(ds.AdapterParseError):
                    program(question="q")

    def test_a_trace_has_the_calls(self, options):
        program = part(Hinted(), options)
        trace = []
        with ds.context(lm=ds.ScriptedLM(lambda request: {"answer": "x"}, cache=True), trace=trace):
            program(question="q")
        assert [(call[0], call[1], call[2].answer) for call in trace] == [
            (program.predictors()[0], {"question": "q"}, "x")
        ]

    def test_a_model_and_an_adapter_of_a_context_hold(self, options):
        program = part(Hinted(), options)
        seen = []

        def answer(request):
            seen.append(request.messages)
            return '{"answer": "x"}'

        with ds.context(lm=ds.ScriptedLM(answer, cache=True), adapter="json"):
            assert program(question="q").answer == "x"
        assert "json" in str(seen[0]).lower()

    def test_a_thread_of_the_code_s_own_may_ask(self, options):
        program = part(Threaded(), options)
        ds.configure(lm=ds.ScriptedLM(lambda request: {"answer": "x"}, cache=True))
        assert program(question="q").answer == "x"

    @pytest.mark.parametrize("what", ["huge", "large", "half", "none", "unsaid"])
    def test_odd_failures_are_told(self, options, what):
        program = part(Raises(), options)
        with pytest.raises(Exception) as caught:
            program(what=what)
        if what == "unsaid":
            return
        assert type(caught.value) is (KeyError if what == "huge" else ValueError)
        if what == "none":
            assert math.isnan(caught.value.args[0])
        else:
            args = {"huge": (10**5000,), "large": (2**70, -(2**64)), "half": ("half \ud800 of a pair",)}
            assert caught.value.args == args[what]


def test_what_a_row_leaves_behind_does_not_ask_for_the_next_one():
    asked = []

    def answer(request):
        asked.append(request)
        return {"answer": "x"}

    program = part(Leaves(), WHERE[2])
    with ds.context(lm=ds.ScriptedLM(answer, cache=True)):
        program(question="first")
        assert program(question="second").answer == "RowError: the row that this question belongs to is over"
    assert asked == []


def test_a_setting_that_cannot_go_along_is_named_once(caplog):
    program = part(Settles(), WHERE[2])
    with ds.context(mine=object(), table=1):
        made = [program(n=n) for n in range(2)]
    assert [(each.mine, each.table) for each in made] == [("none", 1)] * 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert "the setting mine is no plain value but of type object" in said


def test_what_is_kept_of_scopes_is_bounded():
    program = part(Hinted(), WHERE[2])
    lm = ds.ScriptedLM(lambda request: {"answer": "x"}, cache=True)
    asks = program.predictors()[0]
    for number in range(2 * _KEPT):
        asks.demos = [{"question": str(number), "answer": "y"}]
        token = SCOPE.set(Scope(process_clients(), lm=lm))
        try:
            assert program(question="q").answer == "x"
        finally:
            SCOPE.reset(token)
    host = host_of(program)
    assert len(host._scopes._known) <= _KEPT
    (worker,) = host._pool._all
    assert len(worker.scopes) <= _SCOPES
    assert set(worker.scopes.values()) <= set(range(_SCOPES))
