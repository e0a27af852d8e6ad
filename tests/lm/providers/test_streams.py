"""A streamed answer is the answer that would have come in one piece, or none at all."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import (
    LMError,
    LMIncompleteError,
    LMRateLimitError,
    LMServerError,
)
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.anthropic import Messages
from dspy_stream.lm.providers.gemini import GenerateContent
from dspy_stream.lm.providers.openai import ChatCompletions, Responses, TextCompletions
from dspy_stream.types import Delta, Response
from tests.lm.providers import answers
from tests.lm.providers.conversations import json_values

PRICE = Price(1.0, 2.0, 0.5)
Events = list[tuple[str, bytes]]
CASES: dict[str, tuple[Any, Callable[[], dict[str, Any]], Callable[[int], Events]]] = {
    "chat": (ChatCompletions("m", price=PRICE), answers.chat, answers.chat_events),
    "responses": (Responses("m", price=PRICE), answers.response, answers.response_events),
    "anthropic": (Messages("m", price=PRICE), answers.message, answers.message_events),
    "gemini": (GenerateContent("m", price=PRICE), answers.generated, answers.generated_events),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def streamed(format: Any, events: Events) -> tuple[Response, list[Delta]]:
    decoder = format.stream_decoder({})
    deltas = [delta for event, data in events for delta in decoder.feed(event, data)]
    return decoder.finish(), deltas


@every
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_streamed_and_whole_are_the_same(case: Any, size: int) -> None:
    format, whole, events = case
    response, deltas = streamed(format, events(size))
    assert response == format.decode(200, {}, json.dumps(whole()).encode())
    for choice, number in zip(response.choices, range(10), strict=False):
        told = dict.fromkeys(("text", "reasoning", "tool"), "")
        for delta in deltas:
            if delta.choice == number:
                told[delta.kind] += delta.text
        assert (told["text"], told["reasoning"]) == (choice.text, choice.extra["reasoning_content"])
        assert json.loads(told["tool"]) == answers.ARGUMENTS


@every
def test_whatever_is_cut_off_is_no_answer(case: Any) -> None:
    format, _whole, events = case
    good = events(4) if events is not answers.chat_events else answers.chat_events(4, choices=1)
    full, _ = streamed(format, good)
    for place in range(len(good)):
        decoder = format.stream_decoder({})
        for event, data in good[:place]:
            decoder.feed(event, data)
        try:
            response = decoder.finish()
        except LMIncompleteError:
            continue
        # All of the answer was there, and only counts or the goodbye were missing.
        assert response.choices == full.choices
        assert place > len(good) - 3


@every
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "overloaded_error", "message": "busy"}, LMServerError),
        ({"type": "rate_limit_error", "message": "slow down"}, LMRateLimitError),
        ({"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow down"}, LMRateLimitError),
        ({"code": "server_error", "message": "sorry"}, LMServerError),
        ({"code": 502, "message": "Provider returned error"}, LMServerError),
    ],
)
def test_an_error_in_the_middle_is_that_error(case: Any, error: dict[str, Any], kind: type[LMError]) -> None:
    format, _whole, events = case
    decoder = format.stream_decoder({"request-id": "r-1"})
    for event, data in events(4)[:3]:
        decoder.feed(event, data)
    with pytest.raises(kind) as raised:
        decoder.feed("error", json.dumps({"type": "error", "error": error}).encode())
    assert (type(raised.value), raised.value.request_id) == (kind, "r-1")


@every
@given(place=st.integers(0, 200), path=st.lists(st.integers(0, 10), max_size=6), value=json_values)
def test_a_damaged_event_is_read_or_an_lm_error(case: Any, place: int, path: list[int], value: Any) -> None:
    format, _whole, events = case
    good = events(6)
    place %= len(good)
    if good[place][1] == b"[DONE]":
        return
    good[place] = (good[place][0], damaged(json.loads(good[place][1]), path, value))
    try:
        response, _ = streamed(format, good)
    except LMError:
        return
    assert all(isinstance(choice.text, str) for choice in response.choices)


@every
@given(path=st.lists(st.integers(0, 10), max_size=8), value=json_values)
def test_a_damaged_answer_is_read_or_an_lm_error(case: Any, path: list[int], value: Any) -> None:
    format, whole, _events = case
    try:
        response = format.decode(200, {}, damaged(whole(), path, value))
    except LMError:
        return
    assert all(isinstance(choice.text, str) for choice in response.choices)
    assert min(response.usage[:2]) >= 0
    response.to_bytes()


def damaged(value: Any, path: list[int], put: Any) -> bytes:
    """The value with something else at some place in it."""
    value = copy.deepcopy(value)  # parts of it are every answer's
    inner = value
    for step in path[:-1]:
        keys = (
            list(inner)
            if isinstance(inner, dict)
            else list(range(len(inner)))
            if isinstance(inner, list)
            else []
        )
        if not keys or not isinstance(inner[keys[step % len(keys)]], (dict, list)):
            break
        inner = inner[keys[step % len(keys)]]
    keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
    if keys:
        inner[keys[(path[-1] if path else 0) % len(keys)]] = put
    return json.dumps(value, allow_nan=True).replace("NaN", "0").replace("Infinity", "1").encode()


# --------------------------------------------------------------------------- single formats' ways


def test_chat_without_a_goodbye_is_over_when_all_choices_are() -> None:
    format = CASES["chat"][0]
    response, _ = streamed(format, answers.chat_events(5, done=False))
    assert response.usage.prompt_tokens == 9
    cut = answers.chat_events(5, done=False)
    last = max(
        place for place, (_, data) in enumerate(cut) if b'"tool_calls"}' in data or b"finish_reason" in data
    )
    with pytest.raises(LMIncompleteError):
        streamed(format, cut[:last])


def test_chat_from_servers_that_number_nothing() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    events = [
        {"choices": [{"delta": {"tool_calls": [{"id": "a", **call}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"id": "b", **call}]}}]},
        {"choices": [{"delta": {"reasoning": "hm", "content": [{"type": "text", "text": "x"}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    response, deltas = streamed(ChatCompletions("m"), [("message", json.dumps(e).encode()) for e in events])
    (choice,) = response.choices
    assert choice.extra is not None
    assert [each["id"] for each in choice.extra["tool_calls"]] == ["a", "b"]
    assert (choice.text, choice.extra["reasoning_content"]) == ("x", "hm")
    assert [delta.kind for delta in deltas] == ["tool", "tool", "reasoning", "text"]


def test_pieces_of_a_router_s_reasoning_are_put_together() -> None:
    def event(**detail: Any) -> tuple[str, bytes]:
        delta = {"reasoning_details": [{"type": "reasoning.text", "index": 0, **detail}]}
        return "message", json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()

    end = ("message", b'{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}')
    response, _ = streamed(
        ChatCompletions("m"), [event(text="It "), event(text="is"), event(text="", signature="s"), end]
    )
    assert response.choices[0].extra == {
        "reasoning_blocks": [{"type": "reasoning.text", "index": 0, "text": "It is", "signature": "s"}]
    }


def test_an_error_of_one_choice_is_an_error() -> None:
    bad = {"choices": [{"index": 0, "delta": {}, "error": {"code": 429, "message": "slow"}}]}
    with pytest.raises(LMRateLimitError):
        ChatCompletions("m").stream_decoder({}).feed("message", json.dumps(bad).encode())


def test_an_empty_reason_is_none() -> None:
    cut = {"candidates": [{"content": {"parts": [{"text": "Pa"}]}, "finishReason": ""}]}
    decoder = GenerateContent("m").stream_decoder({})
    decoder.feed("message", json.dumps(cut).encode())
    with pytest.raises(LMIncompleteError):
        decoder.finish()


def test_a_response_that_failed_says_why() -> None:
    failed = {"id": "resp_1", "status": "failed", "error": {"code": "server_error", "message": "sorry"}}
    event = json.dumps({"type": "response.failed", "response": failed}).encode()
    with pytest.raises(LMServerError, match="sorry") as raised:
        Responses("m").stream_decoder({}).feed("response.failed", event)
    assert raised.value.request_id == "resp_1"
    bare = json.dumps(
        {"type": "error", "code": "rate_limit_exceeded", "message": "slow", "param": None}
    ).encode()
    with pytest.raises(LMRateLimitError):
        Responses("m").stream_decoder({}).feed("error", bare)


def test_arguments_that_the_limit_cut_are_kept_as_text() -> None:
    events = answers.message_events(7)
    cut = [event for event in events if b"[1" not in event[1] and b"2]" not in event[1]]
    response, _ = streamed(Messages("m"), cut)
    assert response.choices[0].extra is not None
    arguments = response.choices[0].extra["tool_calls"][0]["function"]["arguments"]
    assert arguments.startswith('{"city"')
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)


def test_the_answer_tool_is_text_while_it_streams() -> None:
    events = [
        {"type": "message_start", "message": {"id": "m", "model": "c", "content": [], "usage": {}}},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "tool_use", "id": "t", "name": "give_the_answer", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": '{"a":'},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": "1}"},
        },
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]
    response, deltas = streamed(Messages("m"), [(str(e["type"]), json.dumps(e).encode()) for e in events])
    assert [(delta.kind, delta.text) for delta in deltas] == [("text", '{"a":'), ("text", "1}")]
    assert (response.text, response.choices[0].finish_reason, response.choices[0].extra) == (
        '{"a":1}',
        "stop",
        None,
    )


def test_old_completions_stream_too() -> None:
    format = TextCompletions("m")
    events = [
        ("message", b'{"id":"c","choices":[{"index":0,"text":"Once "}]}'),
        ("message", b'{"id":"c","choices":[{"index":0,"text":"upon","finish_reason":"length"}]}'),
        ("message", b'{"id":"c","choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3}}'),
        ("message", b"[DONE]"),
    ]
    response, deltas = streamed(format, events)
    assert (response.text, response.choices[0].finish_reason) == ("Once upon", "length")
    assert [delta.text for delta in deltas] == ["Once ", "upon"]
    with pytest.raises(LMIncompleteError):
        streamed(format, events[:1])


def test_arguments_that_come_as_an_object_are_text() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    events = [
        ("message", {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}),
        ("message", {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
    ]
    decoder = ChatCompletions("m").stream_decoder({})
    deltas = [delta for name, value in events for delta in decoder.feed(name, json.dumps(value).encode())]
    assert deltas == [Delta("tool", '{"a":1}')]
    (made,) = decoder.finish().choices[0].extra["tool_calls"]  # type: ignore[index]
    assert made == {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def test_a_whole_message_in_a_chunk_is_read_where_no_delta_is() -> None:
    ends = (
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":"Paris"},"finish_reason":"stop"}]}'
    )
    response, deltas = streamed(ChatCompletions("m"), [("message", ends)])
    assert response.choices[0].text == "Paris"
    assert deltas == [Delta("text", "Paris", 0)]
    # One that comes beside the deltas repeats what they said.
    beside = b'{"choices":[{"index":0,"delta":{"content":"Pa"},"message":{"content":"Paris"}}]}'
    response, _ = streamed(ChatCompletions("m"), [("message", beside), ("message", b"[DONE]")])
    assert response.choices[0].text == "Pa"


def test_a_function_call_of_an_older_server_is_a_tool_call() -> None:
    pieces = [{"name": "weather", "arguments": ""}, {"arguments": '{"city":'}, {"arguments": '"Paris"}'}]
    events = [
        ("message", json.dumps({"choices": [{"index": 0, "delta": {"function_call": piece}}]}).encode())
        for piece in pieces
    ]
    ends = {"choices": [{"index": 0, "delta": {}, "finish_reason": "function_call"}]}
    response, deltas = streamed(ChatCompletions("m"), [*events, ("message", json.dumps(ends).encode())])
    function = {"name": "weather", "arguments": '{"city":"Paris"}'}
    message = {"content": None, "function_call": function}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "function_call"}]}).encode()
    for choice in (response.choices[0], ChatCompletions("m").decode(200, {}, body).choices[0]):
        assert choice.finish_reason == "tool_calls"
        assert choice.extra == {"tool_calls": [{"id": "call_0", "type": "function", "function": function}]}
    assert "".join(delta.text for delta in deltas if delta.kind == "tool") == function["arguments"]
