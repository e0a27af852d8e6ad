"""Models as a worker process has them: every question goes over the pipe to the parent, which puts it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

from dspy_stream import runtime
from dspy_stream.clock import Clock
from dspy_stream.errors import LMConfigurationError, RowError
from dspy_stream.lm.cache import Journal
from dspy_stream.lm.model import CLOCK, BaseLM, Lane, Model
from dspy_stream.lm.stack import Wrap
from dspy_stream.modules.process import told
from dspy_stream.modules.process.frames import Frame, Unframer, frame
from dspy_stream.modules.scope import Clients
from dspy_stream.types import Capabilities, Head, Layer, Request, Response

__all__ = ["Asking", "Elsewhere", "Pipe", "RemoteClients", "RemoteModel"]

_READ: Final = 1 << 18
_HEADS: Final = 64  # that the parent is asked to remember
_UNKEPT: Final = -1  # the number of the others


ROW_NUMBER: Final[ContextVar[int | None]] = ContextVar("dspy_stream_row_number", default=None)
"""The row of this worker that this context works for; None for threads that know of no row."""


class Pipe:
    """Frames to and from the parent; writing is safe from any thread."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._lock = threading.Lock()
        self._unframer = Unframer()
        self._owner = os.getpid()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """Let go of the pipe: a process that the user's code forks is not the worker.

        Its copies would keep the pipe open when the worker ends, and what it wrote would be taken for
        the worker's.
        """
        for descriptor in (self._source, self._sink):
            with contextlib.suppress(OSError):
                os.close(descriptor)

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
        """Send a frame; the process ends where nobody is there to read it."""
        if os.getpid() != self._owner:
            os._exit(0)  # it has come out of the user's code, and there is nothing for it to do here
        data = memoryview(frame(head, body))
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._sink, data) :]
            except BrokenPipeError:
                os._exit(0)  # nobody is there to hear it


class Asking:
    """Questions that are with the parent."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._heads: dict[int, tuple[int, Head]] = {}
        self._count = 0
        self._row: int | None = None
        self.failed: dict[int, BaseException] = {}

    def begin(self, row: int) -> None:
        """A row begins."""
        self._row = row
        self.failed.clear()

    def end(self) -> None:
        """The row is over: what it has left behind asks no more."""
        self._row = None

    async def ask(self, lm: int, request: Request) -> Response:
        """Put a question and wait for the answer; on the worker's own loop.

        Raises:
            RowError: the code that asks was left behind by a row that is over.
        """
        row = ROW_NUMBER.get()
        if row is not None and row != self._row:
            raise RowError("the row that this question belongs to is over")
        self._count += 1
        number = self._count
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        head = {"kind": "ask", "number": number, "row": row, "lm": lm, **self._headed(request.head)}
        try:
            self._pipe.write({**head, **told.request_told(request)})
            if "head" in head and head["of"] != _UNKEPT:  # the parent knows it only now that it is sent
                # The head is kept, so that its id stays its own.
                self._heads[id(request.head)] = (head["of"], request.head)
            return await future
        finally:
            self._waiting.pop(number, None)

    def _headed(self, head: Head) -> dict[str, Any]:
        known = self._heads.get(id(head))
        if known is not None:
            return {"of": known[0]}
        if len(self._heads) >= _HEADS:  # such as those of direct calls of a model, each of which makes one
            return {"of": _UNKEPT, "head": told.head_told(head)}
        return {"of": len(self._heads), "head": told.head_told(head)}

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


class Elsewhere:
    """The layers of a model: the parent has them."""

    def __init__(self, asking: Asking, number: int) -> None:
        self._asking = asking
        self._number = number

    async def __call__(self, request: Request) -> Response:
        """Ask the parent."""
        return await self._asking.ask(self._number, request)

    async def aclose(self) -> None:
        """Nothing is open here."""


class RemoteModel(BaseLM):
    """A model of the parent's, by its number."""

    __slots__ = ("_able", "_layer", "_of")

    _able: Capabilities
    _of: str
    _layer: Elsewhere

    def __init__(self, given: Mapping[str, Any], layer: Elsewhere) -> None:
        known = {name: given[name] for name in ("model", "options", "cache", "rollout_id")}
        self._fill(**known, _able=Capabilities(**given["capabilities"]), _layer=layer, _of=given["by"])

    @property
    def by(self) -> str:
        """The parent's class."""
        return self._of

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


class RemoteClients(Clients):
    """The clients of a worker: those of the parent's models only."""

    def get(self, lm: Model) -> Layer:
        """The way to the parent.

        Raises:
            LMConfigurationError: the parent does not know the model.
        """
        if not isinstance(lm, RemoteModel):
            raise LMConfigurationError(
                f"{lm.model} is a model that code in a worker process made for itself, which has no keys; "
                "give it to a predictor, or to the flow",
                model=lm.model,
            )
        return super().get(lm)
