"""Google's generateContent format: pure encoding and decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from dspy_stream.errors import LMInvalidRequestError
from dspy_stream.lm.cost import Price
from dspy_stream.lm.families import gemini
from dspy_stream.lm.providers.format import StreamDecoder
from dspy_stream.lm.providers.gemini.answer import blocked, choice_of, usage_of
from dspy_stream.lm.providers.gemini.options import options_of
from dspy_stream.lm.providers.gemini.stream import GenerateStream
from dspy_stream.lm.providers.gemini.turns import Content, contents, system_parts
from dspy_stream.lm.providers.wire import SYSTEM_ROLES, JsonFormat, check_path, dumps
from dspy_stream.types import Message, Request, Response

__all__ = ["GenerateContent"]

_SIGNED: Final = (3, 0)  # from then on models want each call's signature back


class _Start(NamedTuple):
    """A head in bytes: all up to its last turn, that turn without its end, and whose turn it is."""

    before: bytes
    last: bytes
    role: str | None
    named: Mapping[str, Mapping[str, str]]


class GenerateContent(JsonFormat):
    """Requests to one of Google's models as bytes, and its answers as responses.

    The key goes into a header and never into the address.

    >>> format = GenerateContent("gemini-2.5-flash")
    >>> format.encode(Request.of("gemini/gemini-2.5-flash", "hi"))
    b'{"contents":[{"role":"user","parts":[{"text":"hi"}]}]}'
    >>> format.stream_path
    '/models/gemini-2.5-flash:streamGenerateContent?alt=sse'
    """

    __slots__ = ("_signed", "path", "stream_path")

    _wanted = "candidates"

    def __init__(
        self, model: str, *, price: Price | None = None, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(model, price=price, now=now)
        check_path(model)
        version = gemini(model)
        self._signed = version is not None and version.version >= _SIGNED
        place = model if "/" in model else f"models/{model}"
        self.path: Final = f"/{place}:generateContent"
        self.stream_path: Final = f"/{place}:streamGenerateContent?alt=sse"

    def headers(self, key: str | None) -> dict[str, str]:
        """What every request carries; ``key`` in the x-goog-api-key header, where there is one."""
        made = super().headers(None)
        if key:
            made["x-goog-api-key"] = key
        return made

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder:
        """A decoder for one streamed answer."""
        return GenerateStream(self, headers)

    def _body(self, request: Request, stream: bool) -> bytes:  # noqa: ARG002  the path says it
        head, tail = request.head, request.tail
        if any(message.role in SYSTEM_ROLES for message in tail):
            # It belongs before the head's turns, so that nothing can be kept with the head.
            start, rest = self._start(request.options, request.messages), []
        else:
            found = head.memo.get(self._memo)
            if found is None:
                found = head.memo[self._memo] = self._start(request.options, head.messages)
            start, rest = found, contents(tail, dict(found.named), signed=self._signed)
        return _append(start, rest) + b"]}"

    def _start(self, options: Mapping[str, Any], messages: Sequence[Message]) -> _Start:
        sent = options_of(self._model, options)
        system = system_parts(messages)
        if system:
            own = sent.get("systemInstruction") or {}
            sent["systemInstruction"] = {"parts": [*(own.get("parts") or ()), *system]}
        named: dict[str, Mapping[str, str]] = {}
        said = contents(messages, named, signed=self._signed)
        body = dumps(sent)[:-1]
        before = body + (b"," if len(body) > 1 else b"") + b'"contents":['
        if not said:
            return _Start(before, b"", None, named)
        written = [_open(content) for content in said]
        before += b"".join([content + b"]}," for content in written[:-1]])
        return _Start(before, written[-1], said[-1].role, named)

    def _response(self, value: dict[str, Any], headers: Mapping[str, str]) -> Response | None:
        candidates = value.get("candidates")
        usage, clean = usage_of(value.get("usageMetadata"), self._price)
        if isinstance(candidates, list) and candidates:
            choices = tuple([choice_of(candidate, clean) for candidate in candidates])
        else:
            stopped = blocked(value.get("promptFeedback"))
            if stopped is None:
                return None
            choices = (stopped,)
        model, request_id = value.get("modelVersion"), value.get("responseId")
        return Response(
            choices,
            usage,
            model if isinstance(model, str) else self._model,
            request_id if isinstance(request_id, str) else headers.get("x-request-id"),
        )


def _append(start: _Start, rest: list[Content]) -> bytes:
    before, last, role, _named = start
    if role is not None and rest and rest[0].role == role:
        inside = b",".join([dumps(part) for part in rest[0].parts])
        last += (b"," if inside and last[-1:] != b"[" else b"") + inside
        rest = rest[1:]
    written = ([last] if role is not None else []) + [_open(content) for content in rest]
    if not written:
        raise LMInvalidRequestError("Gemini needs a turn of the user; there is only a system text")
    return before + b"]},".join(written) + b"]}"


def _open(content: Content) -> bytes:
    parts = b",".join([dumps(part) for part in content.parts])
    return b'{"role":"%b","parts":[%b' % (content.role.encode(), parts)
