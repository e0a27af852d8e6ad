"""Rows that a server always fails, beside rows that it answers: over real sockets."""

from __future__ import annotations

from typing import Any

import pytest

from dspy_stream import runtime
from dspy_stream.errors import LMError
from dspy_stream.lm.base import LM
from dspy_stream.modules import Predict
from dspy_stream.stream import Stream
from tests.lm.server import ModelServer, Reply, Seen, completion


@pytest.mark.parametrize("bad", [1, 5])
def test_rows_that_always_fail_are_dead_letters_while_the_model_answers_others(bad: int) -> None:
    """The outage budget is shorter than the attempts at them take, and nobody else asks meanwhile."""

    def answer(seen: Seen) -> Reply:
        text = seen.json["messages"][-1]["content"]
        if any(f"question {number}." in text for number in range(bad)):
            return Reply(b'{"error":{"message":"boom"}}', status=500)
        return Reply(completion("[[ ## answer ## ]]\nx"))

    server = ModelServer(then=answer)
    runtime.run(server.__aenter__())
    try:
        lm = LM("openai/m", api_base=server.url, api_key="k", cache=False, num_retries=0)
        rows = [{"question": f"question {number}."} for number in range(16)]
        stream = Stream.from_iterable(rows).through(Predict("question -> answer"))
        report: Any = stream.run(lm=lm, outage=1.0, state=None, quiet=True)
    finally:
        runtime.run(server.__aexit__())
    assert (report.rows_out, report.dead_letters) == (16 - bad, bad)
    probes = [seen for seen in server.seen if b"one word: yes" in seen.body]
    assert 1 <= len(probes) <= 12
    assert len(server.seen) - len(probes) <= 16 + 7 * bad


def test_an_outage_from_the_first_call_on_ends_the_flow_after_a_question_of_our_own() -> None:
    """Most rows are never asked for, as the circuit is open: they make room for the question."""
    server = ModelServer(then=lambda seen: Reply(b'{"error":{"message":"boom"}}', status=500))
    runtime.run(server.__aenter__())
    try:
        lm = LM("openai/m", api_base=server.url, api_key="k", cache=False)
        rows = [{"question": f"question {number}."} for number in range(100)]
        stream = Stream.from_iterable(rows).through(Predict("question -> answer"))
        with pytest.raises(LMError, match="boom"):
            stream.run(lm=lm, outage=1.0, state=None, quiet=True)
    finally:
        runtime.run(server.__aexit__())
    assert any(b"one word: yes" in seen.body for seen in server.seen)
