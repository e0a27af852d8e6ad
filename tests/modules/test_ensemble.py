"""Ensemble: which programs are asked, all at the same time, and what is made of their answers."""

import asyncio
from collections import Counter

import pytest

from dspy_stream.configuration import context
from dspy_stream.engine import Ticket
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.modules.ensemble import Ensemble
from dspy_stream.modules.majority import majority
from dspy_stream.modules.scope import TICKET
from dspy_stream.program import Prediction
from dspy_stream.runtime import aperform


class Says(Module):
    def __init__(self, text):
        self.text = text

    def forward(self, question):
        return Prediction(answer=f"{self.text} {question}")


def says(*texts):
    return [Says(text) for text in texts]


def test_all_are_asked_and_listed_in_order():
    made = Ensemble().compile(says("a", "b", "c"))(question="?")
    assert [each.answer for each in made] == ["a ?", "b ?", "c ?"]


def test_the_majority_is_one_prediction():
    assert Ensemble(reduce_fn=majority).compile(says("a", "b", "b"))(question="?").answer == "b ?"


def test_they_are_asked_at_the_same_time():
    now = most = 0

    async def reply(request):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return {"answer": "x"}

    programs = [Predict("question -> answer", temperature=number / 10) for number in range(4)]
    with context(lm=ScriptedLM(reply)):
        Ensemble(reduce_fn=majority).compile(programs)(question="?")
    assert most == 4


def test_so_many_are_drawn_and_over_time_all():
    program = Ensemble(size=2).compile(says("a", "b", "c", "d"))
    seen = Counter(each.answer for _ in range(100) for each in program(question="?"))
    assert len(seen) == 4
    assert sum(seen.values()) == 200


def test_by_the_inputs_they_are_always_the_same():
    program = Ensemble(size=2, deterministic=True).compile(says(*"abcdefgh"))
    again = Ensemble(size=2, deterministic=True).compile(says(*"abcdefgh"))

    def drawn(program, question):
        return [each.answer for each in program(question=question)]

    assert all(drawn(program, f"q{n}") == drawn(again, f"q{n}") for n in range(20))
    assert len({tuple(answer[0] for answer in drawn(program, f"q{n}")) for n in range(20)}) > 5
    with pytest.raises(ConfigurationError, match="no JSON form"):
        program(question=object())


def test_a_row_that_is_tried_again_meets_the_same_programs():
    program = Ensemble(size=3).compile(says(*"abcdefgh"))

    async def attempt(row):
        TICKET.set(Ticket("run", "step", row))
        return [each.answer for each in await aperform(program.steps({"question": "?"}))]

    async def main():
        rows = [f"row{n}" for n in range(10) for _ in range(2)]
        return [await asyncio.ensure_future(attempt(row)) for row in rows]

    made = asyncio.run(main())
    assert made[::2] == made[1::2]
    assert len({tuple(each) for each in made}) > 3


def test_calls_of_the_programs_are_counted_for_the_row():
    program = Ensemble().compile([Predict("question -> answer"), ChainOfThought("question -> answer")])
    ticket = Ticket("run", "step", "row")
    token = TICKET.set(ticket)
    try:
        with context(lm=ScriptedLM(lambda request: {"reasoning": "r", "answer": "x"})):
            program(question="?")
    finally:
        TICKET.reset(token)
    assert ticket.calls == 2


def test_parts_have_names_and_the_fields_of_all():
    program = Ensemble().compile([Predict("question -> answer"), Predict("question, context -> answer")])
    assert list(program.dump_state()) == ["programs[0]", "programs[1]"]
    assert program.input_names() == program.required_names() == ("question", "context")


def test_the_first_failure_is_raised():
    class Fails(Says):
        def forward(self, question):
            raise ValueError(self.text)

    with pytest.raises(ValueError, match="one"):
        Ensemble().compile([*says("a"), Fails("one"), Fails("two")])(question="?")


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ConfigurationError, match="size is 0"):
        Ensemble(size=0)
    with pytest.raises(ConfigurationError, match="1 programs cannot make an ensemble of 2"):
        Ensemble(size=2).compile(says("a"))
    with pytest.raises(ConfigurationError, match="0 programs"):
        Ensemble().compile([])


def test_rows_at_the_same_time_do_not_mix():
    program = Ensemble(reduce_fn=majority).compile([Predict("question -> answer") for _ in range(3)])

    def echo(request):
        return {"answer": request.messages[-1].content.split("\n")[1]}

    async def main():
        return await asyncio.gather(*(program.acall(question=f"q{number}") for number in range(30)))

    with context(lm=ScriptedLM(echo, latency=0.002)):
        assert [row.answer for row in asyncio.run(main())] == [f"q{number}" for number in range(30)]
