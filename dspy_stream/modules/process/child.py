"""The worker's side: makes the module, runs one row after the other, asks the parent what models say.

The main thread runs the user's code. A thread of its own reads the pipe: it hands out rows and answers,
and ends the process when the parent is gone, whatever the user's code is doing.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import random
import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any, Final

from dspy_stream import configuration, runtime
from dspy_stream.clock import Clock
from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.cache import Journal
from dspy_stream.lm.model import CLOCK, BaseLM, Lane, Model
from dspy_stream.lm.stack import Wrap
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.module import Module
from dspy_stream.modules.part import as_part
from dspy_stream.modules.process import told
from dspy_stream.modules.process.frames import Frame, Unframer, frame
from dspy_stream.modules.process.scopes import ADAPTERS
from dspy_stream.modules.process.workers import OUT_OF_MEMORY
from dspy_stream.modules.running import record_of
from dspy_stream.modules.scope import SCOPE, TICKET, Attempt, Clients, Scope
from dspy_stream.modules.supervision import holds_resources
from dspy_stream.program import PredictorParameters
from dspy_stream.program.carried import pack, unpack
from dspy_stream.types import Capabilities, Head, Layer, Request, Response

__all__ = ["Child"]

_READ: Final = 1 << 18
_HEADS: Final = 64  # that the parent is asked to remember


class _Pipe:
    """Frames to and from the parent; writing is safe from any thread."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._lock = threading.Lock()
        self._unframer = Unframer()

    def read(self) -> list[Frame]:
        """Wait for frames; none where the parent is gone."""
        while True:
            data = os.read(self._source, _READ)
            if not data:
                return []
            found = self._unframer.feed(data)
            if found:
                return found

    def write(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        data = memoryview(frame(head, body))
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._sink, data) :]
            except BrokenPipeError:
                os._exit(0)  # nobody is there to hear it


class _Asking:
    """Questions that are with the parent."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._heads: dict[int, tuple[int, Head]] = {}
        self._count = 0
        self.failed: dict[int, BaseException] = {}

    async def ask(self, lm: int, request: Request) -> Response:
        """Put a question and wait for the answer; on the worker's own loop."""
        self._count += 1
        number = self._count
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        head = {"kind": "ask", "number": number, "lm": lm, **self._headed(request.head)}
        try:
            self._pipe.write({**head, **told.request_told(request)})
            return await future
        finally:
            self._waiting.pop(number, None)

    def _headed(self, head: Head) -> dict[str, Any]:
        known = self._heads.get(id(head))
        if known is not None:
            return {"of": known[0]}
        if len(self._heads) >= _HEADS:  # such as those of direct calls of a model, each of which makes one
            return {"of": -1, "head": told.head_told(head)}
        number = len(self._heads)
        self._heads[id(head)] = (number, head)  # kept, so that its id stays its own
        return {"of": number, "head": told.head_told(head)}

    def heard(self, said: Frame) -> None:
        """Take an answer, or why there is none; called by the reader."""
        runtime.loop().call_soon_threadsafe(self._heard, said)

    def _heard(self, said: Frame) -> None:
        number = said.head["number"]
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if said.head["kind"] == "answer":
            future.set_result(told.response_untold(said.head, said.body))
            return
        error = told.raised_again(said.head)
        self.failed[number] = error
        future.set_exception(error)


class _Elsewhere:
    """The layers of a model: the parent has them."""

    def __init__(self, asking: _Asking, number: int) -> None:
        self._asking = asking
        self._number = number

    async def __call__(self, request: Request) -> Response:
        return await self._asking.ask(self._number, request)

    async def aclose(self) -> None:
        """Nothing is open here."""


class _Model(BaseLM):
    """A model of the parent's, by its number."""

    __slots__ = ("_able", "_layer")

    _able: Capabilities
    _layer: _Elsewhere

    def __init__(self, given: Mapping[str, Any], layer: _Elsewhere) -> None:
        known = {name: given[name] for name in ("model", "options", "cache", "rollout_id")}
        self._fill(**known, _able=Capabilities(**given["capabilities"]), _layer=layer)

    @property
    def capabilities(self) -> Capabilities:
        """As the parent knows them."""
        return self._able

    def connect(
        self,
        journal: Journal | None = None,
        *,
        clock: Clock = CLOCK,
        rng: random.Random | None = None,
        wrap: Wrap | None = None,
        lane: Lane | None = None,
    ) -> Layer:
        """The way to the parent; journal and all other layers are there."""
        del journal, clock, rng, wrap, lane
        return self._layer


class _Known(Clients):
    """The clients of a worker: those of the parent's models only."""

    def get(self, lm: Model) -> Layer:
        """The way to the parent.

        Raises:
            LMConfigurationError: the parent does not know the model.
        """
        if not isinstance(lm, _Model):
            raise LMConfigurationError(
                f"{lm.model} is a model that code in a worker process made for itself, which has no keys; "
                "give it to a predictor, or to the flow",
                model=lm.model,
            )
        return super().get(lm)


class Child:
    """A worker process: ``serve`` is all it does.

    Args:
        source: descriptor to read frames from.
        sink: descriptor to write frames to.
        find: finds what makes the module: from the ``origin`` of the first frame.
    """

    def __init__(self, source: int, sink: int, find: Callable[[Mapping[str, Any]], Any]) -> None:
        self._pipe = _Pipe(source, sink)
        self._asking = _Asking(self._pipe)
        self._find = find
        self._work: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._scopes: dict[int, tuple[Scope, _Model | None] | Exception] = {}
        self._module: Module = Module()
        self._failures: tuple[type[BaseException], ...] = ()

    def serve(self) -> None:
        """Work until the parent says that it is enough, or is gone."""
        threading.Thread(target=self._read, name="pipe", daemon=True).start()
        if not self._start(self._work.get()):
            return
        while True:
            said = self._work.get()
            if said.head["kind"] == "close":
                self._closed()
                return
            if said.head["kind"] == "scope":
                self._take_scope(said)
            else:
                self._run(said)

    def _read(self) -> None:
        while found := self._pipe.read():
            for said in found:
                if said.head["kind"] in ("answer", "refused"):
                    self._asking.heard(said)
                else:
                    self._work.put(said)
        os._exit(0)  # the parent is gone, and nobody waits for what the row would come to

    # ------------------------------------------------------------------------------- start and end

    def _start(self, said: Frame) -> bool:
        try:
            module = self._made(self._find(said.head), makes=said.head["origin"]["makes"])
        except Exception as error:  # noqa: BLE001 - the user's own code; the parent says what went wrong
            where = told.raised(error).get("where", "")
            message = f"{type(error).__name__}: {error} ({where})"
            self._pipe.write({"kind": "unmade", "message": message})
            return False
        try:
            if holds_resources(module):
                _finished(module.open)  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 - a failure of the part, which its supervisor judges
            self._pipe.write({"kind": "unopened", **told.raised(error)})
            return False
        self._module = module
        self._failures = tuple(getattr(module, "failures", ()))
        self._pipe.write({"kind": "ready", "predictors": [name for name, _ in module.named_predictors()]})
        return True

    @staticmethod
    def _made(found: Any, *, makes: bool) -> Module:
        made = found() if makes and not isinstance(found, Module) else found
        return as_part(made, "what a factory makes").module

    def _closed(self) -> None:
        if holds_resources(self._module):
            try:
                _finished(self._module.close)  # type: ignore[attr-defined]
            except Exception:  # noqa: BLE001, S110 - the process ends, and what it holds with it
                pass

    def _take_scope(self, said: Frame) -> None:
        try:
            self._scopes[said.head["number"]] = self._scope(said)
        except Exception as error:  # noqa: BLE001 - raised again for each row that is to run under it
            self._scopes[said.head["number"]] = error

    def _scope(self, said: Frame) -> tuple[Scope, _Model | None]:
        head, demos = said.head, unpack(said.body)
        models = [
            _Model(model, _Elsewhere(self._asking, number)) for number, model in enumerate(head["models"])
        ]
        default = models[head["default"]] if head["default"] is not None else None
        parameters = {}
        for name, predictor in self._module.named_predictors():
            given = head["predictors"][name]
            learned = PredictorParameters(given["instructions"], (), given["config"])
            parameters[id(predictor)] = _with(learned, demos[name])
            predictor.lm = models[given["lm"]] if given["lm"] is not None else None
        adapter = ADAPTERS[head["adapter"]]() if head["adapter"] is not None else None
        scope = Scope(_Known(None), lm=default, adapter=adapter, parameters=parameters)
        if head["attempt"] is not None:
            scope.attempt = Attempt(*head["attempt"])
        # Made now: the next scope may give a predictor another model of its own.
        for predictor in self._module.predictors():
            if predictor.lm is not None or default is not None:
                predictor._plan(scope, None)
        return scope, default

    # ------------------------------------------------------------------------------------- one row

    def _run(self, said: Frame) -> None:
        self._pipe.write({"kind": "begun"})
        found = self._scopes[said.head["scope"]]
        ticket = told.ticket_untold(said.head["ticket"])
        self._asking.failed.clear()

        def run() -> Any:
            if isinstance(found, Exception):
                raise found
            scope, default = found
            configuration.configure(lm=default)
            SCOPE.set(scope)
            TICKET.set(ticket)
            return runtime.perform(heard_steps(self._module, unpack(said.body)))

        try:
            made = copy_context().run(run)
            body = pack(dict(record_of("the part", made)))
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # what the row has taken may not be given back otherwise
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises belongs to the row
            head: dict[str, Any] = {"kind": "raised", **told.raised(error)}
            numbers = [number for number, known in self._asking.failed.items() if known is error]
            if numbers:
                head["ask"] = numbers[0]
            head["of_part"] = isinstance(error, self._failures) or not self._healthy()
            body = b""
        else:
            head = {"kind": "done"}
        spoiled = [key.hex() for key in ticket.spoiled or ()]
        self._pipe.write({**head, "spoiled": spoiled}, body)

    def _healthy(self) -> bool:
        healthy = getattr(self._module, "healthy", None)
        return True if healthy is None else bool(_finished(healthy))


def _with(learned: PredictorParameters, demos: list[Any]) -> PredictorParameters:
    """With demos that may hold pictures and the like, which are no JSON."""
    object.__setattr__(learned, "demos", tuple(demos))
    return learned


def _finished(fn: Callable[[], Any]) -> Any:
    made = fn()
    return runtime.run(_awaited(made)) if inspect.isawaitable(made) else made


async def _awaited(made: Any) -> Any:
    return await made
