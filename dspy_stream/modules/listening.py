"""One run of a streamed program: what its predictors say while they answer, on the way to its caller."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import orjson

from dspy_stream.adapters import Prepared
from dspy_stream.adapters.splitter import Piece
from dspy_stream.engine import Answer, Plan
from dspy_stream.modules.heard import (
    StatusMessage,
    StatusMessageProvider,
    StreamChunk,
    StreamListener,
    StreamResponse,
)
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.scope import SCOPE, default_lm
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.runtime import Ask, Steps
from dspy_stream.types import Delta, Request, Response

__all__ = ["Followed", "Run"]

_log: Final = logging.getLogger("dspy_stream")
_FINISH: Final = "finish"  # the tool by which an agent says that it is done


class Followed(NamedTuple):
    """A listener, and the name that its predictor has in the program."""

    listener: StreamListener
    predict_name: str


class _Bell:
    """Wakes the runs of one event loop, all that have something at once.

    Telling another thread's loop costs many times what it costs to take a token, and so does every
    turn of a run. Hence they are woken together, and the less often the more of them there are.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ringing = False
        self._rung = -_LONGEST
        self._having: deque[Run] = deque()
        self.runs = 0

    @staticmethod
    def here() -> _Bell:
        """That of the running loop; it is kept for as long as there are runs."""
        loop = asyncio.get_running_loop()
        bell = _bells.get(loop)
        if bell is None:
            bell = _bells[loop] = _Bell(loop)
        bell.runs += 1
        return bell

    def leave(self) -> None:
        """A run is over."""
        self.runs -= 1
        if self.runs == 0:
            _bells.pop(self._loop, None)

    def ring(self, run: Run) -> None:
        """Wake this run soon; from any thread."""
        self._having.append(run)
        if not self._ringing:
            self._ringing = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._arrange)

    def _arrange(self) -> None:
        wait = self._rung + min(_LONGEST, _EACH * self.runs) - self._loop.time()
        if wait > 0:
            self._loop.call_later(wait, self._wake)
        else:
            self._wake()

    def _wake(self) -> None:
        self._ringing = False  # before the runs are taken, so that none is left lying
        self._rung = self._loop.time()
        while self._having:
            self._having.popleft().come.set()


_EACH: Final = 0.00002  # seconds between two turns of all runs, for each of them
_LONGEST: Final = 0.1
_bells: Final[dict[asyncio.AbstractEventLoop, _Bell]] = {}


class Run:
    """Takes what is heard, from any thread, and hands it to one coroutine in the same order.

    What is heard waits here until the caller takes it: at most the answers themselves, since
    nobody may block who tells of them.
    """

    def __init__(
        self,
        followed: Mapping[int, Sequence[Followed]] | None,
        names: Mapping[int, str],
        provider: StatusMessageProvider,
    ) -> None:
        """``followed`` maps predictors, by id, to their listeners; None hears all, in the raw."""
        self._followed = followed
        self._names = names
        self._provider = provider
        self._bell: _Bell | None = None
        self._items: deque[Any] = deque()
        self._waking = False
        self._used: set[int] = set()
        self._calls: Counter[int] = Counter()

    # ------------------------------------------------------------------------ from there to here

    def open(self) -> None:
        """What is put from now on is taken on the running loop."""
        self._bell = _Bell.here()
        self.come = asyncio.Event()

    def put(self, item: Any) -> None:
        """Add an item; never blocks."""
        self._items.append(item)
        self.wake()

    def wake(self, _: object = None) -> None:
        """Let the caller look again."""
        bell = self._bell
        if bell is not None and not self._waking:  # one turn takes all that has come
            self._waking = True
            bell.ring(self)

    async def something(self) -> None:
        """Wait for a reason to look: items, or an end."""
        await self.come.wait()
        self.come.clear()
        self._waking = False  # before the items are taken, so that whatever comes later wakes again

    def close(self) -> None:
        """Nobody takes anything any more."""
        if self._bell is not None:
            self._bell.leave()
            self._bell = None

    def take(self) -> Iterator[Any]:
        """The items that have come."""
        while self._items:
            yield self._items.popleft()

    # --------------------------------------------------------------------------------- statuses

    def started(self, kind: Literal["module", "tool"], instance: Any, inputs: Mapping[str, Any]) -> None:
        """Say that a module or a tool is called."""
        if kind == "module" or instance.name != _FINISH:
            self._say(f"{kind}_start_status_message", instance, inputs)

    def ended(self, kind: Literal["module", "tool"], instance: Any, outputs: Any) -> None:
        """Say that a module or a tool has returned, or failed."""
        if kind == "module" or instance.name != _FINISH:
            self._say(f"{kind}_end_status_message", outputs)

    def _say(self, hook: str, *about: Any) -> None:
        try:
            message = getattr(self._provider, hook)(*about)
        except Exception as error:  # noqa: BLE001 - a provider's fault is not the program's
            name = type(self._provider).__name__
            _log.warning("%s.%s failed: %s: %s", name, hook, type(error).__name__, error)
            return
        if message:
            self.put(StatusMessage(message))

    def _says(self, hook: str) -> bool:
        return getattr(type(self._provider), hook) is not getattr(StatusMessageProvider, hook)

    def _asked(self, predictor: Predict, request: Request) -> None:
        if self._says("lm_start_status_message"):
            own = predictor.lm if predictor.lm is not None else default_lm(SCOPE.get())
            model = own if own.model == request.model else request.model
            inputs = {
                "prompt": None,
                "messages": [message.to_json() for message in request.messages],
                "kwargs": dict(request.options),
            }
            self._say("lm_start_status_message", model, inputs)

    def _answered(self, response: Response | None) -> None:
        if self._says("lm_end_status_message"):
            texts = None if response is None else [choice.text for choice in response.choices]
            self._say("lm_end_status_message", texts)

    # ----------------------------------------------------------------------------------- tokens

    def heard(self, delta: Delta) -> None:
        """Take a piece of the answer of a model that was called directly."""
        self.put(StreamChunk("", *delta))

    def attend(self, predictor: Predict, plan: Plan, steps: Steps[Answer]) -> Steps[Answer]:
        """Run the steps of one call, and hear the answers to what they ask."""
        follows = self._follows(predictor)
        number = self._calls[id(predictor)]
        self._calls[id(predictor)] += 1
        hearing: _Fields | None = None
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                effect = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as stop:
                answer: Answer = stop.value
                if hearing is not None:
                    hearing.settle(answer.completions[0])
                return answer
            error = None
            if isinstance(effect, Ask):
                self._asked(predictor, effect.request)
                if self._followed is None:
                    effect.listener = _Raw(self, self._names.get(id(predictor), ""))
                elif follows:
                    prepared = _prepared(plan, effect.request)
                    hearing = _Fields(self, follows, prepared, number, before=hearing)
                    effect.listener = hearing
                else:
                    effect.listener = None
            try:
                value = yield effect
            except BaseException as thrown:  # noqa: BLE001  it belongs to the steps
                error = thrown
                if isinstance(effect, Ask) and isinstance(thrown, Exception):
                    self._answered(None)
                continue
            if hearing is not None:
                hearing.end()
            if isinstance(value, Response):
                self._answered(value)

    def _follows(self, predictor: Predict) -> list[Followed]:
        found = []
        for follow in (self._followed or {}).get(id(predictor), ()):
            if follow.listener.allow_reuse or id(follow.listener) not in self._used:
                self._used.add(id(follow.listener))
                found.append(follow)
        return found


def _prepared(plan: Plan, request: Request) -> Prepared:
    """What reads the answer to this request: the plan's own prompt, or that of one that follows it."""
    left = [plan]
    while left:
        this = left.pop()
        if request.head in (this.head, this.plainer):
            return this.prepared
        left.extend(further for further in (this.fallback, this.then) if further is not None)
    return plan.prepared  # a head of the row's own


class _Raw:
    """Hears one answer as it comes."""

    __slots__ = ("_name", "_run")

    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self._name = name

    def __call__(self, delta: Delta) -> None:
        self._run.put(StreamChunk(self._name, *delta))


class _Fields:
    """Hears the first completion of one answer, and tells its fields to those who follow them."""

    __slots__ = ("_call", "_follows", "_over", "_prepared", "_run", "_splitter", "_told")

    def __init__(
        self,
        run: Run,
        follows: Sequence[Followed],
        prepared: Prepared,
        call: int,
        *,
        before: _Fields | None,
    ) -> None:
        self._run = run
        self._follows = follows
        self._prepared = prepared
        self._call = call
        self._told: set[str] = set()
        self._splitter = prepared.splitter()
        self._over = False
        if before is not None:  # its answer could not be read
            self._told = before._told
            self._restart()

    def __call__(self, delta: Delta) -> None:
        if delta.kind == "restart":
            self._splitter = self._prepared.splitter()
            self._restart()
        elif delta.choice == 0 and delta.kind == "text":
            self._tell(self._splitter.feed(delta.text))
        elif delta.choice == 0 and delta.kind == "reasoning":
            self._tell(self._splitter.think(delta.text))

    def end(self) -> None:
        """The answer is whole."""
        if not self._over:
            self._over = True
            self._tell(self._splitter.end())

    def settle(self, outputs: Mapping[str, Any]) -> None:
        """Tell whole what could not be told on the way, as when the answer came in another layout."""
        for field in {follow.listener.signature_field_name for follow in self._follows} - self._told:
            if field in outputs:
                value = outputs[field]
                text = value if isinstance(value, str) else orjson.dumps(to_jsonable(value, field)).decode()
                self._tell([Piece(field, text, True)])

    def _tell(self, pieces: Sequence[Piece]) -> None:
        for field, chunk, last in pieces:
            for follow in self._follows:
                if follow.listener.signature_field_name == field:
                    self._told.add(field)
                    self._run.put(StreamResponse(follow.predict_name, field, chunk, last, call=self._call))

    def _restart(self) -> None:
        told, self._told = self._told, set()
        for follow in self._follows:
            field = follow.listener.signature_field_name
            if field in told:
                self._run.put(
                    StreamResponse(follow.predict_name, field, "", False, restart=True, call=self._call)
                )
