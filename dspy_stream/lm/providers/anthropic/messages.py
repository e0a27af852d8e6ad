"""Anthropic's messages format: pure encoding and decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from dspy_stream.errors import LMInvalidRequestError
from dspy_stream.lm.families import claude
from dspy_stream.lm.providers.anthropic.answer import choice_of, usage_of
from dspy_stream.lm.providers.anthropic.options import options_of
from dspy_stream.lm.providers.anthropic.stream import MessagesStream
from dspy_stream.lm.providers.anthropic.turns import Turn, system_blocks, turns
from dspy_stream.lm.providers.format import StreamDecoder
from dspy_stream.lm.providers.wire import SYSTEM_ROLES, JsonFormat, dumps
from dspy_stream.types import Message, Request, Response

__all__ = ["Messages"]

_VERSION: Final = "2023-06-01"
_FILES: Final = "files-api-2025-04-14"  # without it no file is known by its id
_BINDING: Final = "thinking-binding-controls-2026-08-01"  # without it no thoughts are let go
_MARK: Final = {"type": "ephemeral"}
# Blocks that no mark may be put on.
_UNMARKED: Final = frozenset({"thinking", "redacted_thinking"})


class _Start(NamedTuple):
    """A head in bytes: all up to its last turn, that turn without its end, and whose turn it is."""

    before: bytes
    last: bytes
    role: str | None


class Messages(JsonFormat):
    """Requests to one of Anthropic's models as bytes, and its answers as responses.

    What all rows share is marked to be kept in the provider's prompt cache; ``prompt_cache=False``
    among the options leaves the mark out.

    >>> format = Messages("claude-haiku-4-5")
    >>> orjson.loads(format.encode(Request.of("anthropic/claude-haiku-4-5", "hi")))["messages"]
    [{'role': 'user', 'content': [{'type': 'text', 'text': 'hi'}]}]
    """

    __slots__ = ()

    path: Final = "/messages"
    stream_path: Final = "/messages"
    _wanted = "content"

    def headers(self, key: str | None) -> dict[str, str]:
        """What every request carries; ``key`` in the x-api-key header, where there is one."""
        version = claude(self._model)
        beta = f"{_FILES},{_BINDING}" if version is not None and version.binds_thinking else _FILES
        made = {**super().headers(None), "anthropic-version": _VERSION, "anthropic-beta": beta}
        if key:
            made["x-api-key"] = key
        return made

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder:
        """A decoder for one streamed answer."""
        return MessagesStream(self, headers)

    def _body(self, request: Request, stream: bool) -> bytes:
        head, tail = request.head, request.tail
        if any(message.role in SYSTEM_ROLES for message in tail):
            # It belongs before the head's turns, so that nothing can be kept with the head.
            start, rest = self._start(request.options, head.messages, tail), []
        else:
            found = head.memo.get(self._memo)
            if found is None:
                found = head.memo[self._memo] = self._start(request.options, head.messages, ())
            start, rest = found, turns(tail)
        end = b'],"stream":true}' if stream else b"]}"
        return _append(start, rest) + end

    def _start(self, options: Mapping[str, Any], head: Sequence[Message], tail: Sequence[Message]) -> _Start:
        sent = {"model": self._model, **options_of(self._model, options)}
        said = turns(head)
        system = system_blocks(head)
        if options.get("prompt_cache", True):
            _mark(said, system)
        system += system_blocks(tail)
        own = sent.pop("system", None)
        if own is not None:
            system = [*([{"type": "text", "text": own}] if isinstance(own, str) else own), *system]
        if system:
            sent["system"] = system
        start = _open(said, dumps(sent)[:-1] + b',"messages":[')
        return start if not tail else _Start(_append(start, turns(tail)), b"", None)

    def _response(self, value: dict[str, Any], headers: Mapping[str, str]) -> Response | None:
        content = value.get("content")
        if not isinstance(content, list):
            return None
        usage, clean = usage_of(value.get("usage"), self._price)
        model, request_id = value.get("model"), headers.get("request-id") or value.get("id")
        return Response(
            (choice_of(content, value.get("stop_reason"), clean),),
            usage,
            model if isinstance(model, str) else self._model,
            request_id if isinstance(request_id, str) else None,
        )


def _mark(said: list[Turn], system: list[Mapping[str, Any]]) -> None:
    """Mark the last block of the constant part, unless the user has placed marks."""
    places = [turn.blocks for turn in said if turn.blocks] + ([system] if system else [])
    if any(block.get("cache_control") for place in places for block in place):
        return
    last = (said[-1].blocks if said and said[-1].blocks else system) or None
    if last and last[-1].get("type") not in _UNMARKED:
        last[-1] = {**last[-1], "cache_control": _MARK}


def _open(said: list[Turn], before: bytes) -> _Start:
    """The turns in bytes, the last one still open for blocks of the same role."""
    if not said:
        return _Start(before, b"", None)
    written = [_open_turn(turn) for turn in said]
    return _Start(before + b"".join([turn + b"]}," for turn in written[:-1]]), written[-1], said[-1].role)


def _append(start: _Start, rest: list[Turn]) -> bytes:
    before, last, role = start
    if role is not None and rest and rest[0].role == role:
        inside = b",".join([dumps(block) for block in rest[0].blocks])
        last += (b"," if inside and last[-1:] != b"[" else b"") + inside
        rest = rest[1:]
    written = [last] if role is not None else []
    written += [_open_turn(turn) for turn in rest]
    if not written and before[-1:] == b"[":
        raise LMInvalidRequestError("Anthropic needs a turn of the user; there is only a system text")
    return before + b"]},".join(written) + (b"]}" if written else b"")


def _open_turn(turn: Turn) -> bytes:
    return b'{"role":"%b","content":[%b' % (
        turn.role.encode(),
        b",".join([orjson.dumps(block, default=dict) for block in turn.blocks]),
    )
