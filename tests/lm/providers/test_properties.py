"""What holds of every format, whatever it is given."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.errors import LMConfigurationError, LMError, LMIncompleteError, LMInvalidRequestError
from dspy_stream.lm.providers.anthropic import Messages
from dspy_stream.lm.providers.gemini import GenerateContent
from dspy_stream.lm.providers.openai import ChatCompletions, Dialect, Responses, TextCompletions
from dspy_stream.types import Delta, Head, Message, Request, Response
from tests.lm.providers.conversations import (
    SYSTEM,
    TURNS,
    asked,
    json_values,
    messages,
    options,
    splits,
    texts,
)

OPENROUTER = partial(
    ChatCompletions, dialect=Dialect("openrouter", reasoning="nested", replays="reasoning_details")
)
FORMATS: dict[str, Any] = {
    "chat": ChatCompletions("gpt-4o"),
    "chat of a reasoning model": ChatCompletions("o3"),
    "chat at a router": OPENROUTER("a/b"),
    "responses": Responses("gpt-5"),
    "text": TextCompletions("davinci"),
    "anthropic": Messages("claude-sonnet-4-5"),
    "anthropic, adaptive": Messages("claude-opus-4-6"),
    "gemini": GenerateContent("gemini-2.5-flash"),
    "gemini 3": GenerateContent("gemini-3-pro-preview"),
    "gemini, old": GenerateContent("gemini-1.5-flash"),
}
every = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
# What answers are made of, so that chance finds its way into the readers.
NAMES = [
    *("choices", "message", "content", "text", "finish_reason", "usage", "prompt_tokens", "tool_calls"),
    *("function", "arguments", "logprobs", "output", "type", "status", "summary", "annotations", "error"),
    *("code", "candidates", "parts", "functionCall", "args", "usageMetadata", "promptFeedback", "id"),
    *("blockReason", "finishReason", "stop_reason", "thinking", "citations", "input", "name", "index"),
    *("delta", "content_block", "message", "response", "item", "logprobsResult", "chosenCandidates", "model"),
    *("topCandidates", "reasoning_details", "details", "metadata", "incomplete_details", "thoughtSignature"),
]
KINDS = st.sampled_from(
    [
        *("message", "text", "output_text", "refusal", "reasoning", "function_call", "tool_use", "thinking"),
        *("message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop"),
        *("text_delta", "input_json_delta", "citations_delta", "response.completed", "response.failed"),
        *("response.output_text.delta", "error", "STOP", "SAFETY", "stop", "completed", "incomplete"),
    ]
)
answers = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**11) | texts | KINDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=25,
)


@every
@settings(max_examples=40)
@given(st.lists(messages, max_size=3), st.lists(messages, max_size=3), options, st.booleans())
def test_a_request_is_json_or_refused(
    format: Any, head: list[Message], tail: list[Message], chosen: dict[str, Any], stream: bool
) -> None:
    request = Request(Head("x/m", tuple(head), chosen), tuple(tail))
    try:
        body = format.encode(request, stream=stream)
    except (LMInvalidRequestError, LMConfigurationError):
        return
    assert isinstance(orjson.loads(body), dict)
    assert format.encode(request, stream=stream) == body


@every
@settings(max_examples=40)
@given(answers | json_values, st.sampled_from([200, 200, 200, 400, 429, 500]))
def test_an_answer_is_read_or_an_lm_error(format: Any, value: Any, status: int) -> None:
    try:
        response = format.decode(status, {}, orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except LMError:
        return
    assert response.choices
    assert all(isinstance(choice.text, str) for choice in response.choices)
    assert min(response.usage[:2]) >= 0
    assert Response.from_bytes(response.to_bytes()).choices == response.choices


@every
@settings(max_examples=40)
@given(st.lists(answers | json_values, max_size=5))
def test_a_stream_is_read_or_an_lm_error(format: Any, values: list[Any]) -> None:
    decoder = format.stream_decoder({})
    try:
        for value in values:
            deltas = decoder.feed("message", orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
            assert all(isinstance(delta, Delta) and isinstance(delta.text, str) for delta in deltas)
        response = decoder.finish()
    except LMError:
        return
    assert all(isinstance(choice.text, str) for choice in response.choices)


@every
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"<html>Sign in</html>", {"content-type": "text/html"}),
        (b"null", {}),
        (b"[]", {}),
        (b"{}", {}),
        (b'"text"', {}),
        (b'{"choices":{}}', {}),
        (b'{"content":"x","output":3,"candidates":{}}', {}),
        (b'{"choices":[{"index":0', {}),
        (b"\xff\xfe", {}),
    ],
)
def test_a_success_that_is_no_answer_is_incomplete(format: Any, body: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(LMIncompleteError):
        format.decode(200, headers, body)


@every
def test_an_empty_stream_is_incomplete(format: Any) -> None:
    with pytest.raises(LMIncompleteError):
        format.stream_decoder({}).finish()
    with pytest.raises(LMIncompleteError):
        format.stream_decoder({}).feed("message", b"half an ev")


@every
def test_a_body_does_not_depend_on_where_the_head_ends(format: Any) -> None:
    conversation = (SYSTEM, *TURNS, SYSTEM, Message("user", "Go on"))
    if isinstance(format, Messages):  # the mark is at the end of the head
        whole = json.loads(format.encode(asked(*conversation, prompt_cache=False)))
        bodies = [format.encode(request) for request in splits(conversation, prompt_cache=False)]
    else:
        whole = json.loads(format.encode(asked(*conversation)))
        bodies = [format.encode(request) for request in splits(conversation)]
    for body in bodies:
        assert json.loads(body) == whole


@every
def test_the_constant_part_is_encoded_once(format: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head("x/m", (SYSTEM, *TURNS[:4]), {"max_tokens": 4096})
    request = Request(head, (Message("user", "first"),))
    format.encode(request)
    dumps, written = orjson.dumps, []
    monkeypatch.setattr(orjson, "dumps", lambda value, **how: written.append(value) or dumps(value, **how))
    body = format.encode(Request(head, (Message("user", "second"),)))
    assert b"second" in body
    assert len(written) == 1
    if not isinstance(format, TextCompletions):  # its prompt is one text
        assert "Be brief" not in str(written)


@every
def test_a_text_that_is_not_unicode_is_the_row_s_fault(format: Any) -> None:
    with pytest.raises(LMInvalidRequestError):
        format.encode(Request.of("x/m", "\ud800"))


@every
def test_the_key_is_in_a_header_and_nowhere_else(format: Any) -> None:
    key = "sk-CANARY-0123456789"
    with_key, without = format.headers(key), format.headers(None)
    assert [name for name, value in with_key.items() if key in value] == [*(with_key.keys() - without.keys())]
    assert key not in format.path + format.stream_path
    assert format.headers("")["Content-Type"] == "application/json"
