"""A streamed answer of Gemini's: each event is a response with the next parts of each candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import LMIncompleteError
from dspy_stream.lm.providers.wire import Whole
from dspy_stream.lm.providers.wire import event as read
from dspy_stream.types import Delta, Response

__all__ = ["GenerateStream"]

_MOST_CANDIDATES: Final = 1024


class GenerateStream:
    """One streamed answer. It is over when every candidate has its finish reason."""

    __slots__ = ("_candidates", "_format", "_headers", "_rest")

    over = False  # no event says so

    def __init__(self, format: Whole, headers: Mapping[str, str]) -> None:
        self._format = format
        self._headers = headers
        self._rest: dict[str, Any] = {}
        self._candidates: dict[int, dict[str, Any]] = {}

    def feed(self, event: str, data: bytes) -> list[Delta]:
        """Take one event; what it adds to the answer.

        Raises:
            LMIncompleteError: the event is not a response.
            LMError: what the error stands for that the server sent in the stream.
        """
        value = read(data)
        if value.get("error") or event == "error":
            raise self._format.refused(value, self._headers)
        candidates = value.pop("candidates", None)
        self._rest.update({name: each for name, each in value.items() if each is not None})
        deltas: list[Delta] = []
        for place, candidate in enumerate(candidates if isinstance(candidates, list) else ()):
            if not isinstance(candidate, dict):
                raise LMIncompleteError("an event of the stream holds a candidate that is none")
            number = candidate.get("index", place)
            if type(number) is not int or not 0 <= number < _MOST_CANDIDATES:
                raise LMIncompleteError("an event of the stream holds a candidate without a number")
            self._add(number, candidate, deltas)
        return deltas

    def _add(self, number: int, candidate: dict[str, Any], deltas: list[Delta]) -> None:
        into = self._candidates.setdefault(number, {"content": {"parts": []}})
        content = candidate.pop("content", None)
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            into["content"]["parts"].append(part)
            _tell(part, number, deltas)
        logprobs = candidate.pop("logprobsResult", None)
        if isinstance(logprobs, dict):
            known = into.setdefault("logprobsResult", {})
            for name, tokens in logprobs.items():
                if isinstance(tokens, list):
                    known[name] = [*known.get(name, ()), *tokens]
        into.update({name: each for name, each in candidate.items() if each is not None})

    def finish(self) -> Response:
        """The whole answer.

        Raises:
            LMIncompleteError: the stream was cut, or held no answer.
        """
        candidates = [self._candidates[number] for number in sorted(self._candidates)]
        reasons = [candidate.get("finishReason") for candidate in candidates]
        if any(not reason or not isinstance(reason, str) for reason in reasons):
            raise LMIncompleteError("the stream ended in the middle of an answer")
        return self._format.response({**self._rest, "candidates": candidates}, self._headers)


def _tell(part: Any, number: int, deltas: list[Delta]) -> None:
    if not isinstance(part, dict):
        return
    text, call = part.get("text"), part.get("functionCall")
    if isinstance(text, str) and text:
        deltas.append(Delta("reasoning" if part.get("thought") else "text", text, number))
    if isinstance(call, dict):
        deltas.append(Delta("tool", orjson.dumps(call.get("args") or {}).decode(), number))
