"""A streamed chat completion, put together again; the whole is then read like any other answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import LMIncompleteError
from dspy_stream.lm.providers.openai.content import split_content
from dspy_stream.lm.providers.wire import Whole
from dspy_stream.lm.providers.wire import event as read
from dspy_stream.types import Delta, Response

__all__ = ["ChatStream"]

_DONE: Final = b"[DONE]"
_MOST_CHOICES: Final = 1024


class ChatStream:
    """One streamed answer. It is over with ``[DONE]``, or when every choice has its finish reason.

    A stream with several choices that is cut exactly between two of them, and has no ``[DONE]``, cannot
    be told from one with fewer.
    """

    __slots__ = ("_choices", "_format", "_headers", "_rest", "over")

    def __init__(self, format: Whole, headers: Mapping[str, str]) -> None:
        self._format = format
        self._headers = headers
        self._choices: dict[int, _Choice] = {}
        self._rest: dict[str, Any] = {}
        self.over = False

    def feed(self, event: str, data: bytes) -> list[Delta]:
        """Take one event; what it adds to the answer.

        Raises:
            LMIncompleteError: the event is not one of a chat completion.
            LMError: what the error stands for that the server sent in the stream.
        """
        if data[:1] != b"{" and data.strip() == _DONE:
            self.over = True
            return []
        value = read(data)
        get = value.get
        if get("error") or event == "error":
            # There is no going back to the status line; the code in the body says what happened.
            raise self._format.refused(value, self._headers)
        if get("object") == "error" or (get("detail") and "choices" not in value):
            raise self._format.refused({"error": get("detail") or value}, self._headers)
        # Written out: this is done for every token of every stream.
        rest = self._rest
        if (found := get("id")) is not None:
            rest["id"] = found
        if (found := get("model")) is not None:
            rest["model"] = found
        if (found := get("usage")) is not None:
            rest["usage"] = found
        if (found := get("citations")) is not None:
            rest["citations"] = found
        choices = get("choices")
        if choices is not None and not isinstance(choices, list):
            raise LMIncompleteError("an event of the stream holds no list of choices")
        deltas: list[Delta] = []
        for choice in choices or ():
            self._take(choice, deltas)
        return deltas

    def _take(self, choice: Any, deltas: list[Delta]) -> None:
        if not isinstance(choice, dict):
            raise LMIncompleteError("an event of the stream holds a choice that is none")
        get = choice.get
        if error := get("error"):
            raise self._format.refused({"error": error}, self._headers)
        number = get("index", 0)
        if type(number) is not int or not 0 <= number < _MOST_CHOICES:
            raise LMIncompleteError("an event of the stream holds a choice without a number")
        into = self._choices.get(number)
        if into is None:
            into = self._choices[number] = _Choice(number)
        if (finish := get("finish_reason")) and isinstance(finish, str):  # some servers send empty ones first
            into.finish = finish
        if (logprobs := get("logprobs")) is not None:
            into.add_logprobs(logprobs)
        delta = get("delta")
        if delta is None:  # some servers send a whole message instead
            delta = get("message")
        if isinstance(delta, dict):
            into.add(delta, deltas)

    def finish(self) -> Response:
        """The whole answer.

        Raises:
            LMIncompleteError: the stream was cut, or held no answer.
        """
        choices = [self._choices[number] for number in sorted(self._choices)]
        whole = [choice.number for choice in choices if choice.finish is not None]
        if not self.over and whole != list(range(len(choices))):
            raise LMIncompleteError("the stream ended in the middle of an answer")
        value = {**self._rest, "choices": [choice.whole() for choice in choices]}
        return self._format.response(value, self._headers)


class _Choice:
    """What has come of one choice."""

    __slots__ = (
        *("_calls", "_details", "_kept", "_logprobs", "_reasoning", "_refusal", "_text"),
        *("finish", "number"),
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.finish: str | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[Any, dict[str, Any]] = {}
        self._details: dict[Any, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] = {}
        self._kept: dict[str, list[Any]] = {}

    def add(self, delta: dict[str, Any], deltas: list[Delta]) -> None:
        content = delta.get("content")
        if len(delta) == 1 and type(content) is str:  # nearly all of them
            if content:
                self._text.append(content)
                deltas.append(Delta("text", content, self.number))
            return
        text, thought = split_content(content)
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or thought
        if reasoning and isinstance(reasoning, str):
            self._reasoning.append(reasoning)
            deltas.append(Delta("reasoning", reasoning, self.number))
        if text:
            self._text.append(text)
            deltas.append(Delta("text", text, self.number))
        if isinstance(refused := delta.get("refusal"), str):
            self._refusal.append(refused)
        for call in _dicts(delta.get("tool_calls")):
            self._add_call(call, deltas)
        if isinstance(function := delta.get("function_call"), dict):  # the one call of an older server
            self._add_call({"index": 0, "function": function}, deltas)
        for detail in _dicts(delta.get("reasoning_details")):
            self._add_detail(detail)
        for name in ("annotations", "citations"):
            if isinstance(delta.get(name), list):
                self._kept.setdefault(name, []).extend(delta[name])

    def _add_call(self, call: dict[str, Any], deltas: list[Delta]) -> None:
        place = call.get("index")
        if type(place) is not int:  # some servers send each call whole and without a number
            place = len(self._calls) if call.get("id") else max(len(self._calls) - 1, 0)
        into = self._calls.setdefault(
            place, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        if call.get("id") and isinstance(call["id"], str):
            into["id"] = call["id"]
        function = call.get("function")
        if not isinstance(function, dict):
            return
        if isinstance(name := function.get("name"), str) and name:
            into["function"]["name"] = name
        piece = function.get("arguments")
        if isinstance(piece, dict):  # of a server that sends them whole, and not as text
            piece = orjson.dumps(piece).decode()
        if isinstance(piece, str) and piece:
            into["function"]["arguments"] += piece
            deltas.append(Delta("tool", piece, self.number))

    def _add_detail(self, detail: dict[str, Any]) -> None:
        """Pieces of one block of reasoning have one number and one type."""
        number, kind = detail.get("index"), detail.get("type")
        numbered = isinstance(number, (int, str)) and isinstance(kind, str)
        key = (number, kind) if numbered else len(self._details)
        into = self._details.setdefault(key, {})
        for name, value in detail.items():
            grows = name in ("text", "summary", "data") and isinstance(into.get(name), str)
            if grows and isinstance(value, str):
                into[name] += value
            elif value is not None or name not in into:
                into[name] = value

    def add_logprobs(self, logprobs: Any) -> None:
        """Logprobs come token by token, in lists under ``content`` and ``refusal``."""
        if isinstance(logprobs, dict):
            for name, tokens in logprobs.items():
                if isinstance(tokens, list):
                    self._logprobs.setdefault(name, []).extend(tokens)

    def whole(self) -> dict[str, Any]:
        """The choice as it would have come in one piece."""
        message: dict[str, Any] = {"content": "".join(self._text), **self._kept}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._refusal:
            message["refusal"] = "".join(self._refusal)
        if self._calls:
            message["tool_calls"] = list(self._calls.values())
        if self._details:
            message["reasoning_details"] = list(self._details.values())
        return {"message": message, "finish_reason": self.finish, "logprobs": self._logprobs or None}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
