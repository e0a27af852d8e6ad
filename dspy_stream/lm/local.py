"""``local/nearest``: a stand-in model in process, for first runs, tests and benchmarks.

It is not a language model. It looks for the demo in the prompt that is most like the question and
repeats that demo's answer, word for word. What it gets right therefore depends on the demos alone,
and better demos give better answers, which is what makes it useful for trying out a program or an
optimizer without a key or a server.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson

from dspy_stream.clock import Clock
from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.kwargs import check_options
from dspy_stream.lm.settled import SettledLM
from dspy_stream.types import Choice, Layer, Message, Request, Response, Usage

__all__ = ["LocalLM", "Nearest"]

_NAME: Final = "local/nearest"
_MEMO: Final = "local/nearest"
_WORD: Final = re.compile(r"[^\W_]+(?:'[a-z]+)?")
_MARKER: Final = re.compile(r"^\[\[ ## (\w+) ## \]\]", re.MULTILINE)
# Adapters close a question with a reminder of the answer's form, which is no part of the question.
_REMINDER: Final = re.compile(r"\n\n(?:Answer|Respond) with [^\n]*`[^\n]*\Z")
_ASKED_MARKER: Final = re.compile(r"`\[\[ ## (\w+) ## \]\]`")
_ASKED_KEY: Final = re.compile(r"`(\w+)`")
_STEM: Final = 5


class LocalLM(SettledLM):
    """The model ``local/nearest``: answers with the answer of the nearest demo in the prompt.

    Nearness is the cosine between bags of words and word beginnings, each weighted by how rare it
    is among the demos: the square root of the inverse document frequency, since with a handful of
    demos a rare word says little. Of equally near demos the first counts; where no demo shares
    anything with the question, the most frequent answer does. Without any demo it cannot answer, and
    repeats the question's text in every field that was asked for, so that a program's plumbing can
    be tried; fields that cannot hold any text then fail to parse.

    Costs nothing and needs no network. Tokens are counted as a quarter of the characters.
    ``latency`` is slept before every answer, in seconds.

    >>> texts = ["Where is my card?", "card_arrival", "I lost my phone", "lost_phone", "Lost phone!"]
    >>> roles = ["user", "assistant"] * 3
    >>> LocalLM()(messages=[{"role": role, "content": text} for role, text in zip(roles, texts)])
    ['lost_phone']
    """

    __slots__ = ("latency",)

    latency: float

    def __init__(
        self,
        model: str = _NAME,
        *,
        latency: float = 0.0,
        cache: bool = True,
        rollout_id: int | None = None,
        **options: Any,
    ) -> None:
        if model != _NAME:
            raise LMConfigurationError(f"there is no {model!r}; the model in process is {_NAME!r}")
        self._fill(
            model=model,
            latency=latency,
            cache=cache,
            callbacks=options.pop("callbacks", None),
            rollout_id=rollout_id,
            options=check_options(options),
        )

    def core(self, clock: Clock) -> Layer:
        """The bare model, without layers."""
        return Nearest(latency=self.latency, clock=clock)

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:  # noqa: ARG002
        return self.core(clock)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LocalLM):
            return NotImplemented
        return self.dump_state() == other.dump_state() and self.latency == other.latency

    def __hash__(self) -> int:
        return hash((self.model, self.latency, self.rollout_id))

    def __repr__(self) -> str:
        return f"LocalLM(latency={self.latency:g})"


class Nearest:
    """The layer that answers; the index of a prompt's demos is made once and kept with its head."""

    __slots__ = ("_clock", "_latency")

    def __init__(self, *, latency: float, clock: Clock) -> None:
        self._latency = latency
        self._clock = clock

    async def __call__(self, request: Request) -> Response:
        """The nearest demo's answer."""
        if self._latency > 0:
            await self._clock.sleep(self._latency)
        memo = request.head.memo
        index = memo.get(_MEMO)
        if index is None:
            index = memo[_MEMO] = _Index(request.head.messages)
        earlier, question = _split(request.tail)
        if earlier:  # demos or a history that belong to this request alone
            index = _Index((*request.head.messages, *earlier))
        answer = index.nearest(question)
        if answer is None:
            answer = _echo(question)
        prompt = index.characters + sum([len(message.content) for message in request.tail])
        return Response((Choice(answer, "stop"),), Usage(prompt // 4, len(answer) // 4, 0.0), _NAME)

    async def aclose(self) -> None:
        """Nothing to close."""


class _Index:
    """For each feature, which demos have it in their question and what it weighs there."""

    __slots__ = ("_answers", "_common", "_postings", "characters")

    def __init__(self, messages: Sequence[Message]) -> None:
        pairs = list(_pairs(messages))
        bags = [_features(question) for question, _ in pairs]
        seen = Counter(feature for bag in bags for feature in bag)
        self.characters = sum(len(message.content) for message in messages)
        self._answers = [answer for _, answer in pairs]
        self._common = Counter(self._answers).most_common(1)[0][0] if pairs else None
        # A feature of every demo tells nothing, and its list would be the longest: it is left out.
        idf = {
            feature: math.sqrt(math.log(1 + len(pairs) / n))
            for feature, n in seen.items()
            if n < len(pairs) or n == 1
        }
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for number, bag in enumerate(bags):
            weights = {feature: idf[feature] for feature in bag if feature in idf}
            norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
            for feature, weight in weights.items():
                self._postings.setdefault(feature, []).append((number, weight * weight / norm))

    def nearest(self, question: str) -> str | None:
        """The answer of the nearest demo; None where there are no demos."""
        scores: dict[int, float] = {}
        postings = self._postings
        known = scores.get
        for feature in _features(question):
            for number, weight in postings.get(feature, ()):
                scores[number] = known(number, 0.0) + weight
        if not scores:
            return self._common
        best = max(scores.values())
        return self._answers[min([number for number, score in scores.items() if score == best])]


def _pairs(messages: Iterable[Message]) -> Iterable[tuple[str, str]]:
    asked: str | None = None
    for message in messages:
        if message.role == "user":
            asked = _text(message)
        elif message.role == "assistant" and asked is not None:
            yield asked, _text(message)
            asked = None


def _split(tail: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """What comes before the question, and the question: the last turn of the user."""
    for place in range(len(tail) - 1, -1, -1):
        if tail[place].role == "user":
            return tail[:place], _text(tail[place])
    return tail, ""


def _text(message: Message) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    return "\n".join([str(block["text"]) for block in content if "text" in block])


def _features(text: str) -> dict[str, None]:
    """Words and beginnings of longer words, in order and each once.

    The order is that of the text, so that sums of floats come out the same in every process.
    """
    words = _WORD.findall(_MARKER.sub("", _REMINDER.sub("", text)).lower())
    made = dict.fromkeys(words)
    made.update(dict.fromkeys([word[:_STEM] + "-" for word in words if len(word) >= _STEM]))
    return made


def _echo(question: str) -> str:
    reminder = _REMINDER.search(question)
    text = _MARKER.sub("", _REMINDER.sub("", question)).strip()
    if reminder is None:
        return text
    asked = _ASKED_MARKER.findall(reminder.group())
    if asked:
        shown = [f"[[ ## {name} ## ]]\n{text}" for name in asked if name != "completed"]
        return "\n\n".join([*shown, "[[ ## completed ## ]]"])
    return orjson.dumps(dict.fromkeys(_ASKED_KEY.findall(reminder.group()), text)).decode()
