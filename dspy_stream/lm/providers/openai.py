"""The chat-completions format of OpenAI, which most servers speak: pure encoding and decoding."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import LMIncompleteError, LMInvalidRequestError
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.format import StreamDecoder
from dspy_stream.lm.providers.refusals import refusal
from dspy_stream.types import Choice, Message, Request, Response, Usage

__all__ = ["ChatCompletions"]

# Models that reason first take another name for the limit and no temperature.
_REASONING: Final = re.compile(r"(?:.*/)?(?:o[134](?:-|$)|gpt-5(?!.*-chat))")
_MOST_TOKENS: Final = 10_000_000_000
_KEPT: Final = ("refusal", "tool_calls", "reasoning_content", "reasoning", "annotations")


class ChatCompletions:
    """Requests to one model as bytes, and its answers as responses.

    >>> format = ChatCompletions("gpt-4o-mini")
    >>> format.encode(Request.of("openai/gpt-4o-mini", "hi", temperature=0.0))
    b'{"model":"gpt-4o-mini","temperature":0.0,"messages":[{"role":"user","content":"hi"}]}'
    """

    path: Final = "/chat/completions"
    stream_path: Final = None

    __slots__ = ("_memo", "_model", "_now", "_price")

    def __init__(
        self, model: str, *, price: Price | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._model = model
        self._price = price
        self._now = now
        self._memo = f"chat completions {model}"

    def headers(self, key: str | None) -> dict[str, str]:
        """What every request carries; ``key`` in the Authorization header, where there is one."""
        made = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            made["Authorization"] = f"Bearer {key}"
        return made

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder:
        """Not there yet: ``stream_path`` says so."""
        raise NotImplementedError

    def encode(self, request: Request, *, stream: bool = False) -> bytes:  # noqa: ARG002
        """The body. All that belongs to the request's head is encoded once and kept there.

        Raises:
            LMInvalidRequestError: a text that is not valid Unicode, or an option that is not JSON.
        """
        try:
            prefix = request.head.memo.get(self._memo)
            if prefix is None:
                prefix = request.head.memo[self._memo] = self._prefix(request)
            return bytes(prefix + b",".join([_message(message) for message in request.tail]) + b"]}")
        except TypeError as error:  # what orjson raises for anything it cannot write
            raise LMInvalidRequestError(f"the request cannot be written as JSON: {error}") from None

    def _prefix(self, request: Request) -> bytes:
        options = {"model": self._model, **_options(self._model, request.options)}
        messages = b",".join([_message(message) for message in request.head.messages])
        if messages and request.tail:
            messages += b","
        return orjson.dumps(options)[:-1] + b',"messages":[' + messages

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        """The response.

        Raises:
            LMIncompleteError: a success that is not an answer: cut, empty, or somebody else's page.
            LMError: what the status or the error object in the body stands for.
        """
        if not 200 <= status < 300:
            raise refusal(status, headers, body, self._now())
        try:
            value: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise LMIncompleteError(_no_answer(headers, body), status=status) from None
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or not choices:
            if isinstance(value, dict) and value.get("error"):
                raise refusal(status, headers, body, self._now())
            raise LMIncompleteError("the answer holds no choices", status=status)
        usage, clean = _usage(value.get("usage"), self._price)
        request_id = headers.get("x-request-id") or value.get("id")
        return Response(
            tuple([_choice(choice, clean) for choice in choices]),
            usage,
            model if isinstance(model := value.get("model"), str) else self._model,
            request_id if isinstance(request_id, str) else None,
        )


def _message(message: Message) -> bytes:
    return orjson.dumps(message.to_json(), default=dict)


def _options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    sent = {name: value for name, value in options.items() if value is not None}
    if _REASONING.match(model):
        sent.pop("temperature", None)
        if "max_tokens" in sent:
            sent.setdefault("max_completion_tokens", sent.pop("max_tokens"))
    return sent


def _choice(choice: Any, clean: bool) -> Choice:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise LMIncompleteError("a choice holds no message")
    extra = {name: message[name] for name in _KEPT if message.get(name)}
    if not clean:
        extra["usage_invalid"] = True
    finish = choice.get("finish_reason")
    return Choice(_text(message.get("content")), finish if isinstance(finish, str) else None, extra or None)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):  # some servers send blocks
        texts = [block.get("text") for block in content if isinstance(block, dict)]
        return "".join([text for text in texts if isinstance(text, str)])
    return ""


def _usage(value: Any, price: Price | None) -> tuple[Usage, bool]:
    """Token counts, with those that cannot be true counted as zero; and whether all could."""
    if not isinstance(value, dict):
        return Usage(), value is None
    prompt, prompt_ok = _tokens(value.get("prompt_tokens"))
    completion, completion_ok = _tokens(value.get("completion_tokens"))
    details = value.get("prompt_tokens_details")
    cached = _tokens(details.get("cached_tokens"))[0] if isinstance(details, dict) else 0
    clean = prompt_ok and completion_ok
    cost = price.of(prompt, completion, cached) if price is not None and clean else None
    return Usage(prompt, completion, cost), clean


def _tokens(value: Any) -> tuple[int, bool]:
    if type(value) is int and 0 <= value <= _MOST_TOKENS:
        return value, True
    return 0, value is None


def _no_answer(headers: Mapping[str, str], body: bytes) -> str:
    if not body.strip():
        return "the answer is empty"
    kind = headers.get("content-type", "")
    if "html" in kind or body.lstrip()[:1] == b"<":
        return "the answer is a web page, perhaps of a proxy or gateway, and not a completion"
    return f"the answer is not complete JSON ({len(body)} bytes)"
