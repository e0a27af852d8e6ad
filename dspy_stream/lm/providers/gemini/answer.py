"""What Gemini answers, as choices and their usage."""

from __future__ import annotations

from typing import Any, Final

import orjson

from dspy_stream.errors import LMIncompleteError, LMInvalidRequestError
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.counts import Counter
from dspy_stream.types import Choice, Usage

__all__ = ["blocked", "choice_of", "joined", "usage_of"]

_FINISHES: Final = {"STOP": "stop", "MAX_TOKENS": "length"}
_FILTERED: Final = frozenset(
    {
        *("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR"),
    }
)
# The model did not manage to write a call; asked again, it mostly does.
_FAILED: Final = frozenset(
    {"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE", "TOO_MANY_TOOL_CALLS"}
)
_UNSIGNED: Final = "MISSING_THOUGHT_SIGNATURE"


def choice_of(candidate: Any, clean: bool) -> Choice:
    """One candidate as a choice.

    Raises:
        LMIncompleteError: it is none, or the model failed to write its function call.
        LMInvalidRequestError: an earlier call in the request had lost its signature.
    """
    if not isinstance(candidate, dict):
        raise LMIncompleteError("a candidate is not an object")
    reason = candidate.get("finishReason")
    if isinstance(reason, str) and reason in _FAILED:
        raise LMIncompleteError(f"the model's answer broke off: {reason}")
    if reason == _UNSIGNED:
        raise LMInvalidRequestError("an earlier tool call in the request has no thought signature")
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    parts = joined(parts if isinstance(parts, list) else [])
    text, extra = _read(parts)
    finish = _FINISHES.get(reason) if isinstance(reason, str) else None
    if isinstance(reason, str) and reason in _FILTERED:
        finish = "content_filter"
        extra["refusal"] = _said(candidate, f"the provider's filters stopped the answer: {reason}")
    if finish == "stop" and "tool_calls" in extra:
        finish = "tool_calls"
    citations = candidate.get("citationMetadata")
    if isinstance(citations, dict) and citations.get("citationSources"):
        extra["citations"] = citations["citationSources"]
    if isinstance(candidate.get("logprobsResult"), dict):
        extra["logprobs"] = _logprobs(candidate["logprobsResult"])
    if candidate.get("groundingMetadata"):
        extra["annotations"] = [candidate["groundingMetadata"]]
    if not clean:
        extra["usage_invalid"] = True
    return Choice(text, finish, extra or None)


def joined(parts: list[Any]) -> list[dict[str, Any]]:
    """The parts, with neighbouring pieces of one text made one, as a stream cuts them."""
    made: list[dict[str, Any]] = []
    for part in parts:
        if not isinstance(part, dict):
            continue
        last = made[-1] if made else None
        plain = isinstance(part.get("text"), str) and part.keys() <= {"text", "thought"}
        if last is not None and plain and _goes_on(last, part):
            made[-1] = {**last, "text": last["text"] + part["text"]}
        else:
            made.append(part)
    return made


def _goes_on(last: dict[str, Any], part: dict[str, Any]) -> bool:
    plain = isinstance(last.get("text"), str) and last.keys() <= {"text", "thought"}
    return plain and bool(last.get("thought")) == bool(part.get("thought"))


def _read(parts: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in parts:
        text = part.get("text")
        if isinstance(text, str):
            (thoughts if part.get("thought") else texts).append(text)
        call = part.get("functionCall")
        if isinstance(call, dict):
            arguments = orjson.dumps(call.get("args") if call.get("args") is not None else {}).decode()
            function = {"name": call.get("name"), "arguments": arguments}
            name = call.get("id") or f"call_{len(calls)}"
            calls.append({"id": name, "type": "function", "function": function})
    extra: dict[str, Any] = {}
    if calls:
        extra["tool_calls"] = calls
    if thoughts:
        extra["reasoning_content"] = "".join(thoughts)
    if any(part.get("thoughtSignature") for part in parts):
        extra["reasoning_blocks"] = [part for part in parts if not part.get("thought")]
    return "".join(texts), extra


def blocked(feedback: Any) -> Choice | None:
    """The answer to a prompt that was not let through; None where nothing says so."""
    reason = feedback.get("blockReason") if isinstance(feedback, dict) else None
    if not isinstance(reason, str):
        return None
    said = _said(feedback, f"the prompt was blocked: {reason[:80]}")
    return Choice("", "content_filter", {"refusal": said})


def _said(value: dict[str, Any], otherwise: str) -> str:
    for name in ("finishMessage", "blockReasonMessage"):
        if isinstance(value.get(name), str) and value[name]:
            return str(value[name])
    return otherwise


def _logprobs(result: dict[str, Any]) -> dict[str, Any]:
    """In the chat-completions form: a list of tokens, each with those that were as likely."""
    chosen, top = result.get("chosenCandidates"), result.get("topCandidates")
    tops = top if isinstance(top, list) else []
    made = []
    for place, token in enumerate(chosen if isinstance(chosen, list) else ()):
        others = tops[place].get("candidates") if place < len(tops) and isinstance(tops[place], dict) else ()
        made.append({**_token(token), "top_logprobs": [_token(other) for other in others or ()]})
    return {"content": made}


def _token(value: Any) -> dict[str, Any]:
    given = value if isinstance(value, dict) else {}
    return {"token": given.get("token"), "logprob": given.get("logProbability"), "bytes": None}


def usage_of(value: Any, price: Price | None) -> tuple[Usage, bool]:
    """Token counts; thoughts are counted beside the candidates and are part of the completion."""
    counter = Counter(value)
    prompt = counter.take("promptTokenCount", needed=True) + counter.take("toolUsePromptTokenCount")
    thoughts = counter.take("thoughtsTokenCount")
    completion = counter.take("candidatesTokenCount") + thoughts
    cached = counter.take("cachedContentTokenCount")
    return counter.usage(prompt, completion, price, cached=cached, reasoning=thoughts), counter.clean
