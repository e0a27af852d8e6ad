"""Refine: what the adviser is shown, what the next attempt is told, and what stays as it was."""

import asyncio
import functools

import pytest

from dspy_stream.configuration import context
from dspy_stream.errors import AdapterParseError, LMAuthError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.modules.refine import Refine, _described, _shown
from dspy_stream.modules.scope import TRACE
from dspy_stream.program import InputField, OutputField, Prediction, Signature


def one_word(args, pred):
    """One word is worth 1."""
    return 0.0 if " " in pred.answer else 1.0


class Two(Module):
    def __init__(self):
        self.think = ChainOfThought("question -> draft")
        self.write = Predict("draft -> answer")

    def forward(self, question):
        return self.write(draft=self.think(question=question).draft)


class Script:
    """Answers by what is asked; the adviser's answers are numbered."""

    def __init__(self, *answers, advice=None):
        self.answers = list(answers)
        self.advice = advice or (lambda number: {"self": f"advice {number}"})
        self.asked = []
        self.advised = []

    def __call__(self, request):
        text = request.messages[-1].content
        if "[[ ## module_names ## ]]" in text:
            self.advised.append(request)
            return {"discussion": "d", "advice": self.advice(len(self.advised))}
        self.asked.append(request)
        return {"reasoning": "r", "draft": "d", "answer": self.answers.pop(0)}


def turn(request):
    return request.messages[-1].content


def test_the_next_attempt_is_told_what_could_be_better():
    script = Script("two words", "also two", "one")
    module = Predict("question -> answer")
    with context(lm=ScriptedLM(script)):
        assert Refine(module, 3, one_word, 1.0)(question="why?").answer == "one"
    assert len(script.advised) == 2
    assert "hint_" not in turn(script.asked[0])
    assert "[[ ## hint_ ## ]]\nadvice 1" in turn(script.asked[1])
    assert "[[ ## hint_ ## ]]\nadvice 2" in turn(script.asked[2])
    assert [request.rollout_id for request in script.asked] == [0, 1, 2]
    assert {request.rollout_id for request in script.advised} == {None}
    assert list(module.signature.input_fields) == ["question"]


def test_the_adviser_sees_parts_calls_and_reward():
    class Poem(Signature):
        """Write it."""

        topic: str = InputField(desc="what it is about")
        answer: str = OutputField()

    script = Script("two words", "one")
    with context(lm=ScriptedLM(script)):
        Refine(Predict(Poem), 2, one_word, 1.0)(topic="rain")
    shown = turn(script.advised[0])
    for part in (
        "self: topic -> answer",
        "- topic: what it is about",
        "Write it.",
        '{"topic":"rain"}',
        '{"part":"self","inputs":{"topic":"rain"},"outputs":{"answer":"two words"}}',
        'return 0.0 if " " in pred.answer else 1.0',
        "[[ ## reward_value ## ]]\n0.0",
        "[[ ## threshold ## ]]\n1.0",
        '["self"]',
    ):
        assert part in shown


def test_every_part_is_told_its_own_and_others_nothing():
    script = Script(
        "unused", "a b", "unused", "one", advice=lambda _number: {"write": "shorter", "nobody": "x"}
    )
    with context(lm=ScriptedLM(script)):
        assert Refine(Two(), 2, one_word, 1.0)(question="why?").answer == "one"
    think, write = script.asked[2:]
    assert "[[ ## hint_ ## ]]\nN/A" in turn(think)
    assert "[[ ## hint_ ## ]]\nshorter" in turn(write)


def test_a_good_first_attempt_asks_for_no_advice():
    script = Script("one")
    with context(lm=ScriptedLM(script)):
        assert Refine(Predict("question -> answer"), 3, one_word, 1.0)(question="?").answer == "one"
    assert script.advised == []


def test_nobody_is_advised_after_the_last_attempt_and_the_best_counts():
    script = Script("a b c", "a b", "a b c d")
    with context(lm=ScriptedLM(script)):
        module = Refine(Predict("question -> answer"), 3, lambda args, pred: -len(pred.answer), None)
        assert module(question="?").answer == "a b"
    assert len(script.advised) == 2


def test_without_advice_the_next_attempt_goes_on(caplog):
    def reply(request):
        if "module_names" in turn(request):
            return "no fields at all"
        return {"answer": "one" if request.rollout_id else "a b"}

    with context(lm=ScriptedLM(reply)):
        assert Refine(Predict("question -> answer"), 2, one_word, 1.0)(question="?").answer == "one"
    assert "Refine: no advice could be had" in caplog.text


def test_a_wrong_key_is_not_taken_for_missing_advice():
    def reply(request):
        return LMAuthError("no") if "module_names" in turn(request) else {"answer": "a b"}

    with context(lm=ScriptedLM(reply)), pytest.raises(LMAuthError):
        Refine(Predict("question -> answer"), 2, one_word, 1.0)(question="?")


def test_failed_attempts_are_counted_as_for_best_of_n():
    with context(lm=ScriptedLM("unreadable")), pytest.raises(AdapterParseError):
        Refine(Predict("question -> answer"), 3, one_word, 1.0, fail_count=1)(question="?")


def test_a_module_without_predictors_is_tried_again_all_the_same():
    class Plain(Module):
        def forward(self, question):
            return Prediction(answer="a b")

    assert Refine(Plain(), 2, one_word, 1.0)(question="?").answer == "a b"


def test_the_state_is_that_of_the_module_and_the_trace_has_no_hints():
    script = Script("a b", "one")
    module = Refine(Predict("question -> answer"), 2, one_word, 1.0)
    assert list(module.dump_state()) == ["module"]
    trace = []
    token = TRACE.set(trace)
    try:
        with context(lm=ScriptedLM(script)):
            module(question="why?")
    finally:
        TRACE.reset(token)
    assert [dict(inputs) for _, inputs, _ in trace] == [{"question": "why?"}]


def test_rows_at_the_same_time_are_told_their_own_advice():
    def reply(request):
        text = turn(request)
        if "module_names" in text:
            row = text.split('{"question":"')[1].split('"')[0]
            return {"discussion": "d", "advice": {"self": f"advice for {row}"}}
        row = text.split("\n")[1]
        told = text.split("[[ ## hint_ ## ]]\n")[1].split("\n")[0] if "hint_" in text else "nothing new"
        return {"answer": f"{row}: {told}"}

    module = Refine(
        Predict("question -> answer"),
        3,
        lambda args, pred: f"advice for {args['question']}" in pred.answer,
        1.0,
    )

    async def main():
        return await asyncio.gather(*(module.acall(question=f"q{number}") for number in range(40)))

    with context(lm=ScriptedLM(reply, latency=0.002)):
        made = asyncio.run(main())
    assert [row.answer for row in made] == [f"q{number}: advice for q{number}" for number in range(40)]


def test_what_can_be_said_of_a_reward():
    class Judge:
        """Judges."""

        def __call__(self, args, pred):
            return 1.0

    assert _described(one_word).startswith("def one_word(args, pred):")
    assert "class Judge" in _described(Judge())
    assert _described(max).startswith("max(")
    assert "partial" in _described(functools.partial(one_word))


def test_values_are_shown_shortly_and_without_failing():
    class Opaque:
        pass

    assert _shown({"a": Opaque(), "b": (1, Prediction(c=2.5)), 3: None}) == (
        '{"a":"<Opaque>","b":[1,{"c":2.5}],"3":null}'
    )
    assert len(_shown("x" * 9000)) < 2100
    assert _shown({"a": float("nan")}) == '{"a":"<float>"}'
