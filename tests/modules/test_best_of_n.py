"""BestOfN: which attempt counts, what an attempt asks, failures, and rows at the same time."""

import asyncio

import pytest

from dspy_stream.configuration import configure, context
from dspy_stream.errors import ConfigurationError, LMAuthError, LMServerError
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.modules.best_of_n import BestOfN
from dspy_stream.modules.refine import Refine
from dspy_stream.modules.scope import SCOPE, TRACE, Clients, Scope
from dspy_stream.program import Prediction, PredictorParameters
from dspy_stream.runtime import aperform


def one_word(args, pred):
    return 1.0 if " " not in pred.answer else 0.0


def length(args, pred):
    return len(pred.answer)


def answers(*texts):
    return ScriptedLM([{"answer": text} for text in texts])


def best(lm=None, reward=one_word, n=3, threshold=1.0, **options):
    module = Predict("question -> answer")
    if lm is not None:
        module.set_lm(lm)
    return BestOfN(module, N=n, reward_fn=reward, threshold=threshold, **options)


def test_the_first_that_reaches_the_threshold_ends_it():
    lm = answers("It is Brussels", "Brussels", "never asked")
    assert best(lm)(question="?").answer == "Brussels"
    assert lm.call_count == 2


def test_the_best_counts_where_none_reaches_it_and_the_earliest_of_equals():
    assert best(answers("a", "ccc", "bbb"), length, threshold=9)(question="?").answer == "ccc"
    assert best(answers("a", "ccc", "bbb"), length, threshold=None)(question="?").answer == "ccc"


def test_each_attempt_asks_for_another_answer_at_temperature_one():
    lm = ScriptedLM(lambda request: {"answer": f"r{request.rollout_id}"}, temperature=0.0, cache=True)
    assert best(lm, lambda args, pred: pred.answer == "r2")(question="?").answer == "r2"
    assert [call.rollout_id for call in lm.calls] == [0, 1, 2]
    assert [call.options["temperature"] for call in lm.calls] == [1.0] * 3


def test_rollouts_begin_at_the_models_own_and_a_predictors_temperature_stays():
    lm = ScriptedLM(lambda request: {"answer": "a b"}, rollout_id=40)
    module = Predict("question -> answer", temperature=0.3)
    module.set_lm(lm)
    BestOfN(module, 2, one_word, 1.0)(question="?")
    assert [(call.rollout_id, call.options["temperature"]) for call in lm.calls] == [(40, 0.3), (41, 0.3)]
    assert module.lm is lm
    assert module.config == {"temperature": 0.3}


def test_what_is_in_the_journal_is_not_asked_again():
    configure(journal=DictJournal())
    lm = ScriptedLM(lambda request: {"answer": "a b"}, cache=True)
    module = best(lm)
    module(question="?")
    module(question="?")
    assert lm.call_count == 3


def test_attempts_within_attempts_all_differ():
    lm = ScriptedLM(lambda request: {"answer": "a b"}, cache=True)
    BestOfN(best(lm, n=3), N=2, reward_fn=one_word, threshold=1.0)(question="?")
    assert sorted(call.rollout_id for call in lm.calls) == list(range(6))


def test_every_predictor_below_is_tried_anew_and_the_module_stays_as_it_was():
    class Two(Module):
        def __init__(self):
            self.a = ChainOfThought("question -> draft")
            self.b = Predict("draft -> answer")

        def forward(self, question):
            return self.b(draft=self.a(question=question).draft)

    lm = ScriptedLM(lambda request: {"reasoning": "r", "draft": "d", "answer": "a b"})
    module = Two()
    before = module.dump_state()
    with context(lm=lm):
        BestOfN(module, 2, one_word, 1.0)(question="?")
    assert [call.rollout_id for call in lm.calls] == [0, 0, 1, 1]
    assert module.dump_state() == before
    assert module.a.predict.lm is None


def test_predictors_may_have_models_of_their_own():
    one, two = answers("a b", "a"), answers("x", "x")
    module = Module.__new__(type("Pair", (Module,), {"forward": _pair}))
    module.a, module.b = Predict("question -> answer"), Predict("question -> answer")
    module.a.lm, module.b.lm = one, two
    assert BestOfN(module, 3, one_word, 1.0)(question="?").answer == "a"
    assert (one.call_count, two.call_count) == (2, 2)


def _pair(self, question):
    self.b(question=question)
    return self.a(question=question)


class TestFailures:
    def failing(self, times):
        class Fails(Module):
            calls = 0

            def forward(self, question):
                type(self).calls += 1
                if type(self).calls <= times:
                    raise ValueError(f"failure {type(self).calls}")
                return Prediction(answer="ok")

        return Fails()

    def test_attempts_that_fail_are_passed_over(self, caplog):
        module = self.failing(2)
        assert BestOfN(module, 3, one_word, 1.0)(question="?").answer == "ok"
        assert [record.message for record in caplog.records] == [
            "BestOfN: attempt 1 failed: failure 1",
            "BestOfN: attempt 2 failed: failure 2",
        ]

    def test_the_last_failure_is_raised_where_nothing_went_through(self):
        with pytest.raises(ValueError, match="failure 3"):
            BestOfN(self.failing(9), 3, one_word, 1.0)(question="?")

    @pytest.mark.parametrize(("allowed", "calls"), [(0, 1), (1, 2), (2, 3)])
    def test_more_failures_than_are_allowed_are_raised(self, allowed, calls):
        module = self.failing(9)
        with pytest.raises(ValueError, match=f"failure {calls}"):
            BestOfN(module, 5, one_word, 1.0, fail_count=allowed)(question="?")
        assert type(module).calls == calls

    def test_the_count_begins_anew_with_every_call(self):
        class Odd(Module):
            calls = 0

            def forward(self, question):
                type(self).calls += 1
                if type(self).calls % 2:
                    raise ValueError("odd")
                return Prediction(answer="ok")

        module = BestOfN(Odd(), 2, one_word, 1.0, fail_count=1)
        assert [module(question="?").answer for _ in range(5)] == ["ok"] * 5
        assert module.fail_count == 1

    @pytest.mark.parametrize("wrong", [float("nan"), None, "much"])
    def test_a_reward_that_is_no_number_is_a_failure(self, wrong):
        rewards = iter([wrong, 0.5])
        lm = answers("a", "b")
        assert best(lm, lambda _args, _pred: next(rewards), n=2)(question="?").answer == "b"
        with pytest.raises(TypeError, match=f"reward_fn returned {wrong!r}, not a number"):
            best(answers("a", "b"), lambda _args, _pred: wrong, n=2)(question="?")

    def test_a_reward_that_raises_is_a_failure_too(self):
        def picky(args, pred):
            if pred.answer == "bad":
                raise KeyError("bad")
            return 1.0

        assert best(answers("bad", "good"), picky)(question="?").answer == "good"
        with pytest.raises(TypeError):
            best(answers("a", "b", "c"), lambda args, pred: None)(question="?")

    def test_an_earlier_success_outlives_a_later_failure(self):
        lm = ScriptedLM([{"answer": "a b"}, LMServerError("down"), LMServerError("down")])
        assert best(lm)(question="?").answer == "a b"

    def test_what_concerns_more_than_the_row_is_raised_at_once(self):
        lm = ScriptedLM([LMAuthError("no such key"), {"answer": "x"}])
        with pytest.raises(LMAuthError):
            best(lm)(question="?")
        assert lm.call_count == 1

    def test_n_is_at_least_one(self):
        with pytest.raises(ConfigurationError, match="N is 0"):
            best(n=0)


class TestRewards:
    def test_it_is_given_the_inputs_and_may_not_change_them(self):
        seen = []

        def reward(args, pred):
            seen.append(dict(args))
            args.clear()
            return 0

        best(answers("a", "b"), reward, n=2)(question="why?")
        assert seen == [{"question": "why?"}, {"question": "why?"}]

    def test_it_may_be_a_coroutine_function_or_a_prediction(self):
        async def slow(args, pred):
            await asyncio.sleep(0)
            return Prediction(score=len(pred.answer))

        module = best(answers("a", "ccc", "bb"), slow, threshold=3)
        assert module(question="?").answer == "ccc"
        module.module.set_lm(answers("a", "ccc", "bb"))
        assert asyncio.run(module.acall(question="?")).answer == "ccc"

    def test_a_judge_asks_under_the_outer_settings_and_is_no_parameter(self):
        judge = ChainOfThought("answer -> good: bool")
        judge_lm = ScriptedLM(
            [{"reasoning": "r", "good": "False"}, {"reasoning": "r", "good": "True"}], temperature=0.1
        )
        judge.set_lm(judge_lm)

        def reward(args, pred):
            return judge(answer=pred.answer).good

        lm = answers("a", "b")
        assert best(lm, reward)(question="?").answer == "b"
        assert [call.options["temperature"] for call in judge_lm.calls] == [0.1, 0.1]
        module = BestOfN(Predict("question -> answer"), 2, judge, 1.0)
        assert [name for name, _ in module.named_parameters()] == ["module"]


def test_the_trace_holds_the_calls_of_the_best_attempt_alone():
    module = best(answers("a", "ccc", "bb"), length, threshold=9)
    trace = []
    token = TRACE.set(trace)
    try:
        module(question="why?")
    finally:
        TRACE.reset(token)
    ((predictor, inputs, made),) = trace
    assert predictor is module.module
    assert (dict(inputs), made.answer) == ({"question": "why?"}, "ccc")


def test_rows_under_several_parameter_sets_at_the_same_time_do_not_mix():
    """Each attempt of each row answers with its row, its instructions and its rollout."""

    def reply(request):
        said = request.messages[0].content.rsplit("Your task:\n", 1)[1].strip()
        row = request.messages[-1].content.split("\n")[1]
        return {"answer": f"{row} {said} {request.rollout_id}"}

    module = best(reward=lambda args, pred: pred.answer.endswith(args["question"][-1]), n=4)
    lm = ScriptedLM(reply, latency=0.002)
    clients = Clients(DictJournal())
    scopes = [
        Scope(clients, lm=lm, parameters={id(module.module): PredictorParameters.of(instructions=text)})
        for text in ("One.", "Two.")
    ]

    async def row(number):
        SCOPE.set(scopes[number % 2])
        return (await aperform(module.steps({"question": f"q{number} {number % 4}"}))).answer

    async def main():
        return await asyncio.gather(*(row(number) for number in range(60)))

    assert asyncio.run(main()) == [
        f"q{number} {number % 4} {('One.', 'Two.')[number % 2]} {number % 4}" for number in range(60)
    ]
    assert len(scopes[0].attempts) == 3  # plans are shared by the rows


def test_a_flow_learns_the_fields_of_the_module():
    assert best().input_names() == best().required_names() == ("question",)


def test_attempts_of_many_rows_share_their_scopes():
    asks = Predict("question -> answer")
    inner = Refine(asks, 2, lambda args, pred: 0.0, 1.0)
    outer = BestOfN(inner, 3, lambda args, pred: 0.0, 1.0)
    lm = ScriptedLM(lambda request: {"answer": "x", "discussion": "y", "advice": {}})
    scope = Scope(Clients(None), lm=lm)
    token = SCOPE.set(scope)
    try:
        for number in range(20):
            assert outer(question=str(number)).answer == "x"
    finally:
        SCOPE.reset(token)
    made, waiting = 0, [scope]
    while waiting:
        found = list(waiting.pop().attempts.values())
        made += len(found)
        waiting += found
    assert made <= 3 + 3 * 2 * 2  # of the outer, and of the inner with and without a hint
