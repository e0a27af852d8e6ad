"""What calls used, rolled up: on predictions, and in a block of code."""

import asyncio
from types import SimpleNamespace

import pytest

from dspy_stream.configuration import context
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.program import Prediction
from dspy_stream.types import Choice, Response, Usage
from dspy_stream.usage import UsageTracker, track_usage


def lm(model="scripted/one", usage=None, **options):
    """Answers every question with `yes`, and says that it used 10 tokens and 2."""
    reply = "\n\n".join(f"[[ ## {name} ## ]]\nyes" for name in ("reasoning", "answer"))
    used = usage or Usage(10, 2, 0.5)
    return ScriptedLM(lambda _request: Response((Choice(reply, "stop"),), used), model=model, **options)


def tokens(prompt, completion):
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


class Twice(Module):
    """Two predictors, of two models."""

    def __init__(self):
        self.first = Predict("question -> answer")
        self.second = ChainOfThought("question -> answer")
        self.first.lm = lm()
        self.second.predict.lm = lm("scripted/two")

    def forward(self, question):
        self.inner = self.first(question=question)
        self.second(question=question)
        return Prediction(answer=self.second(question=question + "?").answer)


class Later(Twice):
    forward = Module.forward

    async def aforward(self, question):
        await self.first.acall(question=question)
        await asyncio.gather(self.second.acall(question=question), self.second.acall(question=question + "?"))
        return Prediction(answer="yes")


ALL = {"scripted/one": tokens(10, 2), "scripted/two": tokens(20, 4)}


@pytest.mark.parametrize("program", [Twice, Later])
@pytest.mark.parametrize("waiting", [False, True])
def test_a_prediction_holds_what_all_calls_of_its_module_used(program, waiting):
    with context(track_usage=True):
        made = program()
        result = asyncio.run(made.acall(question="q")) if waiting else made(question="q")
    assert result.get_lm_usage() == ALL
    if program is Twice:
        assert made.inner.get_lm_usage() == {"scripted/one": tokens(10, 2)}, "and its parts their own"


def test_nothing_is_counted_unless_asked_for():
    assert Twice()(question="q").get_lm_usage() is None


def test_answers_from_the_journal_used_nothing():
    predict = Predict("question -> answer")
    with context(track_usage=True, journal=DictJournal(), lm=lm(cache=True)):
        assert predict(question="q").get_lm_usage() == {"scripted/one": tokens(10, 2)}
        assert predict(question="q").get_lm_usage() == {}


def test_a_block_counts_all_calls_inside_it_and_in_blocks_within():
    program = Twice()
    with track_usage() as outer:
        program(question="a")
        with track_usage() as inner:
            lm()("a prompt of its own")
        asyncio.run(lm().acall("and another"))
    lm()("outside")
    assert inner.get_total_tokens() == {"scripted/one": tokens(10, 2)}
    assert outer.get_total_tokens() == {"scripted/one": tokens(30, 6), "scripted/two": tokens(20, 4)}
    assert outer.calls == {"scripted/one": 3, "scripted/two": 2}
    assert outer.cost == 2.5


def test_details_are_there_where_there_were_any():
    with track_usage() as tracker:
        lm(usage=Usage(10, 5, None, cached_tokens=4, reasoning_tokens=3))("x")
    assert tracker.get_total_tokens()["scripted/one"] == {
        **tokens(10, 5),
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert tracker.cost is None, "unknown is not free"


def test_calls_are_there_one_by_one_and_no_more_than_are_kept(monkeypatch):
    monkeypatch.setattr("dspy_stream.usage._KEPT", 2)
    with track_usage() as tracker:
        for number in (1, 2, 3):
            lm(usage=Usage(number, 1))("x")
    assert tracker.usage_data == {"scripted/one": [tokens(2, 1), tokens(3, 1)]}
    assert tracker.get_total_tokens() == {"scripted/one": tokens(6, 3)}


@pytest.mark.parametrize("details", [dict, lambda **given: SimpleNamespace(**given)])
def test_a_model_of_ones_own_may_count_details(details):
    tracker = UsageTracker()
    entry = {
        **tokens(7, 5),
        "prompt_tokens_details": details(cached_tokens=4, audio_tokens=None),
        "completion_tokens_details": details(reasoning_tokens=3),
    }
    tracker.add_usage("mine", entry)
    tracker.add_usage(
        "mine", {**tokens(1, 1), "prompt_tokens_details": None, "completion_tokens_details": {}}
    )
    assert tracker.get_total_tokens()["mine"] == {
        **tokens(8, 6),
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }


def test_repairs_count():
    answers = [Response((Choice(text),), Usage(5, 1)) for text in ("no", "[[ ## answer ## ]]\nyes")]
    with context(track_usage=True):
        made = Predict("question -> answer: bool")(question="q", lm=ScriptedLM(answers))
    assert made.get_lm_usage() == {"scripted/model": tokens(10, 2)}


def test_several_completions_have_usage_too():
    reply = Response(tuple(Choice(f"[[ ## answer ## ]]\n{n}") for n in "ab"), Usage(7, 3))
    with context(track_usage=True):
        made = Predict("question -> answer", n=2)(question="q", lm=ScriptedLM([reply]))
    assert made.completions.answer == ["a", "b"]
    assert made.get_lm_usage() == {"scripted/model": tokens(7, 3)}


def test_a_forward_inside_a_flow_sees_its_own_usage():
    from dspy_stream.stream import Stream

    class Counting(Twice):
        def forward(self, question):
            with track_usage() as tracker:
                super().forward(question)
            return Prediction(used=tracker.calls)

    program = Counting()
    found = Stream.from_iterable([{"question": f"q{n}"} for n in range(20)]).through(program).to_list()
    assert [row["used"] for row in found] == [{"scripted/one": 1, "scripted/two": 2}] * 20


def test_usage_in_openais_form_keeps_its_details_and_cost():
    tracker = UsageTracker()
    entry = {
        **{"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "cost": 0.5},
        **{
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }
    tracker.add_usage("x", entry)
    tracker.add_usage("x", {"prompt_tokens": None, "completion_tokens": 2, "prompt_tokens_details": None})
    assert tracker.get_total_tokens()["x"] == {
        **{"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
        **{
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }
    assert tracker.cost == 0.5
