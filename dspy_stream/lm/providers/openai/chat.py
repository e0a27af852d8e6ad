"""The chat-completions format of OpenAI, which most servers speak: pure encoding and decoding."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import LMIncompleteError
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.blocks import canonical
from dspy_stream.lm.providers.counts import Counter
from dspy_stream.lm.providers.format import StreamDecoder
from dspy_stream.lm.providers.openai.chat_stream import ChatStream
from dspy_stream.lm.providers.openai.content import documents, split_content
from dspy_stream.lm.providers.openai.dialect import OPENAI, Dialect, options_of, unmarked
from dspy_stream.lm.providers.wire import JsonFormat, check_path, dumps
from dspy_stream.types import Choice, Message, Request, Response, Usage

__all__ = ["ChatCompletions", "finish_of"]

# What a choice keeps of a message under the name the server gave it.
_KEPT: Final = ("refusal", "annotations", "citations", "audio")
_FINISHES: Final = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "eos": "stop",
    "stop_sequence": "stop",
    "model_length": "length",
    "max_tokens": "length",
}
# The server gave up in the middle of its answer, and says so only here.
_BROKEN_OFF: Final = frozenset({"error", "insufficient_system_resource"})


class ChatCompletions(JsonFormat):
    """Requests to one model as bytes, and its answers as responses.

    ``dialect`` says in what the server differs from OpenAI's own.

    >>> format = ChatCompletions("gpt-4o-mini")
    >>> format.encode(Request.of("openai/gpt-4o-mini", "hi", temperature=0.0))
    b'{"model":"gpt-4o-mini","temperature":0.0,"messages":[{"role":"user","content":"hi"}]}'
    """

    __slots__ = ("_dialect", "_plain", "path", "stream_path")

    _wanted = "choices"

    def __init__(
        self,
        model: str,
        *,
        price: Price | None = None,
        now: Callable[[], float] = time.time,
        dialect: Dialect = OPENAI,
    ) -> None:
        name = dialect.namespace + model if "/" not in model else model
        if "{model}" in dialect.path:
            check_path(name)
        super().__init__(name, price=price, now=now)
        self._dialect = dialect
        self._memo = f"chat completions {dialect} {name}"
        self._plain = frozenset({"system", "user", "assistant", "tool", _developer(dialect)})
        self.path: Final = dialect.path.replace("{model}", name)
        self.stream_path: Final = self.path

    def headers(self, key: str | None) -> dict[str, str]:
        """What every request carries, the key in the header that the server looks in."""
        made = super().headers(None)
        if key:
            bearer = self._dialect.key_header == "Authorization"
            made[self._dialect.key_header] = f"Bearer {key}" if bearer else key
        return made

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder:
        """A decoder for one streamed answer."""
        return ChatStream(self, headers)

    def _body(self, request: Request, stream: bool) -> bytes:
        prefix = request.head.memo.get(self._memo)
        if prefix is None:
            prefix = request.head.memo[self._memo] = self._prefix(request)
        tail = b",".join([self._message(message) for message in request.tail])
        comma = b"," if tail and prefix[-1:] == b"}" else b""
        if not stream:
            return bytes(prefix + comma + tail + b"]}")
        usage = b',"stream_options":{"include_usage":true}}' if self._dialect.stream_usage else b"}"
        return bytes(prefix + comma + tail + b'],"stream":true' + usage)

    def _prefix(self, request: Request) -> bytes:
        options = {"model": self._model, **options_of(self._model, request.options, self._dialect)}
        messages = b",".join([self._message(message) for message in request.head.messages])
        return dumps(options)[:-1] + b',"messages":[' + messages

    def _message(self, message: Message) -> bytes:
        if type(message.content) is not str and not self._dialect.cache_marks:
            message = message._replace(content=unmarked(message.content))
        if self._dialect.document_url and isinstance(message.content, (tuple, list)):
            message = message._replace(content=tuple(documents(message.content)))
        if message.extra is None and message.role in self._plain:
            return orjson.dumps(message.to_json(), default=dict)
        return dumps(_earlier(message, self._dialect))

    def _response(self, value: dict[str, Any], headers: Mapping[str, str]) -> Response | None:
        choices = value.get("choices")
        if not isinstance(choices, list) or not choices:
            return None
        usage, clean = _usage(value.get("usage"), self._price)
        if self._dialect.tells_cost and self._price is None and clean:
            usage = usage._replace(cost=_told(value.get("usage")))
        if len(choices) > 1:
            choices = sorted(choices, key=_place)
        made = [self._choice(choice, clean, headers) for choice in choices]
        beside = value.get("citations")  # search engines name their sources beside the answer
        if beside and isinstance(beside, list):
            made[0] = made[0]._replace(extra={"citations": beside, **(made[0].extra or {})})
        model, request_id = value.get("model"), headers.get("x-request-id") or value.get("id")
        return Response(
            tuple(made),
            usage,
            model if isinstance(model, str) else self._model,
            request_id if isinstance(request_id, str) else None,
        )

    def _choice(self, choice: Any, clean: bool, headers: Mapping[str, str]) -> Choice:
        message = choice.get("message") if isinstance(choice, dict) else None
        finish = choice.get("finish_reason") if isinstance(choice, dict) else None
        if message is None and finish == "content_filter":
            message = {}
        if not isinstance(message, dict):
            raise LMIncompleteError("a choice holds no message")
        if choice.get("error"):
            raise self.refused({"error": choice["error"]}, headers, 200)
        if isinstance(finish, str) and finish in _BROKEN_OFF:
            raise LMIncompleteError(f"the server broke the answer off: {finish}")
        text, thought = split_content(message.get("content"))
        extra = {name: message[name] for name in _KEPT if message.get(name)}
        calls = message.get("tool_calls")
        if not calls and message.get("function_call"):  # as servers wrote it before there were several
            calls = [{"function": message["function_call"]}]
        if calls and (made := canonical(calls)):
            extra["tool_calls"] = made
        reasoning = message.get("reasoning_content") or message.get("reasoning") or thought
        if reasoning and isinstance(reasoning, str):
            extra["reasoning_content"] = reasoning
        if message.get("reasoning_details"):
            extra["reasoning_blocks"] = message["reasoning_details"]
        if choice.get("logprobs"):
            extra["logprobs"] = choice["logprobs"]
        if not clean:
            extra["usage_invalid"] = True
        return Choice(text, finish_of(finish), extra or None)


def _place(choice: Any) -> int:
    place = choice.get("index") if isinstance(choice, dict) else None
    return place if isinstance(place, int) else 0


def finish_of(finish: Any) -> str | None:
    """Why an answer ended, in the words that every format shares; None for others."""
    return _FINISHES.get(finish) if isinstance(finish, str) else None


def _developer(dialect: Dialect) -> str:
    return "developer" if dialect.developer else "system"


def _earlier(message: Message, dialect: Dialect) -> dict[str, Any]:
    """A turn with something beside its content; only what the server wants back is sent."""
    made = message.to_json()
    if message.role == "developer":
        made["role"] = _developer(dialect)
    blocks = made.pop("reasoning_blocks", None)
    thought = made.pop("reasoning_content", None)
    if dialect.replays == "reasoning_details" and blocks and "reasoning" in str(blocks[0].get("type")):
        made["reasoning_details"] = blocks
    elif dialect.replays == "reasoning_content" and thought and made.get("tool_calls"):
        made["reasoning_content"] = thought
    if made.get("tool_calls") and not made.get("content"):
        made["content"] = None
    return made


def _told(usage: Any) -> float | None:
    """What a router says that the call cost, with what the provider behind it charges the user himself."""
    given: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    parts: list[Any] = [given.get("cost")]
    if given.get("is_byok"):
        details = given.get("cost_details")
        parts.append(details.get("upstream_inference_cost") if isinstance(details, dict) else None)
    if all(type(part) in (int, float) and 0 <= part < math.inf for part in parts):
        return float(sum(parts))
    return None


def _usage(value: Any, price: Price | None) -> tuple[Usage, bool]:
    counter = Counter(value)
    prompt = counter.take("prompt_tokens", needed=True)
    completion = counter.take("completion_tokens", needed=True)
    reasoning = counter.detail("completion_tokens_details", "reasoning_tokens")
    if reasoning and counter.take("total_tokens") == prompt + completion + reasoning:
        completion += reasoning  # of a server that does not count them among the others
    usage = counter.usage(
        prompt,
        completion,
        price,
        cached=counter.detail("prompt_tokens_details", "cached_tokens"),
        written=counter.detail("prompt_tokens_details", "cache_write_tokens"),
        reasoning=reasoning,
    )
    return usage, counter.clean
