"""Recorded: traces that travel with their rows."""

import asyncio

import pytest

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules.recorded import Recorded


class Twice(ds.Module):
    def __init__(self):
        super().__init__()
        self.first = ds.Predict("question -> answer")
        self.second = ds.ChainOfThought("answer -> more: int")

    def forward(self, question):
        return self.second(answer=self.first(question=question).answer)


def model():
    def answer(request):
        asked = request.messages[-1].content
        return (
            {"reasoning": "r", "more": 3}
            if "`[[ ## more" in asked or "more" in asked
            else {"answer": asked[:40]}
        )

    return ScriptedLM(answer)


def test_in_a_script_and_from_a_coroutine():
    recorded = Recorded(Twice())
    with ds.context(lm=model()):
        made = recorded(question="q")
        again = asyncio.run(recorded.acall(question="q"))
    assert made.more == again.more == 3
    assert [(call["predictor"], list(call["inputs"]), list(call["outputs"])) for call in made.trace] == [
        ("first", ["question"], ["answer"]),
        ("second.predict", ["answer"], ["reasoning", "more"]),
    ]
    assert made.trace[1]["inputs"]["answer"] == made.trace[0]["outputs"]["answer"]
    assert again.trace == made.trace


def test_every_row_of_a_flow_has_its_own():
    rows = [{"question": f"number {n}"} for n in range(6)]
    out = ds.Stream.from_iterable(rows).through(Recorded(Twice(), "how"), capacity=3).to_list(lm=model())
    assert len(out) == 6
    for row in out:
        assert [call["predictor"] for call in row["how"]] == ["first", "second.predict"]
        assert row["how"][0]["inputs"] == {"question": row["question"]}


def test_parameters_keep_their_names_and_the_outer_trace_its_entries():
    recorded = Recorded(Twice())
    assert [name for name, _ in recorded.named_parameters()] == ["first", "second.predict"]
    assert recorded.output_names() is None
    assert Recorded(ds.Predict("a -> b")).output_names() == ("b", "trace")
    with ds.context(lm=model(), trace=[]):
        recorded(question="q")
        assert len(ds.settings.trace) == 2


def test_a_row_that_fails_fails():
    class Fails(ds.Module):
        def forward(self, question):
            raise KeyError(question)

    with pytest.raises(KeyError):
        Recorded(Fails())(question="q")
    with pytest.raises(TypeError, match="returned int"):
        Recorded(ds.modules.part.Apply(lambda question: {"x": 1}).__class__(lambda question: 3))(question="q")
    with pytest.raises(ConfigurationError, match="name of a field"):
        Recorded(Twice(), "no name")
    with pytest.raises(ValueError, match="by name"):
        asyncio.run(Recorded(Twice()).acall("q"))
