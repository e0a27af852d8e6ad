"""OpenAI's old completions format, for base models: one prompt in, its continuation out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import LMConfigurationError, LMIncompleteError
from dspy_stream.lm.providers.counts import Counter
from dspy_stream.lm.providers.format import StreamDecoder
from dspy_stream.lm.providers.openai.chat import finish_of
from dspy_stream.lm.providers.openai.dialect import sendable
from dspy_stream.lm.providers.wire import JsonFormat, Whole, dumps, text_of
from dspy_stream.lm.providers.wire import event as read
from dspy_stream.types import Choice, Delta, Message, Request, Response

__all__ = ["TextCompletions"]

_CHAT_ONLY: Final = ("tools", "tool_choice", "response_format", "reasoning_effort")


class TextCompletions(JsonFormat):
    """Requests to one model as a single prompt: the turns one after the other, roles left out.

    >>> TextCompletions("m").encode(Request.of("openai/m", "Once upon", max_tokens=5))
    b'{"model":"m","max_tokens":5,"prompt":"Once upon"}'
    """

    __slots__ = ()

    path: Final = "/completions"
    stream_path: Final = "/completions"
    _wanted = "choices"

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder:
        """A decoder for one streamed answer."""
        return _TextStream(self, headers)

    def _body(self, request: Request, stream: bool) -> bytes:
        prefix = request.head.memo.get(self._memo)
        if prefix is None:
            prefix = request.head.memo[self._memo] = self._prefix(request)
        start, texts = prefix
        prompt = "\n\n".join([*texts, *map(_text, request.tail)])
        usage = b',"stream":true,"stream_options":{"include_usage":true}}' if stream else b"}"
        return bytes(start + b',"prompt":' + orjson.dumps(prompt) + usage)

    def _prefix(self, request: Request) -> tuple[bytes, list[str]]:
        options = sendable(request.options)
        for name in _CHAT_ONLY:
            if name in options:
                raise LMConfigurationError(f"text completions have no option {name!r}")
        return dumps({"model": self._model, **options})[:-1], list(map(_text, request.head.messages))

    def _response(self, value: dict[str, Any], headers: Mapping[str, str]) -> Response | None:
        choices = value.get("choices")
        if not isinstance(choices, list) or not choices:
            return None
        counter = Counter(value.get("usage"))
        usage = counter.usage(
            counter.take("prompt_tokens", needed=True),
            counter.take("completion_tokens", needed=True),
            self._price,
        )
        made = []
        for choice in choices:
            if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
                raise LMIncompleteError("a choice holds no text")
            extra = {"logprobs": choice["logprobs"]} if choice.get("logprobs") else {}
            if not counter.clean:
                extra["usage_invalid"] = True
            made.append(Choice(choice["text"], finish_of(choice.get("finish_reason")), extra or None))
        model, request_id = value.get("model"), headers.get("x-request-id") or value.get("id")
        return Response(
            tuple(made),
            usage,
            model if isinstance(model, str) else self._model,
            request_id if isinstance(request_id, str) else None,
        )


def _text(message: Message) -> str:
    return text_of(message.content)


class _TextStream:
    __slots__ = ("_choices", "_format", "_headers", "_rest", "over")

    def __init__(self, format: Whole, headers: Mapping[str, str]) -> None:
        self._format = format
        self._headers = headers
        self._choices: dict[int, dict[str, Any]] = {}
        self._rest: dict[str, Any] = {}
        self.over = False

    def feed(self, event: str, data: bytes) -> list[Delta]:
        if data.strip() == b"[DONE]":
            self.over = True
            return []
        value = read(data)
        if value.get("error") or event == "error":
            raise self._format.refused(value, self._headers)
        self._rest.update({name: value[name] for name in ("id", "model", "usage") if value.get(name)})
        choices = value.get("choices")
        deltas = []
        for choice in choices if isinstance(choices, list) else ():
            number = choice.get("index", 0) if isinstance(choice, dict) else None
            if type(number) is not int:
                raise LMIncompleteError("an event of the stream holds a choice without a number")
            into = self._choices.setdefault(number, {"text": "", "finish_reason": None})
            into["finish_reason"] = choice.get("finish_reason") or into["finish_reason"]
            piece = choice.get("text")
            if isinstance(piece, str) and piece:
                into["text"] += piece
                deltas.append(Delta("text", piece, number))
        return deltas

    def finish(self) -> Response:
        choices = [self._choices[number] for number in sorted(self._choices)]
        if not self.over and not all(choice["finish_reason"] for choice in choices):
            raise LMIncompleteError("the stream ended in the middle of an answer")
        return self._format.response({**self._rest, "choices": choices}, self._headers)
