"""What Anthropic answers, as a choice and its usage."""

from __future__ import annotations

from typing import Any, Final

import orjson

from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.anthropic.options import ANSWER_TOOL
from dspy_stream.lm.providers.counts import Counter
from dspy_stream.types import Choice, Usage

__all__ = ["choice_of", "usage_of"]

_FINISHES: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "length",  # broken off in the middle of the provider's own tools
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_HOUR: Final = 0.6  # what is kept for an hour costs twice the prompt's price, and not 1.25 times


def choice_of(content: list[Any], reason: Any, clean: bool) -> Choice:
    """The blocks of an answer as one choice; the input of the answer tool is its text."""
    texts: list[str] = []
    extra: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    answered = late = False
    for block in content:
        if not isinstance(block, dict):
            continue
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
            _cite(block, extra)
        elif kind == "tool_use" and block.get("name") == ANSWER_TOOL:
            answered = True
            texts[:] = [_arguments(block.get("input"))]
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": _arguments(block.get("input"))}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind in ("thinking", "redacted_thinking"):
            late = late or bool(texts or calls)
            extra.setdefault("reasoning_blocks", []).append(block)
            if isinstance(block.get("thinking"), str):
                extra["reasoning_content"] = extra.get("reasoning_content", "") + block["thinking"]
    if late and not answered:  # the order in which it thought and acted is part of what goes back
        extra["reasoning_blocks"] = content
    if calls:
        extra["tool_calls"] = calls
    finish = _FINISHES.get(reason) if isinstance(reason, str) else None
    if reason == "refusal":
        extra["refusal"] = "".join(texts) or "the provider's safety system stopped the answer"
    if answered and not calls and finish == "tool_calls":
        finish = "stop"
    if not clean:
        extra["usage_invalid"] = True
    return Choice("".join(texts), finish, extra or None)


def _cite(block: dict[str, Any], extra: dict[str, Any]) -> None:
    citations = block.get("citations")
    for citation in citations if isinstance(citations, list) else ():
        if isinstance(citation, dict):
            cited = {**citation, "supported_text": block["text"]}
            extra.setdefault("citations", []).append(cited)


def _arguments(given: Any) -> str:
    if isinstance(given, str):  # of a stream that was cut inside the arguments
        return given
    return orjson.dumps(given if given is not None else {}).decode()


def usage_of(value: Any, price: Price | None) -> tuple[Usage, bool]:
    """Token counts; Anthropic does not count tokens in its cache among those of the prompt."""
    counter = Counter(value)
    cached, written = counter.take("cache_read_input_tokens"), counter.take("cache_creation_input_tokens")
    prompt = counter.take("input_tokens", needed=True) + cached + written
    completion = counter.take("output_tokens", needed=True)
    reasoning = counter.detail("output_tokens_details", "thinking_tokens")
    usage = counter.usage(prompt, completion, price, cached=cached, written=written, reasoning=reasoning)
    hour = min(counter.detail("cache_creation", "ephemeral_1h_input_tokens"), written)
    if hour and price is not None and usage.cost is not None:
        held = price.long if price.long is not None and prompt > (price.above or 0) else price
        usage = usage._replace(cost=usage.cost + hour * _HOUR * (held.written or 0.0) / 1_000_000)
    return usage, counter.clean
