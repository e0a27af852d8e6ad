"""A model for tests, with the name and the call shapes that programs written for DSPy know."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dspy_stream.clock import Clock
from dspy_stream.lm.model import BaseLM
from dspy_stream.types import Choice, Layer, Message, Request, Response, Usage

__all__ = ["DummyLM"]

_NOTHING: Final = "No more responses"
_THOUGHTS: Final = "Some reasoning"
_FREE: Final = Usage(0, 0, 0.0)


class DummyLM(BaseLM):
    """A model that gives the answers it was made with; see ``ScriptedLM`` for failures and latency.

    ``answers`` is a list of dicts of output fields, used up in the order of the calls (with ``n`` one for
    each completion), or a dict from a piece of the last message to such a dict. Where there is none left,
    or none that fits, the answer is ``No more responses``. With ``follow_examples`` the demo whose
    question is the one that is asked is repeated. ``adapter`` says in which form fields are written, as
    that of a program does; ``reasoning`` adds thoughts beside each answer. Every call counts:
    nothing is kept and given again. ``get_convo(i)`` is the prompt and the outputs of a call.

    >>> lm = DummyLM([{"answer": "red"}, {"answer": "blue"}])
    >>> lm("What colour is the sun at dusk?"), lm("And the sky at noon?")
    (['[[ ## answer ## ]]\\nred'], ['[[ ## answer ## ]]\\nblue'])
    """

    answers: Iterator[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]
    follow_examples: bool
    reasoning: bool
    adapter: Any

    def __init__(
        self,
        answers: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]],
        follow_examples: bool = False,
        reasoning: bool = False,
        adapter: Any = None,
    ) -> None:
        super().__init__("dummy", "chat", 0.0, 1000)
        self.answers = answers if isinstance(answers, Mapping) else iter(answers)
        self.follow_examples = follow_examples
        self.reasoning = reasoning
        self.adapter = adapter

    def get_convo(self, index: int) -> tuple[Any, Any]:
        """The messages and the outputs of one of the calls."""
        entry = self.history[index]
        return entry["messages"], entry["outputs"]

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:  # noqa: ARG002
        return _Given(self)

    def _answer(self, messages: Sequence[Message]) -> str:
        asked = _text(messages[-1])
        if self.follow_examples:
            return _repeated(messages[:-1], asked.rpartition("\n\n")[0] or asked)
        if isinstance(self.answers, Mapping):
            found = next((fields for piece, fields in self.answers.items() if piece in asked), None)
            return _NOTHING if found is None else self._written(found)
        return self._written(next(self.answers, {"answer": _NOTHING}))

    def _written(self, fields: Mapping[str, Any]) -> str:
        form = getattr(self.adapter, "form", "chat")
        if form == "json":
            return json.dumps(dict(fields), default=_plain, ensure_ascii=False, indent=2)
        texts = {name: _shown(value) for name, value in fields.items()}
        if form == "xml":
            return "\n\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in texts.items())
        return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items())


class _Given:
    """The layer that gives the answers."""

    def __init__(self, lm: DummyLM) -> None:
        self._lm = lm

    async def __call__(self, request: Request) -> Response:
        extra = {"reasoning_content": _THOUGHTS} if self._lm.reasoning else None
        count = request.options.get("n") or 1
        choices = [Choice(self._lm._answer(request.messages), "stop", extra) for _ in range(count)]
        return Response(tuple(choices), _FREE, request.model)

    async def aclose(self) -> None:
        """Nothing to close."""


def _text(message: Message) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    return "\n".join(str(block.get("text", "")) for block in content)


def _repeated(earlier: Sequence[Message], asked: str) -> str:
    """The answer of the latest demo with this question; nothing where there is none."""
    for asking, answering in zip(reversed(earlier[:-1]), reversed(earlier), strict=False):
        if answering.role == "assistant" and asking.role == "user" and asked in _text(asking):
            return _text(answering)
    return ""


def _shown(value: Any) -> str:
    if value is None or isinstance(value, (str, bool, int, float)):
        return str(value)
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else str(value)
