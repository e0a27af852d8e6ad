"""A streamed response: its last event holds the whole, and is read like any other answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dspy_stream.errors import LMIncompleteError
from dspy_stream.lm.providers.wire import Whole
from dspy_stream.lm.providers.wire import event as read
from dspy_stream.types import Delta, Response

__all__ = ["ResponsesStream"]

_KINDS: Final[Mapping[str, Any]] = {
    "response.output_text.delta": "text",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.reasoning_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool",
}


class ResponsesStream:
    """One streamed answer. It is over when the response is completed or incomplete."""

    __slots__ = ("_format", "_headers", "_whole")

    def __init__(self, format: Whole, headers: Mapping[str, str]) -> None:
        self._format = format
        self._headers = headers
        self._whole: Any = None

    def feed(self, event: str, data: bytes) -> list[Delta]:
        """Take one event; what it adds to the answer.

        Raises:
            LMIncompleteError: the event is not one of a response.
            LMError: what the error stands for that the server sent in the stream.
        """
        if data.strip() == b"[DONE]":
            return []
        value = read(data)
        kind = value.get("type", event)
        made = _KINDS.get(kind) if isinstance(kind, str) else None
        if made is not None:
            piece = value.get("delta")
            return [Delta(made, piece)] if isinstance(piece, str) and piece else []
        if kind == "error" or (kind == event == "message" and value.get("error")):
            raise self._format.refused({"error": value.get("error") or value}, self._headers)
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self._whole = value.get("response")
            if kind == "response.failed":
                return self._failed()
        return []

    def _failed(self) -> list[Delta]:
        whole = self._whole if isinstance(self._whole, dict) else {}
        raise self._format.refused({**whole, "error": whole.get("error") or "failed"}, self._headers)

    @property
    def over(self) -> bool:
        """The response is there."""
        return self._whole is not None

    def finish(self) -> Response:
        """The whole answer.

        Raises:
            LMIncompleteError: the stream was cut.
        """
        if self._whole is None:
            raise LMIncompleteError("the stream ended in the middle of an answer")
        return self._format.response(self._whole, self._headers)
