"""One conversation with everything in it, and ways to send it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from dspy_stream.types import Head, Message, Request

PIXEL = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,JVBERi0="
CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}},
    {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer", "minimum": -90}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "report", "strict": True, "schema": SCHEMA}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say what the weather is",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SYSTEM = Message("system", "Be brief")
TURNS = (
    Message(
        "user", ({"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}})
    ),
    Message("assistant", "Let me see", {"tool_calls": CALLS}),
    Message("tool", "18 degrees", {"tool_call_id": "call_1"}),
    Message("tool", '{"time":"noon"}', {"tool_call_id": "call_2"}),
    Message("user", "And now?"),
)


def asked(*messages: Message, **options: Any) -> Request:
    """A request all in its tail."""
    return Request.of("x/m", tuple(messages), **options)


def splits(messages: tuple[Message, ...], **options: Any) -> Iterator[Request]:
    """The same conversation, cut between head and tail at every place."""
    for place in range(len(messages) + 1):
        yield Request(Head("x/m", messages[:place], options), messages[place:])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
blocks = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, texts | st.just(PIXEL)),
    st.builds(lambda data: {"type": "file", "file": {"file_data": data, "filename": "a.pdf"}}, texts),
    st.just({"type": "file", "file": {"file_id": "f-1"}}),
    st.just({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    st.dictionaries(st.sampled_from(["type", "text", "image_url", "file"]), json_values, max_size=3),
)
messages = st.builds(
    Message,
    st.sampled_from(["system", "developer", "user", "assistant", "tool", "nobody"]),
    texts | st.lists(blocks, max_size=3).map(tuple),
    st.none()
    | st.just({"tool_calls": CALLS})
    | st.just({"tool_call_id": "call_1"})
    | st.dictionaries(
        st.sampled_from(["tool_calls", "tool_call_id", "name", "reasoning_blocks"]), json_values, max_size=3
    ),
)
options: Any = st.dictionaries(
    st.sampled_from(
        [
            *("temperature", "top_p", "max_tokens", "stop", "n", "seed", "logprobs", "top_logprobs"),
            *("response_format", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"),
            *("presence_penalty", "user", "thinking", "prompt_cache", "system", "text", "reasoning"),
        ]
    ),
    st.sampled_from([FORMAT, {"type": "json_object"}, [TOOL], "auto", "low", "none", 1, 2, "END"])
    | json_values,
    max_size=5,
)
