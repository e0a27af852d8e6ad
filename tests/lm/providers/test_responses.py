"""OpenAI's responses: bodies, and answers of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dspy_stream.errors import (
    LMConfigurationError,
    LMIncompleteError,
    LMInvalidRequestError,
    LMRateLimitError,
)
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.openai import Responses
from dspy_stream.types import Head, Message, Request
from tests.lm.providers import answers
from tests.lm.providers.conversations import FORMAT, PDF, PIXEL, SCHEMA, SYSTEM, TOOL, TURNS, asked

FORMAT_OF = Responses("gpt-5-mini")


def sent(request: Request, model: str = "gpt-4o-mini") -> Any:
    return json.loads(Responses(model).encode(request))


def test_a_whole_conversation() -> None:
    head = Head("x/m", (SYSTEM, *TURNS[:1]), {"max_tokens": 100, "temperature": 0.2})
    assert sent(Request(head, TURNS[1:])) == {
        "model": "gpt-4o-mini",
        "max_output_tokens": 100,
        "temperature": 0.2,
        "store": False,
        "instructions": "Be brief",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
                ],
            },
            {"role": "assistant", "content": "Let me see"},
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "weather",
                "arguments": '{"city":"Paris"}',
            },
            {"type": "function_call", "call_id": "call_2", "name": "clock", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "18 degrees"},
            {"type": "function_call_output", "call_id": "call_2", "output": '{"time":"noon"}'},
            {"role": "user", "content": "And now?"},
        ],
    }


def test_files_and_reasoning_go_back() -> None:
    files = (
        {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "https://x.example/a.pdf"}},
    )
    blocks = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "status": None, "encrypted_content": "e"},
        {"type": "thinking", "thinking": "of another provider"},
    ]
    body = sent(asked(Message("user", files), Message("assistant", "a", {"reasoning_blocks": blocks})))
    assert body["input"] == [
        {
            "role": "user",
            "content": [
                {"type": "input_file", "filename": "a.pdf", "file_data": PDF},
                {"type": "input_file", "file_id": "file-1"},
                {"type": "input_file", "file_url": "https://x.example/a.pdf"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e"},
        {"role": "assistant", "content": "a"},
    ]
    sound = {"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}}
    with pytest.raises(LMInvalidRequestError, match="no audio"):
        sent(asked(Message("user", (sound,))))


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        (
            {"response_format": FORMAT, "verbosity": "low"},
            {
                "text": {
                    "format": {"type": "json_schema", "name": "report", "schema": SCHEMA, "strict": True},
                    "verbosity": "low",
                }
            },
        ),
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
        (
            {"reasoning_effort": "low", "reasoning": {"summary": "auto"}, "temperature": 1.0},
            {"reasoning": {"effort": "low", "summary": "auto"}},
        ),
        (
            {"tools": [TOOL, {"type": "web_search"}], "tool_choice": "required"},
            {
                "tools": [
                    {
                        "type": "function",
                        "name": "weather",
                        "parameters": TOOL["function"]["parameters"],  # type: ignore[index]
                        "strict": False,
                        "description": "Say what the weather is",
                    },
                    {"type": "web_search"},
                ],
                "tool_choice": "required",
            },
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tool_choice": {"type": "function", "name": "weather"}},
        ),
        (
            {"logprobs": True, "top_logprobs": 2},
            {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        ),
        ({"previous_response_id": "resp_1", "n": 1, "prompt_cache": False, "store": True}, {"store": True}),
    ],
)
def test_options(chosen: dict[str, Any], wanted: dict[str, Any]) -> None:
    body = sent(Request.of("x/m", "hi", **chosen), "gpt-5-mini")
    assert body.pop("input") == [{"role": "user", "content": "hi"}]
    secret = ["reasoning.encrypted_content"]
    if not wanted.get("store"):  # or what it thought could not go back to it
        wanted = {**wanted, "include": [*wanted.get("include", ()), *secret]}
    assert body == {"model": "gpt-5-mini", "store": False, **wanted}
    asked_for = {"include": secret, **chosen}
    assert secret[0] in sent(Request.of("x/m", "hi", **asked_for), "gpt-5-mini")["include"]
    assert secret[0] not in sent(Request.of("x/m", "hi", **chosen), "gpt-4o").get("include", ())


@pytest.mark.parametrize("chosen", [{"stop": "x"}, {"seed": 1}, {"logit_bias": {"1": 1}}])
def test_what_it_cannot_be_told_is_refused(chosen: dict[str, Any]) -> None:
    with pytest.raises(LMConfigurationError, match=next(iter(chosen))):
        sent(Request.of("x/m", "hi", **chosen))


def decoded(**changes: Any) -> Any:
    format = Responses("gpt-5", price=Price(10.0, 20.0, 1.0))
    return format.decode(200, {"x-request-id": "req"}, json.dumps({**answers.response(), **changes}).encode())


def test_an_answer_with_everything() -> None:
    response = decoded()
    (choice,) = response.choices
    assert (choice.text, choice.finish_reason) == (answers.TEXT, "tool_calls")
    assert choice.extra == {
        "reasoning_content": answers.THOUGHT,
        "reasoning_blocks": answers.response()["output"][:1],
        "annotations": [{"type": "url_citation"}],
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": json.dumps(answers.ARGUMENTS)},
            }
        ],
    }
    assert response.usage == (9, 5, pytest.approx((5 * 10 + 4 * 1 + 5 * 20) / 1e6), 4, 3, 0)
    assert response.request_id == "req"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("max_output_tokens", "length"), ("content_filter", "content_filter"), ("new", "length")],
)
def test_an_incomplete_response_says_why(reason: str, finish: str) -> None:
    response = decoded(status="incomplete", incomplete_details={"reason": reason})
    assert response.choices[0].finish_reason == finish


def test_a_refusal_is_no_text() -> None:
    message = {"type": "message", "content": [{"type": "refusal", "refusal": "I will not"}]}
    choice = decoded(output=[message]).choices[0]
    assert (choice.text, choice.finish_reason, choice.extra) == ("", "stop", {"refusal": "I will not"})


def test_a_call_of_a_tool_that_takes_free_text_is_kept() -> None:
    call = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_1", "name": "run", "input": "1 + 1"}
    choice = decoded(output=[call]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.extra == {
        "tool_calls": [{"id": "call_1", "type": "custom", "custom": {"name": "run", "input": "1 + 1"}}]
    }


def test_thinking_between_calls_goes_back_in_its_order() -> None:
    def thought(name: str) -> dict[str, Any]:
        return {"type": "reasoning", "id": name, "summary": [], "encrypted_content": name, "status": None}

    def call(name: str) -> dict[str, Any]:
        return {
            "type": "function_call",
            "id": f"fc_{name}",
            "call_id": name,
            "name": "weather",
            "arguments": "{}",
            "status": "completed",
        }

    said = answers.response()["output"][1]
    output = [thought("a"), said, call("1"), thought("b"), call("2")]
    choice = decoded(output=output).choices[0]
    assert choice.extra is not None
    assert [each["id"] for each in choice.extra["tool_calls"]] == ["1", "2"]
    body = sent(asked(Message("user", "q"), Message("assistant", choice.text, choice.extra)))
    went = body["input"][1:]
    assert [(item["type"], item.get("id")) for item in went] == [
        (item["type"], item.get("id")) for item in output
    ]
    assert [item.get("status") for item in went] == [None, said.get("status"), None, None, None]


def test_what_is_said_on_the_way_is_no_part_of_the_answer() -> None:
    def said(text: str, phase: str | None) -> dict[str, Any]:
        return {"type": "message", "phase": phase, "content": [{"type": "output_text", "text": text}]}

    aside, final = said("Let me look", "commentary"), said("Paris", "final_answer")
    choice = decoded(output=[aside, final]).choices[0]
    assert choice.text == "Paris"
    assert choice.extra == {"reasoning_content": "Let me look", "reasoning_blocks": [aside, final]}
    body = sent(asked(Message("user", "q"), Message("assistant", choice.text, choice.extra)))
    assert [item["phase"] for item in body["input"][1:]] == ["commentary", "final_answer"]
    assert decoded(output=[aside]).choices[0].text == "Let me look"
    assert decoded(output=[said("a", None), said("b", None)]).choices[0].text == "ab"


def test_what_is_no_finished_response_is_an_error() -> None:
    for status in ("in_progress", "queued", "cancelled"):
        with pytest.raises(LMIncompleteError, match=status):
            decoded(status=status)
    with pytest.raises(LMRateLimitError) as raised:
        decoded(status="failed", error={"code": "rate_limit_exceeded", "message": "slow"})
    assert raised.value.request_id == "req"
