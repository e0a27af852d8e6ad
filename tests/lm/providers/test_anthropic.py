"""Anthropic's messages: bodies as its documentation shows them, and answers of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dspy_stream.errors import LMConfigurationError, LMInvalidRequestError
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.anthropic import Messages
from dspy_stream.types import Head, Message, Request
from tests.lm.providers import answers
from tests.lm.providers.conversations import CALLS, FORMAT, PDF, SCHEMA, SYSTEM, TOOL, TURNS, asked

SONNET = Messages("claude-sonnet-4-5")
MARK = {"type": "ephemeral"}


def sent(request: Request, format: Messages = SONNET) -> Any:
    return json.loads(format.encode(request))


def options(model: str, **chosen: Any) -> Any:
    body = sent(Request.of("x/m", "hi", **chosen), Messages(model))
    del body["messages"], body["model"]
    return body


def test_a_whole_conversation() -> None:
    head = Head(
        "x/m", (SYSTEM, *TURNS[:1]), {"max_tokens": 100, "temperature": 0.2, "stop": "END", "user": "u-1"}
    )
    assert sent(Request(head, TURNS[1:])) == {
        "model": "claude-sonnet-4-5",
        "max_tokens": 100,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "temperature": 0.2,
        "system": [{"type": "text", "text": "Be brief"}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                        "cache_control": MARK,
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me see"},
                    {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}},
                    {"type": "tool_use", "id": "call_2", "name": "clock", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "18 degrees"},
                    {"type": "tool_result", "tool_use_id": "call_2", "content": '{"time":"noon"}'},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
    }


def test_the_mark_is_at_the_end_of_what_rows_share() -> None:
    alone = sent(Request(Head("x/m", (SYSTEM,)), (Message("user", "hi"),)))
    assert alone["system"] == [{"type": "text", "text": "Be brief", "cache_control": MARK}]
    demos = (SYSTEM, Message("user", "1+1"), Message("assistant", "2"))
    shared = sent(Request(Head("x/m", demos), (Message("user", "2+2"),)))
    assert "cache_control" not in shared["system"][0]
    assert shared["messages"][1]["content"] == [{"type": "text", "text": "2", "cache_control": MARK}]
    assert "cache_control" not in json.dumps(shared["messages"][2])
    for request in (
        Request(Head("x/m", demos, {"prompt_cache": False}), (Message("user", "2+2"),)),
        asked(*demos, Message("user", "2+2")),
    ):
        assert "cache_control" not in json.dumps(sent(request))
    own = Message(
        "system", ({"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}},)
    )
    body = json.dumps(sent(Request(Head("x/m", (own, *demos)), (Message("user", "2+2"),))))
    assert body.count("cache_control") == 1
    assert '"ttl": "1h"' in body


def test_a_turn_of_the_head_goes_on_in_the_row() -> None:
    head = Head("x/m", (Message("user", "The document"),))
    for text in ("first", "second"):
        (turn,) = sent(Request(head, (Message("user", text),)))["messages"]
        assert [block["text"] for block in turn["content"]] == ["The document", text]


def test_documents_and_files() -> None:
    files = (
        {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_data": "data:text/plain;base64,aGk="}},
        {"type": "file", "file": {"file_id": "file_1"}},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
    )
    assert sent(asked(Message("user", files)))["messages"][0]["content"] == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}},
        files[-1],
    ]
    with pytest.raises(LMInvalidRequestError, match="no audio"):
        sent(
            asked(Message("user", ({"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}},)))
        )


@pytest.mark.parametrize(
    ("model", "chosen", "wanted"),
    [
        ("claude-3-opus-20240229", {}, {"max_tokens": 4096}),
        ("claude-3-5-haiku-20241022", {}, {"max_tokens": 8192}),
        ("claude-haiku-4-5", {"max_completion_tokens": 7}, {"max_tokens": 7}),
        (
            "claude-sonnet-4-5",
            {"reasoning_effort": "low", "temperature": 0.3},
            {"max_tokens": 8192 + 2048, "thinking": {"type": "enabled", "budget_tokens": 2048}},
        ),
        (
            "claude-3-7-sonnet-20250219",
            {"reasoning_effort": "high", "max_tokens": 10_000},
            {"max_tokens": 10_000, "thinking": {"type": "enabled", "budget_tokens": 5000}},
        ),
        ("claude-sonnet-4-5", {"reasoning_effort": "none"}, {"max_tokens": 8192}),
        (
            "claude-opus-4-6",
            {"reasoning_effort": "minimal", "max_tokens": 99},
            {"max_tokens": 99, "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        ),
        (
            "claude-sonnet-4-5",
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000, "top_p": 0.9},
            {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        ),
        ("claude-opus-4-7", {"temperature": 0.0}, {"max_tokens": 8192}),
        ("claude-sonnet-4-5", {"n": 1, "seed": None, "top_k": 5}, {"max_tokens": 8192, "top_k": 5}),
    ],
)
def test_options(model: str, chosen: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert options(model, **chosen) == wanted


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"reasoning_effort": "low", "max_tokens": 1000}, "at least 2048"),
        ({"reasoning_effort": "wild"}, "is one of"),
    ],
)
def test_what_it_cannot_be_told_is_refused(chosen: dict[str, Any], says: str) -> None:
    with pytest.raises(LMConfigurationError, match=says):
        options("claude-sonnet-4-5", **chosen)
    with pytest.raises(LMConfigurationError, match="does not reason"):
        options("claude-3-5-haiku-20241022", reasoning_effort="low")


def test_tools() -> None:
    body = options(
        "claude-sonnet-4-5",
        tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}],
        tool_choice="required",
    )
    assert body["tools"] == [
        {
            "name": "weather",
            "description": "Say what the weather is",
            "input_schema": TOOL["function"]["parameters"],  # type: ignore[index]
        },
        {"type": "web_search_20250305", "name": "web_search"},
    ]
    assert body["tool_choice"] == {"type": "any"}
    named = {"type": "function", "function": {"name": "weather"}}
    body = options("claude-sonnet-4-5", tools=[TOOL], tool_choice=named, parallel_tool_calls=False)
    assert body["tool_choice"] == {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}


def test_an_answer_is_held_to_a_schema_by_what_the_model_has() -> None:
    closed = {**SCHEMA, "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}}}
    body = options("claude-haiku-4-5", response_format=FORMAT)
    assert body == {
        "max_tokens": 8192,
        "output_config": {"format": {"type": "json_schema", "schema": closed}},
    }
    body = options("claude-3-5-haiku-20241022", response_format=FORMAT)
    assert body["tools"][0]["input_schema"] == SCHEMA
    assert body["tool_choice"] == {"type": "tool", "name": "give_the_answer"}
    open_schema = {"type": "object", "additionalProperties": {"type": "string"}}
    open_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": open_schema}}
    body = options("claude-haiku-4-5", response_format=open_format, tools=[TOOL])
    assert [tool["name"] for tool in body["tools"]] == ["weather", "give_the_answer"]
    assert body["tool_choice"] == {"type": "any"}
    body = options("claude-sonnet-4-0", response_format=FORMAT, reasoning_effort="low")
    assert body["tool_choice"] == {"type": "auto"}
    assert options("claude-haiku-4-5", response_format={"type": "json_object"}) == {"max_tokens": 8192}
    body = options("claude-opus-4-6", response_format=FORMAT, reasoning_effort="high")
    assert body["output_config"] == {"effort": "high", "format": {"type": "json_schema", "schema": closed}}


@pytest.mark.parametrize(
    ("model", "chosen", "wanted"),
    [
        # Opus 5.5 and the Fables refuse thinking that is off or has a budget; effort is all they take.
        ("claude-opus-5-5", {"reasoning_effort": "none"}, {"output_config": {"effort": "low"}}),
        ("claude-fable-5-1", {"thinking": {"type": "disabled"}}, {"output_config": {"effort": "low"}}),
        # Sonnet 5.5 refuses ``disabled`` too, and has a word of its own for no thinking up front.
        ("claude-sonnet-5-5", {"reasoning_effort": "none"}, {"thinking": {"type": "between_tools"}}),
        # Those that think by default and may be told not to.
        ("claude-haiku-5-5", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ("claude-opus-5", {"reasoning_effort": "disable"}, {"thinking": {"type": "disabled"}}),
        # These do not think by default.
        ("claude-opus-4-8", {"reasoning_effort": "none"}, {}),
        ("claude-opus-4-8", {"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}),
        # From 4.7 on a budget is refused, and thoughts come empty unless they are asked for.
        (
            "claude-opus-4-7",
            {"reasoning_effort": "xhigh"},
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "xhigh"}},
        ),
        (
            "claude-sonnet-5",
            {"thinking": {"type": "enabled", "budget_tokens": 2048}, "reasoning_effort": "high"},
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "high"}},
        ),
        (
            "claude-opus-5-5",
            {"thinking": {"type": "adaptive", "display": "omitted"}, "reasoning_effort": "max"},
            {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "max"}},
        ),
        # 4.6 still takes one.
        (
            "claude-opus-4-6",
            {"thinking": {"type": "enabled", "budget_tokens": 50}},
            {"thinking": {"type": "enabled", "budget_tokens": 50}},
        ),
    ],
)
def test_each_generation_is_told_in_its_own_way_to_think(
    model: str, chosen: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert options(model, max_tokens=99, **chosen) == {"max_tokens": 99, **wanted}


def test_who_thinks_has_room_for_the_answer_too() -> None:
    assert options("claude-opus-4-8")["max_tokens"] == 8192
    assert options("claude-haiku-5-5", reasoning_effort="none")["max_tokens"] == 8192
    assert options("claude-sonnet-5-5")["max_tokens"] == 8192 + 16384
    assert options("claude-opus-4-6", reasoning_effort="low")["max_tokens"] == 8192 + 2048


@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-sonnet-5-5", "claude-fable-5-1"])
def test_who_cannot_be_forced_is_left_the_choice(model: str) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        body = options(model, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
        assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    open_schema = {"type": "object", "additionalProperties": {"type": "string"}}
    open_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": open_schema}}
    assert options(model, response_format=open_format)["tool_choice"] == {"type": "auto"}


def test_who_thinks_first_is_not_forced_to_call() -> None:
    body = options("claude-sonnet-4-5", tools=[TOOL], tool_choice="required", reasoning_effort="low")
    assert body["tool_choice"] == {"type": "auto"}
    assert options("claude-haiku-5-5", tools=[TOOL], tool_choice="none")["tool_choice"] == {"type": "none"}


def test_thoughts_that_do_not_fit_any_more_are_let_go() -> None:
    binding = {"prefix_mismatch_behavior": "drop_block"}
    body = options("claude-haiku-5-5", tools=[TOOL])
    assert body["thinking"] == {"type": "adaptive", "block_binding": binding}
    assert (
        "thinking-binding-controls-2026-08-01" in Messages("claude-haiku-5-5").headers("k")["anthropic-beta"]
    )
    body = options("claude-opus-5-5", tools=[TOOL], reasoning_effort="high")
    assert body["thinking"] == {"type": "adaptive", "display": "summarized", "block_binding": binding}
    assert "thinking" not in options("claude-opus-5", tools=[TOOL])
    assert "binding" not in Messages("claude-opus-5").headers("k")["anthropic-beta"]


def test_options_of_the_output_are_joined() -> None:
    body = options("claude-opus-5", output_config={"effort": "low"}, response_format=FORMAT)
    assert body["output_config"]["effort"] == "low"
    assert body["output_config"]["format"]["type"] == "json_schema"


# ---------------------------------------------------------------------------------------- answers


def test_an_answer_with_everything() -> None:
    format = Messages("m", price=Price(10.0, 20.0, 1.0))
    response = format.decode(200, {"request-id": "req_1"}, json.dumps(answers.message()).encode())
    (choice,) = response.choices
    assert (choice.text, choice.finish_reason) == (answers.TEXT, "tool_calls")
    assert choice.extra == {
        "reasoning_blocks": answers.message()["content"][:2],
        "reasoning_content": answers.THOUGHT,
        "citations": [
            {
                "type": "char_location",
                "cited_text": "Paris",
                "document_index": 0,
                "supported_text": answers.TEXT,
            }
        ],
        "tool_calls": [
            {
                "id": "toolu_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Paris","days":[1,2]}'},
            }
        ],
    }
    usage = response.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.written_tokens) == (
        9,
        5,
        4,
        2,
    )
    assert usage.cost == pytest.approx((5 * 10 + 4 * 1 + 5 * 20) / 1e6)
    assert (response.request_id, response.model) == ("req_1", "claude-sonnet-4-5-20250929")


def test_thinking_goes_back_before_what_it_led_to() -> None:
    extra = Messages("m").decode(200, {}, json.dumps(answers.message()).encode()).choices[0].extra
    assert extra is not None
    back = {"tool_calls": CALLS[:1], "reasoning_blocks": extra["reasoning_blocks"]}
    body = sent(asked(Message("user", "q"), Message("assistant", "a", back), Message("user", "r")))
    kinds = [block["type"] for block in body["messages"][1]["content"]]
    assert kinds == ["thinking", "redacted_thinking", "text", "tool_use"]


def test_thinking_between_calls_goes_back_as_it_came() -> None:
    value = answers.message()
    value["content"] = [*value["content"], {"type": "thinking", "thinking": "more", "signature": "s"}]
    extra = Messages("m").decode(200, {}, json.dumps(value).encode()).choices[0].extra
    assert extra is not None
    body = sent(asked(Message("user", "q"), Message("assistant", "a", dict(extra)), Message("user", "r")))
    assert body["messages"][1]["content"] == value["content"]
    other = {"reasoning_blocks": [{"type": "reasoning", "id": "rs_1", "summary": []}]}  # of another provider
    body = sent(asked(Message("user", "q"), Message("assistant", "a", other), Message("user", "r")))
    assert body["messages"][1]["content"] == [{"type": "text", "text": "a"}]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", None),
        (None, None),
    ],
)
def test_why_an_answer_ended(reason: Any, finish: str | None) -> None:
    value = {"content": [{"type": "text", "text": "x"}], "stop_reason": reason}
    choice = SONNET.decode(200, {}, json.dumps(value).encode()).choices[0]
    assert (choice.text, choice.finish_reason) == ("x", finish)
    assert (choice.extra or {}).get("refusal") == ("x" if reason == "refusal" else None)


def test_the_answer_tool_s_input_is_the_text() -> None:
    tool = {"type": "tool_use", "id": "t", "name": "give_the_answer", "input": {"city": "Paris"}}
    value = {"content": [{"type": "text", "text": "Here:"}, tool], "stop_reason": "tool_use"}
    choice = SONNET.decode(200, {}, json.dumps(value).encode()).choices[0]
    assert (choice.text, choice.finish_reason, choice.extra) == ('{"city":"Paris"}', "stop", None)


def test_counts_that_cannot_be_true_are_flagged() -> None:
    value = {**answers.message(), "usage": {"input_tokens": -5, "output_tokens": 3}}
    response = Messages("m", price=Price(1.0, 1.0)).decode(200, {}, json.dumps(value).encode())
    assert response.usage[:3] == (0, 3, None)
    assert response.choices[0].extra is not None
    assert response.choices[0].extra["usage_invalid"] is True


def test_what_is_kept_for_an_hour_costs_more() -> None:
    price = Price(4.0, 20.0, 0.2, 5.0)
    usage = {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 1_000_000}
    message = {"content": [], "stop_reason": "end_turn"}
    for apart, cost in (({}, 5.0), ({"ephemeral_1h_input_tokens": 500_000}, 6.5)):
        body = {**message, "usage": {**usage, "cache_creation": apart}}
        answer = Messages("claude-opus-5-5", price=price).decode(200, {}, json.dumps(body).encode())
        assert answer.usage.cost == pytest.approx(cost)


def test_a_turn_without_content_is_left_out() -> None:
    body = sent(asked(Message("user", "a"), Message("assistant", ""), Message("user", "b")))
    assert [(turn["role"], len(turn["content"])) for turn in body["messages"]] == [("user", 2)]


def test_a_pause_in_the_provider_s_own_tools_is_no_end() -> None:
    paused = {**answers.message(), "stop_reason": "pause_turn"}
    assert SONNET.decode(200, {}, json.dumps(paused).encode()).choices[0].finish_reason == "length"


def test_without_all_counts_no_cost_is_known() -> None:
    format = Messages("claude-sonnet-4-5", price=Price(1.0, 2.0))
    for usage in ({"input_tokens": 3}, {"output_tokens": 3}, {}):
        part = {**answers.message(), "usage": usage}
        assert format.decode(200, {}, json.dumps(part).encode()).usage.cost is None
