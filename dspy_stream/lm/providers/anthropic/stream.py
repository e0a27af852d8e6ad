"""A streamed message of Anthropic's, put together again; the whole is then read like any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import LMIncompleteError
from dspy_stream.lm.providers.anthropic.options import ANSWER_TOOL
from dspy_stream.lm.providers.wire import Whole
from dspy_stream.lm.providers.wire import event as read
from dspy_stream.types import Delta, Response

__all__ = ["MessagesStream"]

# Deltas of a block: the field of the delta, which is also that of the block.
_PIECES: Final = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


class MessagesStream:
    """One streamed answer. It is over with ``message_stop``."""

    __slots__ = ("_blocks", "_format", "_headers", "_inputs", "_message", "over")

    def __init__(self, format: Whole, headers: Mapping[str, str]) -> None:
        self._format = format
        self._headers = headers
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, list[str]] = {}
        self.over = False

    def feed(self, event: str, data: bytes) -> list[Delta]:
        """Take one event; what it adds to the answer.

        Raises:
            LMIncompleteError: the event is not one of a message.
            LMError: what the error stands for that the server sent in the stream.
        """
        value = read(data)
        kind = value.get("type", event)
        if kind == "error" or (value.get("error") and kind == "message"):
            raise self._format.refused({**value, "error": value.get("error") or value}, self._headers)
        if kind == "content_block_delta":
            return self._delta(value)
        if kind == "message_start":
            message = value.get("message")
            self._message = dict(message) if isinstance(message, dict) else {}
        elif kind == "content_block_start":
            self._start(value)
        elif kind == "message_delta":
            self._end(value)
        elif kind == "message_stop":
            self.over = True
        return []

    def _start(self, value: dict[str, Any]) -> None:
        block = value.get("content_block")
        self._blocks[_place(value)] = dict(block) if isinstance(block, dict) else {}

    def _delta(self, value: dict[str, Any]) -> list[Delta]:
        place, delta = _place(value), value.get("delta")
        block = self._blocks.get(place)
        if block is None or not isinstance(delta, dict):
            raise LMIncompleteError("an event of the stream adds to a block that was not begun")
        kind = delta.get("type")
        if kind == "input_json_delta":
            return self._input(place, block, delta.get("partial_json"))
        if kind == "citations_delta":
            cited = block.get("citations")
            block["citations"] = [*(cited if isinstance(cited, list) else ()), delta.get("citation")]
            return []
        name = _PIECES.get(kind) if isinstance(kind, str) else None
        piece = delta.get(name) if name is not None else None
        if name is None or not isinstance(piece, str) or not piece:
            return []
        known = block.get(name)
        block[name] = (known if isinstance(known, str) else "") + piece
        if name == "signature":
            return []
        return [Delta("text" if name == "text" else "reasoning", piece)]

    def _input(self, place: int, block: dict[str, Any], piece: Any) -> list[Delta]:
        if not isinstance(piece, str) or not piece:
            return []
        self._inputs.setdefault(place, []).append(piece)
        return [Delta("text" if block.get("name") == ANSWER_TOOL else "tool", piece)]

    def _end(self, value: dict[str, Any]) -> None:
        """The reason for the end, and counts that are those of the whole message so far."""
        if self._message is None:
            raise LMIncompleteError("the stream's message ends before it began")
        delta, usage = value.get("delta"), value.get("usage")
        if isinstance(delta, dict):
            self._message.update({name: each for name, each in delta.items() if each is not None})
        if isinstance(usage, dict):
            known = self._message.get("usage")
            counted = {name: count for name, count in usage.items() if count is not None}
            self._message["usage"] = {**(known if isinstance(known, dict) else {}), **counted}

    def finish(self) -> Response:
        """The whole answer.

        Raises:
            LMIncompleteError: the stream was cut.
        """
        if self._message is None or not self.over:
            raise LMIncompleteError("the stream ended in the middle of an answer")
        for place, pieces in self._inputs.items():
            self._blocks[place]["input"] = _whole("".join(pieces))
        content = [self._blocks[place] for place in sorted(self._blocks)]
        return self._format.response({**self._message, "content": content}, self._headers)


def _place(value: dict[str, Any]) -> int:
    place = value.get("index")
    if type(place) is not int:
        raise LMIncompleteError("an event of the stream holds a block without a number")
    return place


def _whole(text: str) -> Any:
    """The input as an object; the text itself where the stream was cut by the limit on tokens."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
