"""ScriptedLM: every kind of script and line."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from dspy_stream.clock import FakeClock
from dspy_stream.errors import LMConfigurationError, LMRateLimitError
from dspy_stream.lm import ScriptedLM
from dspy_stream.types import Choice, Request, Response, Usage


def test_lines_are_used_in_order_and_calls_are_kept() -> None:
    lm = ScriptedLM(["one", "two"], temperature=0.5)
    assert (lm("a"), lm("b")) == (["one"], ["two"])
    assert [call.tail[0].content for call in lm.calls] == ["a", "b"]
    assert lm.calls[0].options == {"temperature": 0.5}


def test_a_script_that_runs_out_says_so() -> None:
    lm = ScriptedLM(["one"])
    lm("a")
    with pytest.raises(LMConfigurationError, match=r"all 1 lines.*'what now\?'"):
        lm("what now?")


def test_lines_by_piece_of_text() -> None:
    lm = ScriptedLM({"card": "c", "pin": ["p1", "p2"]}, cache=False)
    assert [lm(text)[0] for text in ("my card", "my pin", "a card", "the pin")] == ["c", "p1", "c", "p2"]
    with pytest.raises(LMConfigurationError, match="all 2 lines"):
        lm("pin again")
    with pytest.raises(LMConfigurationError, match=r"none of 'card', 'pin' occurs"):
        lm("nothing")


def test_only_the_last_turn_of_the_user_is_searched() -> None:
    lm = ScriptedLM({"old": "o", "new": "n"})
    turns = [("user", "old"), ("assistant", "old"), ("user", "new"), ("assistant", "old")]
    assert lm(messages=[{"role": role, "content": text} for role, text in turns]) == ["n"]


def test_functions_and_coroutine_functions() -> None:
    def plain(request: Request) -> Any:
        return request.tail[0].content[::-1]

    async def slow(request: Request) -> Any:
        await asyncio.sleep(0)
        return LMRateLimitError("busy") if request.tail[0].content == "x" else "fine"

    assert ScriptedLM(plain)("abc") == ["cba"]
    lm = ScriptedLM(slow)
    assert lm("a") == ["fine"]
    with pytest.raises(LMRateLimitError):
        lm("x")


def test_every_kind_of_line() -> None:
    fields = {"intent": "refund", "tags": ["a"]}
    lines = [
        fields,
        Choice("cut", "length"),
        Response((Choice("a"), Choice("b")), Usage(7, 8)),
        ValueError("bug"),
    ]
    lm = ScriptedLM(lines, cache=False)
    assert lm("1") == ['[[ ## intent ## ]]\nrefund\n\n[[ ## tags ## ]]\n["a"]\n\n[[ ## completed ## ]]']
    assert lm("2") == ["cut"]
    assert lm("3") == ["a", "b"]
    with pytest.raises(ValueError, match="bug"):
        lm("4")
    assert json.loads(ScriptedLM([fields], answers_as="json")("5")[0]) == fields
    with pytest.raises(LMConfigurationError, match="not 42"):
        ScriptedLM([42])("6")  # type: ignore[list-item]


def test_one_text_answers_everything_and_keeps_no_record_if_told_so() -> None:
    lm = ScriptedLM("always", record=False, cache=False)
    assert [lm(text)[0] for text in "abc"] == ["always"] * 3
    assert (lm.call_count, lm.calls) == (3, [])


def test_the_wait_is_the_clock_s() -> None:
    clock = FakeClock()
    layer = ScriptedLM("x", latency=0.5).connect(clock=clock)
    asyncio.run(layer(Request.of("scripted/model", "hi")))
    assert clock.slept == [0.5]


def test_a_copy_follows_the_same_script() -> None:
    lm = ScriptedLM(["one", "two"], temperature=0.0)
    other = lm.copy(temperature=1.0, rollout_id=4)
    assert (lm("a"), other("a")) == (["one"], ["two"])
    assert [(call.options["temperature"], call.rollout_id) for call in lm.calls] == [(0.0, None), (1.0, 4)]


def test_models_with_scripts_are_never_the_same() -> None:
    one, other = ScriptedLM("x"), ScriptedLM("x")
    assert one == one
    assert one != other
    assert one.identity() == {"model": "scripted/model", "options": {}}
