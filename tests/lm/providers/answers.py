"""One good answer of every format, whole and as the events of a stream."""

from __future__ import annotations

import json
from typing import Any

THOUGHT, TEXT = "It is in France.", "Paris is it, é€😀."
ARGUMENTS = {"city": "Paris", "days": [1, 2]}


def pieces(text: str, size: int) -> list[str]:
    return [text[place : place + size] for place in range(0, len(text), size)]


# ------------------------------------------------------------------------------- chat completions


def chat(choices: int = 2) -> dict[str, Any]:
    def one(number: int) -> dict[str, Any]:
        call = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
        return {
            "index": number,
            "message": {
                "role": "assistant",
                "content": f"{TEXT} {number}",
                "reasoning_content": THOUGHT,
                "tool_calls": [{"id": f"call_{number}", "type": "function", "function": call}],
                "annotations": [{"type": "url_citation"}],
            },
            "logprobs": {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]},
            "finish_reason": "tool_calls",
        }

    return {
        "id": "chatcmpl-1",
        "model": "gpt-4o-2024",
        "choices": [one(number) for number in range(choices)],
        "usage": {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}},
    }


def chat_events(size: int, choices: int = 2, *, done: bool = True) -> list[tuple[str, bytes]]:
    whole = chat(choices)
    deltas: list[dict[str, Any]] = []
    for choice in whole["choices"]:
        message, number = choice["message"], choice["index"]
        made: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        made += [{"reasoning_content": piece} for piece in pieces(message["reasoning_content"], size)]
        made += [{"content": piece} for piece in pieces(message["content"], size)]
        for place, call in enumerate(message["tool_calls"]):
            function = {"name": call["function"]["name"], "arguments": ""}
            made.append(
                {"tool_calls": [{"index": place, "id": call["id"], "type": "function", "function": function}]}
            )
            made += [
                {"tool_calls": [{"index": place, "function": {"arguments": piece}}]}
                for piece in pieces(call["function"]["arguments"], size)
            ]
        made.append({"annotations": message["annotations"]})
        deltas += [{"index": number, "delta": delta} for delta in made]
        deltas += [
            {"index": number, "delta": {}, "logprobs": {"content": [token]}}
            for token in choice["logprobs"]["content"]
        ]
        deltas.append({"index": number, "delta": {}, "finish_reason": choice["finish_reason"]})
    base = {"id": whole["id"], "model": whole["model"], "object": "chat.completion.chunk", "usage": None}
    events = [{**base, "choices": [delta]} for delta in deltas] + [
        {**base, "choices": [], "usage": whole["usage"]}
    ]
    return [("message", json.dumps(e).encode()) for e in events] + ([("message", b"[DONE]")] if done else [])


# -------------------------------------------------------------------------------------- responses


def response() -> dict[str, Any]:
    return {
        "id": "resp_1",
        "model": "gpt-5",
        "status": "completed",
        "error": None,
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": THOUGHT}]},
            {
                "type": "message",
                "id": "msg_1",
                "content": [{"type": "output_text", "text": TEXT, "annotations": [{"type": "url_citation"}]}],
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "weather",
                "arguments": json.dumps(ARGUMENTS),
            },
        ],
        "usage": {
            "input_tokens": 9,
            "output_tokens": 5,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens_details": {"reasoning_tokens": 3},
        },
    }


def response_events(size: int) -> list[tuple[str, bytes]]:
    whole = response()
    made: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**whole, "status": "in_progress"}}
    ]
    for text, kind in (
        (THOUGHT, "response.reasoning_summary_text.delta"),
        (TEXT, "response.output_text.delta"),
        (json.dumps(ARGUMENTS), "response.function_call_arguments.delta"),
    ):
        made += [{"type": kind, "delta": piece} for piece in pieces(text, size)]
    made.append({"type": "response.completed", "response": whole})
    return [(event["type"], json.dumps(event).encode()) for event in made]


# -------------------------------------------------------------------------------------- Anthropic


def message() -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [
            {"type": "thinking", "thinking": THOUGHT, "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "b3BhcXVl"},
            {
                "type": "text",
                "text": TEXT,
                "citations": [{"type": "char_location", "cited_text": "Paris", "document_index": 0}],
            },
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": ARGUMENTS},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 2,
            "output_tokens": 5,
        },
    }


def message_events(size: int) -> list[tuple[str, bytes]]:
    whole = message()
    start = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    made: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    thinking, redacted, text, tool = whole["content"]
    deltas: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [{"type": "thinking_delta", "thinking": piece} for piece in pieces(THOUGHT, size)]
            + [{"type": "signature_delta", "signature": thinking["signature"]}],
        ),
        (redacted, []),
        (
            {"type": "text", "text": ""},
            [{"type": "citations_delta", "citation": text["citations"][0]}]
            + [{"type": "text_delta", "text": piece} for piece in pieces(TEXT, size)],
        ),
        (
            {**tool, "input": {}},
            [{"type": "input_json_delta", "partial_json": ""}]
            + [{"type": "input_json_delta", "partial_json": p} for p in pieces(json.dumps(ARGUMENTS), size)],
        ),
    ]
    for place, (block, changes) in enumerate(deltas):
        made.append({"type": "content_block_start", "index": place, "content_block": block})
        made += [{"type": "content_block_delta", "index": place, "delta": change} for change in changes]
        made.append({"type": "content_block_stop", "index": place})
    made.append(
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}}
    )
    made.append({"type": "message_stop"})
    return [(event["type"], json.dumps(event).encode()) for event in made]


# ----------------------------------------------------------------------------------------- Gemini


def generated() -> dict[str, Any]:
    return {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [
                        {"text": THOUGHT, "thought": True},
                        {"text": TEXT},
                        {"functionCall": {"name": "weather", "args": ARGUMENTS}, "thoughtSignature": "c2ln"},
                    ],
                },
                "finishReason": "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 9,
            "cachedContentTokenCount": 4,
            "candidatesTokenCount": 2,
            "thoughtsTokenCount": 3,
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r-1",
    }


def generated_events(size: int) -> list[tuple[str, bytes]]:
    whole = generated()
    candidate = whole.pop("candidates")[0]
    parts: list[dict[str, Any]] = [{"text": piece, "thought": True} for piece in pieces(THOUGHT, size)]
    parts += [{"text": piece} for piece in pieces(TEXT, size)] + [candidate["content"]["parts"][-1]]
    made = [{**whole, "candidates": [{"content": {"parts": [part]}, "index": 0}]} for part in parts]
    made.append({**whole, "candidates": [{"content": {"parts": []}, "finishReason": "STOP", "index": 0}]})
    return [("message", json.dumps(event).encode()) for event in made]
