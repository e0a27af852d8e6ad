"""A model whose answers and failures are written down beforehand, for tests of programs and flows."""

from __future__ import annotations

import inspect
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Literal

import orjson

from dspy_stream.clock import Clock
from dspy_stream.errors import LMConfigurationError, LMError
from dspy_stream.lm.kwargs import check_options
from dspy_stream.lm.model import CLOCK
from dspy_stream.lm.retry import Retry
from dspy_stream.lm.settled import SettledLM
from dspy_stream.types import Choice, Layer, Request, Response, Usage

__all__ = ["Line", "Script", "ScriptedLM"]

Line = str | Mapping[str, Any] | Choice | Response | BaseException
Script = str | Iterable[Line] | Mapping[str, Line | list[Line]] | Callable[[Request], Any]

_NO_COST: Final = Usage(0, 0, 0.0)


class ScriptedLM(SettledLM):
    """A model that follows a script, and keeps the requests it was sent in ``calls``.

    The script is

    * a list of lines, used up in the order of the calls;
    * a mapping from a piece of text to a line, or to a list of lines: the first piece that occurs
      in the user's last turn counts; a single line never runs out;
    * a function from the request to a line, or a coroutine function;
    * a text, which is the answer to everything.

    A line is the answer's text, a mapping of fields (written as ``answers_as`` says), a ``Choice``,
    a ``Response``, or an exception, which is raised. Errors are retried ``num_retries`` times
    where they may pass. ``latency`` is slept before every answer, in seconds. The journal works as
    for any model, and what it answers is not a call; ``record=False`` keeps only the count.

    Raises:
        LMConfigurationError: on a call that the script has no line for.

    >>> lm = ScriptedLM(["first", "second"])
    >>> lm("a"), lm("b"), lm.call_count
    (['first'], ['second'], 2)
    >>> ScriptedLM({"card": {"intent": "card_arrival"}})("Where is my card?")
    ['[[ ## intent ## ]]\\ncard_arrival\\n\\n[[ ## completed ## ]]']
    """

    __slots__ = ("_core",)

    _core: _Scripted

    def __init__(
        self,
        script: Script,
        *,
        model: str = "scripted/model",
        latency: float = 0.0,
        num_retries: int = 0,
        cache: bool = False,
        answers_as: Literal["chat", "json"] = "chat",
        record: bool = True,
        **options: Any,
    ) -> None:
        rollout_id, callbacks = options.pop("rollout_id", None), options.pop("callbacks", None)
        core = _Scripted(_player(script), latency=latency, answers_as=answers_as, record=record)
        self._fill(
            model=model,
            num_retries=num_retries,
            cache=cache,
            callbacks=callbacks,
            rollout_id=rollout_id,
            options=check_options(options),
            _core=core,
        )

    @property
    def calls(self) -> list[Request]:
        """The requests that reached the model, in order."""
        return self._core.calls

    @property
    def call_count(self) -> int:
        """How many requests reached the model, attempts that failed included."""
        return self._core.count

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:
        self._core.clock = clock  # the script is shared between all connections of this model
        return Retry(self._core, num_retries=self.num_retries, timeout=math.inf, clock=clock, rng=rng)

    def __repr__(self) -> str:
        return f"ScriptedLM({self.model!r}, {self.call_count} calls)"


class _Scripted:
    """The layer that plays the script."""

    def __init__(
        self,
        player: Callable[[Request], Any],
        *,
        latency: float,
        answers_as: Literal["chat", "json"],
        record: bool,
    ) -> None:
        self.clock: Clock = CLOCK
        self.calls: list[Request] = []
        self.count = 0
        self._player = player
        self._latency = latency
        self._answers_as = answers_as
        self._record = record

    async def __call__(self, request: Request) -> Response:
        self.count += 1
        if self._record:
            self.calls.append(request)
        if self._latency > 0:
            await self.clock.sleep(self._latency)
        line = self._player(request)
        if type(line) is Response:
            return line
        if inspect.isawaitable(line):
            line = await line
        return self._response(line, request)

    def _response(self, line: Any, request: Request) -> Response:
        if isinstance(line, BaseException):
            if isinstance(line, LMError):
                line.model = line.model or request.model
            raise line
        if isinstance(line, Response):
            return line
        if isinstance(line, Mapping):
            line = _written(line, self._answers_as)
        choice = line if isinstance(line, Choice) else Choice(_checked(line), "stop")
        return Response((choice,), _NO_COST, request.model)

    async def aclose(self) -> None:
        """Nothing to close."""


def _player(script: Script) -> Callable[[Request], Line | Awaitable[Line]]:
    """The script as a function; what can be prepared is."""
    if isinstance(script, str):
        response = Response((Choice(script, "stop"),), _NO_COST)
        return lambda _request: response
    if callable(script):
        return script
    if isinstance(script, Mapping):
        rules = {piece: _repeat(lines) for piece, lines in script.items()}
        return lambda request: _by_piece(rules, request)
    return _in_order(script)


def _in_order(lines: Iterable[Line]) -> Callable[[Request], Line]:
    left = deque(lines)
    total = len(left)

    def play(request: Request) -> Line:
        if not left:
            raise _no_line(request, f"all {total} lines of the script have been used")
        return left.popleft()

    return play


def _repeat(lines: Line | list[Line]) -> Callable[[Request], Line]:
    if isinstance(lines, list):
        return _in_order(lines)
    return lambda _request: lines


def _by_piece(rules: Mapping[str, Callable[[Request], Line]], request: Request) -> Line:
    asked = _asked(request)
    for piece, play in rules.items():
        if piece in asked:
            return play(request)
    raise _no_line(request, f"none of {', '.join(map(repr, rules))} occurs in the user's last turn")


def _asked(request: Request) -> str:
    for message in reversed(request.messages):
        if message.role == "user":
            content = message.content
            return content if isinstance(content, str) else orjson.dumps(list(content), default=dict).decode()
    return ""


def _no_line(request: Request, why: str) -> LMConfigurationError:
    return LMConfigurationError(
        f"ScriptedLM has no line for this call: {why}; it begins {_asked(request)[:80]!r}"
    )


def _written(fields: Mapping[str, Any], answers_as: Literal["chat", "json"]) -> str:
    if answers_as == "json":
        return orjson.dumps(dict(fields), default=str).decode()
    parts = []
    for name, value in fields.items():
        text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
        parts.append(f"[[ ## {name} ## ]]\n{text}")
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def _checked(line: Any) -> str:
    if isinstance(line, str):
        return line
    raise LMConfigurationError(
        f"a line of a script is a text, a mapping, a Choice, a Response or an exception, not {line!r}"
    )
