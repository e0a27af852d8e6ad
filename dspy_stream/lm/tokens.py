"""How many tokens a call may take, judged before it is made and corrected by those made before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.types import Message, Request, Usage

__all__ = ["BYTES_PER_TOKEN", "Gauge", "answer_limit", "request_bytes"]

BYTES_PER_TOKEN: Final = 4.0
"""Bytes of text in a token, as a rule of thumb for English; languages and models differ."""

# A picture, a sound or a file counts as so many bytes of text: what it costs does not follow from its size.
_BLOCK: Final = 4000
# What a provider's own layout adds to a turn.
_TURN: Final = 16
_MEMO: Final = "bytes of the head"
_IN_PROMPT: Final = ("tools", "response_format")
# What is kept in reserve over the mean: prompts of one step are alike, answers less so.
_PROMPT_MARGIN: Final = 1.1
_ANSWER_MARGIN: Final = 2.0
# Tokens of an answer while none has been seen.
_GUESS: Final = 256


def request_bytes(request: Request) -> int:
    """Bytes of the prompt: its texts, and what of the options goes into it.

    >>> request_bytes(Request.of("openai/gpt-4o-mini", "Say hi"))
    22
    """
    head = request.head
    size: int | None = head.memo.get(_MEMO)
    if size is None:
        size = sum(map(_message_bytes, head.messages))
        for name in _IN_PROMPT:
            if head.options.get(name):
                size += len(orjson.dumps(head.options[name], default=str, option=orjson.OPT_NON_STR_KEYS))
        head.memo[_MEMO] = size
    return size + sum(map(_message_bytes, request.tail))


def _message_bytes(message: Message) -> int:
    content = message.content
    if isinstance(content, str):
        return _TURN + (len(content) if content.isascii() else len(content.encode("utf-8", "replace")))
    return _TURN + sum(map(_block_bytes, content))


def _block_bytes(block: Mapping[str, Any]) -> int:
    text = block.get("text")
    return len(text.encode("utf-8", "replace")) if isinstance(text, str) else _BLOCK


def answer_limit(options: Mapping[str, Any]) -> int | None:
    """The most tokens that all answers of a request may have; None where nobody set a limit.

    >>> answer_limit({"max_tokens": 100, "n": 3}), answer_limit({})
    (300, None)
    """
    for name in ("max_completion_tokens", "max_tokens"):
        limit = options.get(name)
        if isinstance(limit, int) and limit > 0:
            count = options.get("n")
            return limit * (count if isinstance(count, int) and count > 1 else 1)
    return None


class Gauge:
    """What calls to one model took so far, and from that what the next one may take.

    >>> gauge = Gauge()
    >>> request = Request.of("openai/gpt-4o-mini", "x" * 384, max_tokens=50)
    >>> gauge.expect(request)
    (100, 50)
    >>> gauge.learn(request, Usage(200, 20))
    >>> gauge.expect(request)
    (220, 50)
    """

    __slots__ = ("_answers", "_bytes", "_calls", "_cost", "_counted", "_priced", "_prompts")

    def __init__(self) -> None:
        self._calls = 0
        self._counted = 0  # calls whose tokens are known
        self._priced = 0
        self._bytes = 0
        self._prompts = 0
        self._answers = 0
        self._cost = 0.0

    @property
    def known(self) -> bool:
        """True once an answer has been seen."""
        return self._calls > 0

    @property
    def mean_cost(self) -> float:
        """US dollars of a call so far; 0 where none has a known cost."""
        return self._cost / self._priced if self._priced else 0.0

    def expect(self, request: Request) -> tuple[int, int]:
        """Tokens of prompt and answer to keep in reserve for this request.

        The prompt: a quarter of its bytes, or the ratio seen so far and a tenth more. The answer: what
        the request allows, where it says so; else twice the mean so far.
        """
        ratio = self._prompts / self._bytes * _PROMPT_MARGIN if self._prompts else 1.0 / BYTES_PER_TOKEN
        limit = answer_limit(request.options)
        if limit is None:
            limit = int(self._answers / self._counted * _ANSWER_MARGIN) + 1 if self._counted else _GUESS
        return max(1, int(request_bytes(request) * ratio + 0.5)), limit

    def learn(self, request: Request, usage: Usage) -> None:
        """Take in what a call took, as far as the server has said it."""
        self._calls += 1
        if usage.cost is not None:
            self._priced += 1
            self._cost += usage.cost
        if usage.prompt_tokens:
            self._counted += 1
            self._answers += usage.completion_tokens
            self._bytes += request_bytes(request)
            self._prompts += usage.prompt_tokens
