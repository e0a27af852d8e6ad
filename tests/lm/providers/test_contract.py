"""Every request is valid by OpenAI's published description, where a copy of it is at hand."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dspy_stream.lm.providers.openai import ChatCompletions, Responses
from dspy_stream.types import Message, Request
from tests.lm.providers.conversations import CALLS, FORMAT, PDF, SYSTEM, TOOL, TURNS, asked

# Beside the checkout, or wherever the variable says.
PLACE = Path(
    os.environ.get("OPENAI_DESCRIPTION", Path(__file__).parents[4] / "shared" / "specs" / "openai.json")
)
pytestmark = pytest.mark.skipif(not PLACE.exists(), reason=f"no OpenAPI description at {PLACE}")


def _loose(value: Any) -> Any:
    """``oneOf`` as ``anyOf``: the description tells kinds apart by discriminators, which are not checked."""
    if isinstance(value, dict):
        return {"anyOf" if key == "oneOf" else key: _loose(each) for key, each in value.items()}
    return [_loose(each) for each in value] if isinstance(value, list) else value


@cache
def validator(name: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    components = _loose(json.loads(PLACE.read_text())["components"])
    schema = {"$ref": f"#/components/schemas/{name}", "components": components}
    return jsonschema.Draft202012Validator(schema)


def check(name: str, body: bytes) -> Any:
    value = json.loads(body)
    errors = [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}"
        for e in validator(name).iter_errors(value)
    ]
    assert not errors
    return value


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5, "top_p": 0.9, "max_tokens": 50, "user": "u"},
    {"response_format": FORMAT},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "text"}},
    {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {"reasoning_effort": "low", "max_tokens": 500, "temperature": 0.0},
    {"logprobs": True, "top_logprobs": 3},
    {"prompt_cache": False, "verbosity": "low", "store": True, "metadata": {"a": "b"}},
]
CHAT_ONLY: list[dict[str, Any]] = [
    {"stop": ["a", "b"], "n": 2, "seed": 7, "presence_penalty": 0.1, "frequency_penalty": 0.2},
    {"stop": "a", "logit_bias": {"5": 1}},
]
AUDIO = Message("user", ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},))
FILES = Message(
    "user",
    (
        {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}},
    ),
)
REASONED = Message(
    "assistant",
    "",
    {
        "tool_calls": CALLS[:1],
        "reasoning_content": "hm",
        "reasoning_blocks": [
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x", "status": None}
        ],
    },
)
ANSWERED = Message("tool", "18", {"tool_call_id": "call_1"})


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5-mini", "o3"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", OPTIONS + CHAT_ONLY)
def test_chat_completions(options: dict[str, Any], stream: bool, model: str) -> None:
    request = asked(SYSTEM, *TURNS, FILES, AUDIO, REASONED, ANSWERED, **options)
    sent = check("CreateChatCompletionRequest", ChatCompletions(model).encode(request, stream=stream))
    assert ("stream_options" in sent) is stream


WHOLE = Message(
    "assistant",
    "Paris",
    {
        "reasoning_blocks": [
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "phase": "commentary",
                "content": [{"type": "output_text", "text": "hm", "annotations": [], "logprobs": []}],
            },
            {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "x", "status": None},
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "weather",
                "arguments": "{}",
            },
        ]
    },
)


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5-mini", "o3"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_responses(options: dict[str, Any], stream: bool, model: str) -> None:
    request = asked(SYSTEM, *TURNS, FILES, REASONED, ANSWERED, WHOLE, ANSWERED, **options)
    sent = check("CreateResponse", Responses(model).encode(request, stream=stream))
    assert "previous_response_id" not in sent


def test_a_wrong_request_would_be_found() -> None:
    bad = Request.of("x/m", "hi", temperature="hot")
    for name, format in (
        ("CreateChatCompletionRequest", ChatCompletions("m")),
        ("CreateResponse", Responses("m")),
    ):
        with pytest.raises(AssertionError, match="temperature"):
            check(name, format.encode(bad))


def test_answers_that_are_valid_are_understood() -> None:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 17,
    }
    output = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Paris", "annotations": [], "logprobs": []}],
        },
    ]
    value = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": "gpt-5",
        "output": output,
        "parallel_tool_calls": True,
        "metadata": {},
        "tool_choice": "auto",
        "tools": [],
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": usage,
    }
    check("Response", json.dumps(value).encode())
    response = Responses("gpt-5").decode(200, {}, json.dumps(value).encode())
    assert response.text == "Paris"
    assert (response.usage.cached_tokens, response.usage.reasoning_tokens) == (4, 3)
