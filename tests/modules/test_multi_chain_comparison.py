"""MultiChainComparison: the attempts in the prompt, their number, and rows at the same time."""

import asyncio

import pytest

from dspy_stream.configuration import context
from dspy_stream.errors import SignatureError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.modules.multi_chain_comparison import MultiChainComparison
from dspy_stream.program import Completions, Example, Prediction
from dspy_stream.runtime import aperform

TRIES = [
    {"rationale": "It is\nwide.", "answer": "one"},
    Prediction(reasoning="It is tall.", answer="two"),
    Example(reasoning="It is old.", answer="three"),
]
ANSWER = {"rationale": "Two of them agree.", "answer": "blue"}


def prompt(lm, call=-1):
    return lm.calls[call].messages[-1].content


def test_attempts_are_shown_in_order_and_the_answer_comes_back():
    compare = MultiChainComparison("question -> answer")
    lm = ScriptedLM([ANSWER])
    compare.set_lm(lm)
    made = compare(TRIES, question="Which?")
    assert (made.rationale, made.answer) == ("Two of them agree.", "blue")
    text = prompt(lm)
    places = [text.index(part) for part in ("Which?", "It is\nwide.", "It is tall.", "Answer: three")]
    assert places == sorted(places)
    assert lm.calls[0].options["temperature"] == 0.7


def test_fields_and_state_are_named_as_in_dspy():
    compare = MultiChainComparison("question -> draft, answer", M=2, temperature=0.1, max_tokens=9)
    signature = compare.predict.signature
    assert list(signature.input_fields) == ["question", "reasoning_attempt_1", "reasoning_attempt_2"]
    assert list(signature.output_fields) == ["rationale", "draft", "answer"]
    assert (compare.M, compare.last_key) == (2, "answer")
    assert compare.predict.config == {"temperature": 0.1, "max_tokens": 9}
    assert list(compare.dump_state()) == ["predict"]
    assert compare.input_names() == compare.required_names() == ("completions", "question")


def test_the_completions_of_a_prediction_are_attempts():
    compare = MultiChainComparison("question -> answer", M=2)
    lm = ScriptedLM([ANSWER, ANSWER])
    compare.set_lm(lm)
    both = {"reasoning": ["a", "b"], "answer": ["1", "2"]}
    assert compare(Prediction.from_completions(both), question="?").answer == "blue"
    assert compare(completions=Completions(both), question="?").answer == "blue"
    assert "a\nAnswer: 1" in prompt(lm)


@pytest.mark.parametrize("given", [[], TRIES[:2], [*TRIES, TRIES[0]], None])
def test_another_number_of_attempts_is_refused(given):
    compare = MultiChainComparison("question -> answer", M=3)
    tries = None if given is None else [dict(each.items()) for each in given]
    with pytest.raises(
        AssertionError, match=r"The number of attempts \(\d\) doesn't match the expected number M"
    ):
        compare(tries, question="?")


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        ({"answer": "x"}, "attempt 1 has no `rationale` or `reasoning`; it has: answer"),
        ({"reasoning": "x"}, "attempt 1 has no `answer`; it has: reasoning"),
        ("text", "attempt 1 is no mapping"),
    ],
)
def test_an_attempt_that_lacks_something_is_named(attempt, words):
    with pytest.raises(ValueError, match=words):
        MultiChainComparison("question -> answer", M=1)([attempt], question="?")


def test_a_signature_must_have_something_to_compare():
    with pytest.raises(SignatureError, match="M is 0"):
        MultiChainComparison("question -> answer", M=0)


def test_rows_at_the_same_time_do_not_mix():
    def echo(request):
        text = request.messages[-1].content
        return {"rationale": "r", "answer": text.split("Answer: ")[1].split("\n")[0]}

    compare = MultiChainComparison("question -> answer", M=1)
    lm = ScriptedLM(echo, latency=0.005)

    async def main():
        rows = [
            compare.acall([{"reasoning": "r", "answer": f"n{number}"}], question=str(number))
            if number % 2
            else aperform(
                compare.steps({"question": "q", "completions": [{"reasoning": "r", "answer": f"n{number}"}]})
            )
            for number in range(40)
        ]
        return await asyncio.gather(*rows)

    with context(lm=lm):
        assert [row.answer for row in asyncio.run(main())] == [f"n{number}" for number in range(40)]


def test_it_follows_a_chain_of_thought_with_several_completions():
    lines = [
        {"reasoning": "a", "answer": "1"},
        {"reasoning": "b", "answer": "2"},
        ANSWER,
    ]
    lm = ScriptedLM(lines)
    ask = Predict("question -> reasoning, answer")
    compare = MultiChainComparison("question -> answer", M=2)
    with context(lm=lm):
        tries = [ask(question="?", config={"rollout_id": number}) for number in range(2)]
        assert compare(tries, question="?").answer == "blue"
