"""The parent's side: gives rows to workers, puts their questions, and outlives them."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from dspy_stream import events
from dspy_stream.configuration import settings
from dspy_stream.engine import Ticket
from dspy_stream.errors import ConfigurationError, PoisonRow, RowError, RowTimeout
from dspy_stream.modules.module import Module
from dspy_stream.modules.noted import note
from dspy_stream.modules.opening import OpenTimeout, seconds_to_close, seconds_to_open
from dspy_stream.modules.process import told
from dspy_stream.modules.process.frames import Frame, frame
from dspy_stream.modules.process.incidents import Incidents
from dspy_stream.modules.process.origin import Origin
from dspy_stream.modules.process.scopes import Described, Scopes, names_of
from dspy_stream.modules.process.workers import Died, Pool, Worker
from dspy_stream.modules.scope import TICKET, trace_in_force
from dspy_stream.modules.typed import learn_kinds, validators_of
from dspy_stream.program import Prediction
from dspy_stream.program.carried import pack, unpack
from dspy_stream.runtime import Ask, Steps, aperform, hop
from dspy_stream.telling import put
from dspy_stream.types import Head, Request, Response

__all__ = ["PROCESSES", "Processes", "WorkerDied"]

_log = logging.getLogger("dspy_stream")

PROCESSES: Final = 2
"""Worker processes of a part, where it does not say how many."""

_LATE: Final = 5.0  # seconds that a worker may say nothing after the time in which it should have been ready
_DEATHS: Final = 2
_UNBEGUN: Final = 20  # deaths of workers before they had begun the row; somebody kills them as they come


class WorkerDied(PoisonRow):
    """A row ended its worker process, and once more in a fresh one; the message names how."""

    code = "worker_died"


class Processes:
    """Runs the rows of one part in worker processes, one row each at a time.

    - A row whose worker dies (``os._exit``, a signal, no memory left) is tried once more in a fresh
      one, and is then a dead letter of the stage ``process``. The flow goes on.
    - A row that runs out of time, counted from where it has a worker, or that is no longer waited for
      since the flow stops, has its worker killed. The next row gets a fresh one, which takes about a
      second to start.
    - Rows travel as JSON over pipes, and arrive as what they were: data of Python's own types, and models,
      dataclasses, enums and named tuples that a signature or the part's code names. A value of another
      class (an array, a client, a secret) arrives in its JSON form, and outputs of such a type through the
      type of their field. Predictions lose their further completions.
    - What a row runs under holds in its worker too: model, adapter, parameters, the hints of Refine, the
      settings that are plain values, those of the program's own as well; and the calls of its predictors are
      in the trace and the usage that is kept here. What cannot cross: ``callbacks`` and subscribers hear of
      the model calls, but not of modules and tools in a worker; ``rm`` and ``interpreter_factory``, and
      settings of the program's own that are no plain JSON, which are named in the log, are those that the
      worker's own file configures; token streams end at the border; an adapter of a class of one's own, or
      with options other than flags, is refused.
    - A model call made in a worker goes to the parent as a question and is put there, under the row's
      own ticket: journal, single flight, limits and budget hold, and a row that is tried again finds its
      finished calls. Provider keys are taken out of a worker's environment. It is no sandbox otherwise: the
      worker runs as the same user, with the same files and network.
    - How the module is made in a worker: see :func:`~dspy_stream.modules.process.origin.origin_of`.
      Models are those of the parent's predictors and of the run; one that the code makes for itself is
      refused.
    - What a module in the part's code holds is opened in each worker that needs it, and started again there;
      failures of all workers together count for how often that may be.
    - The parent's end, however it comes, is the end of its workers.
    """

    def __init__(
        self,
        module: Module,
        origin: Origin,
        who: str,
        *,
        workers: int | None = None,
        timeout: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._opening = seconds_to_open(module)
        self._origin = origin
        self._who = who
        self._closing = seconds_to_close(module)
        self._pool = Pool(who, workers or PROCESSES, self._prepare, self._closing)
        self._scopes = Scopes(module, who)
        self._names = list(names_of(module))
        self._types = dict(validators_of(module))
        learn_kinds(module)
        self._incidents = Incidents()
        self.on_death: Callable[[str, bool], None] = lambda _reason, _blamed: None
        self.on_restart: Callable[[str, str], None] = lambda _part, _reason: None

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """One row, as steps that only wait.

        Raises:
            WorkerDied: it ended two workers.
            RowError: it cannot be sent, or failed with an exception of a class of the user's own.
        """
        made = yield hop(self._row(inputs))
        return made

    async def open(self) -> None:
        """Start a worker, which gets the resource."""
        await self._pool.warm()

    def where(self) -> str:
        """A worker that is late says so by itself."""
        return ""

    async def close(self) -> None:
        """End the workers; the idle ones give their resources back."""
        await self._pool.close()

    async def healthy(self, begun: Callable[[], object]) -> bool:
        """True: a worker has asked its own module already and said so with the row's failure."""
        begun()
        return True

    async def aclose(self) -> None:
        """The same."""
        await self._pool.close()

    def failure(self, reason: str) -> Exception:
        """A worker's end, as a failure of the part."""
        return RuntimeError(f"a worker process ended: {reason}")

    # ---------------------------------------------------------------------------------- one worker

    async def _prepare(self, worker: Worker) -> None:
        path = [entry for entry in sys.path if isinstance(entry, str)]
        start = {"kind": "start", "origin": self._origin.to_json(), "path": path, "seconds": self._opening}
        worker.send(frame(start))
        try:
            answer = await asyncio.wait_for(self._ready(worker), self._opening + _LATE)
        except asyncio.TimeoutError:  # not even its clock runs
            raise OpenTimeout.of(f"the start of {self._who}'s worker process", self._opening, "") from None
        if answer is None:
            raise Died(await worker.ended(), begun=False)
        if answer.head["kind"] == "late":
            what = f"the start of {self._who}'s worker process"
            raise OpenTimeout.of(what, self._opening, answer.head["where"])
        if answer.head["kind"] == "unopened":
            error = told.raised_again(answer.head)
            error.of_part = error.no_row_to_blame = True  # type: ignore[attr-defined]
            raise error
        if answer.head["kind"] != "ready":
            raise ConfigurationError(
                f"{self._who}: a worker process cannot make it: {answer.head['message']}"
            )
        theirs = answer.head["predictors"]
        if theirs != self._names:
            raise ConfigurationError(
                f"{self._who}: a worker process made another program: its predictors are "
                f"{', '.join(theirs) or 'none'}, and here {', '.join(self._names) or 'none'}"
            )

    async def _ready(self, worker: Worker) -> Frame | None:
        while (answer := await worker.receive()) and answer.head["kind"] == "restarted":
            self._restarted(worker, answer.head)
        return answer

    # ------------------------------------------------------------------------------------- one row

    async def _row(self, inputs: Mapping[str, Any]) -> Prediction:
        try:
            body = pack(inputs)
        except TypeError as error:
            raise RowError(f"{self._who}: its inputs cannot be sent to a worker process: {error}") from error
        deaths = unbegun = 0
        while True:
            worker = await self._pool.acquire(fresh=deaths > 0)
            try:
                made = await self._timed(self._talk(worker, body))
            except Died as died:
                self._pool.discard(worker)
                self._tell(worker, died)
                deaths, unbegun = deaths + died.begun, unbegun + (not died.begun)
                blamed = deaths >= _DEATHS or unbegun >= _UNBEGUN
                self.on_death(str(died), blamed)
                if blamed:
                    raise WorkerDied(f"the row ended its worker process twice, at last: {died}") from None
            except _Told as failed:
                if failed.hangs is None:
                    self._pool.release(worker)
                else:
                    self._pool.discard(worker)
                    _log.warning(
                        "%s does not say within %g s how it is; it is at %s. Its worker process was ended",
                        *(self._who, self._closing, failed.hangs),
                    )
                raise failed.error from failed.error.__cause__
            except BaseException:
                self._pool.discard(worker)
                raise
            else:
                self._pool.release(worker)
                return Prediction.of(made)

    async def _talk(self, worker: Worker, body: bytes) -> dict[str, Any]:
        conversation = _Conversation(worker, self._scopes.current(), self._types)
        conversation.restarted = self._restarted
        return await conversation.hold(body, self._scopes.row())

    def _restarted(self, worker: Worker, head: Mapping[str, Any]) -> None:
        part, reason, now = head["part"], head["reason"], time.monotonic()
        since = worker.opened.get(part, worker.begun)
        worker.opened[part] = now
        self._incidents.failed(part, reason, since=since, now=now)
        self.on_restart(part, reason)
        what = (events.new_id(), events.ACTIVE_CALL_ID.get(), time.time(), part, reason, (part,))
        events.publish(events.Restarted("part", *what, 0.0))

    async def _timed(self, conversation: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        try:
            return await asyncio.wait_for(conversation, self._timeout)
        except asyncio.TimeoutError:
            raise RowTimeout(
                f"not finished within the limit of {self._timeout:g} s; its worker process was ended"
            ) from None

    def _tell(self, worker: Worker, died: Died) -> None:
        what = (events.new_id(), events.ACTIVE_CALL_ID.get(), time.time(), self._who, worker.pid, str(died))
        events.publish(events.WorkerEnded("part", *what, *events.place()))


_left: Final[set[asyncio.Task[None]]] = set()


class _Told(Exception):
    """The row failed, and its worker is none the worse for it, unless it says where it ``hangs``."""

    def __init__(self, error: Exception, hangs: str | None) -> None:
        super().__init__()
        self.error = error
        self.hangs = hangs


class _Conversation:
    """What parent and worker say to each other about one row."""

    def __init__(self, worker: Worker, scope: Described, types: Mapping[str, Any] | None = None) -> None:
        self._types = types
        worker.row += 1
        self._row = worker.row
        self._worker = worker
        self._scope = scope
        self._ticket = TICKET.get() or Ticket()
        self._failed: dict[int, Exception] = {}
        self._asked: set[asyncio.Task[None]] = set()
        self._begun = False
        self.restarted: Callable[[Worker, Mapping[str, Any]], None] = lambda _worker, _head: None

    async def hold(self, body: bytes, under: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give the row over and what it runs ``under``, answer questions, and take what comes of it.

        Raises:
            Died: the worker ended.
            RestartsExceeded: what modules in the workers hold cannot be kept up.
        """
        worker = self._worker
        number, fresh = worker.scope(self._scope.key)
        if fresh:
            worker.send(frame({"kind": "scope", "number": number, **self._scope.head}, self._scope.body))
        row = {"kind": "run", "row": self._row, "scope": number, "ticket": told.ticket_told(self._ticket)}
        worker.send(frame({**row, **(under or {})}, body))
        try:
            while True:
                said = await worker.receive()
                if said is None:
                    self._leave()
                    raise Died(await worker.ended(), begun=self._begun)
                if said.head["kind"] == "ask":
                    # Heads are taken now: the task may be cancelled before it has begun, and the worker
                    # names each head only once.
                    answer = self._answer(said.head, self._head(said.head))
                    self._asked.add(asyncio.get_running_loop().create_task(answer))
                elif said.head["kind"] == "begun":
                    self._begun = True
                elif said.head["kind"] == "restarted":
                    self.restarted(worker, said.head)
                elif said.head["kind"] == "late":
                    pass  # it was ready in the same moment
                else:
                    return self._outcome(said)
        finally:
            for task in self._asked:
                task.cancel()

    def _leave(self) -> None:
        """Let calls go on that nobody waits for now: their answers are for the row's next attempt."""
        for task in self._asked:
            _left.add(task)
            task.add_done_callback(_left.discard)
        self._asked = set()

    def _outcome(self, said: Frame) -> dict[str, Any]:
        told.learn(self._ticket, said.head)
        if "defaulted" in said.head:
            self._ticket.defaulted = told.raised_again(said.head["defaulted"])
        if said.head["kind"] == "done":
            size = said.head.get("made", len(said.body))
            self._traced(said.body[size:])
            return unpack(said.body[:size], self._types)
        original = self._failed.get(said.head.get("ask", -1))
        error = original if original is not None else told.raised_again(said.head)
        if said.head.get("on_error") is not None:
            note(error, "on_error", said.head["on_error"])
        asked = dict(self._scope.predictors).get(said.head.get("predictor", ""))
        if asked is not None:
            note(error, "predictor", asked())
        if said.head.get("of_part"):
            error.of_part = True  # type: ignore[attr-defined]
        raise _Told(error, said.head.get("hangs"))

    def _traced(self, data: bytes) -> None:
        trace = trace_in_force()
        if not data or trace is None:
            return
        named = dict(self._scope.predictors)
        trace.extend(
            (named[name](), inputs, made) for name, inputs, made in unpack(data)["calls"] if name in named
        )
        del trace[: -settings.max_trace_size]

    def _head(self, asked: Mapping[str, Any]) -> Head:
        heads, of = self._worker.heads, asked["of"]
        if asked.get("head") is not None:
            heads[of] = told.head_untold(asked["head"])
        found: Head = heads[of]
        return found

    async def _answer(self, asked: Mapping[str, Any], head: Head) -> None:
        """Put a question; whatever goes wrong is told, since the code in the worker waits for an answer."""
        number, row = asked["number"], asked["row"]
        try:
            if row is not None and row != self._row:
                raise RowError("the row that this question belongs to is over")
            if row is None:  # of a thread of the user's own, which knows no row here, either
                TICKET.set(None)
            request = told.request_untold(head, asked)
            answered, body = told.response_told(await self._put(asked["lm"], request))
            said = frame({"kind": "answer", "number": number, **answered}, body)
        except Exception as error:  # noqa: BLE001 - the code in the worker may handle it
            self._failed[number] = error
            said = frame({"kind": "refused", "number": number, **told.raised(error)})
        self._worker.send(said)

    async def _put(self, number: int, request: Request) -> Response:
        layer, lm = self._scope.layers[number], self._scope.models[number]
        ticket = TICKET.get() or Ticket()
        if ticket.step and not events.active:
            response = Ask(layer, request).peek() or await Ask(layer, request)
        else:
            response = await aperform(put(lm, layer, request))
        ticket.count(response, request.model)
        return response
