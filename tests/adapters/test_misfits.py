"""Demos whose outputs are no answers are told of, once."""

from typing import Literal

from dspy_stream.adapters.misfits import misfits, tell_misfits
from dspy_stream.program import Example, InputField, OutputField, Signature


class Triage(Signature):
    text: str = InputField()
    kind: Literal["card", "loan"] = OutputField()
    urgency: int = OutputField(ge=1, le=5)
    more: dict[str, int] = OutputField()


def test_only_what_would_be_refused_as_an_answer_is_named():
    demos = [
        {"text": "a", "kind": "card", "urgency": 5, "more": "whatever"},
        Example(text="b", kind="debit", urgency=3),
        {"text": "c", "kind": None, "urgency": 9},
    ]
    first, second = misfits(Triage, demos)
    assert first.startswith("demo 2 shows what is no answer: kind: 'debit' is not one of card, loan")
    assert second.startswith("demo 3 shows what is no answer: urgency: ")


def test_it_is_said_once(caplog):
    for _ in range(2):
        tell_misfits(Triage, [{"text": "b", "kind": "said once"}])
    (said,) = caplog.messages
    assert "a model that copies it is refused" in said
