"""What one run of a flow shares within a process: state, journal, gate, counters, first error.

A :class:`Job` is made when a flow is compiled and opened when the first source is built, so that a
flow compiled for bytewax's own runner finds its state as well as one started by ours.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bytewax.inputs import AbortExecution

from dspy_stream.clock import Clock, SystemClock
from dspy_stream.engine import Ticket
from dspy_stream.errors import AdapterParseError, BudgetExceeded, DSPyStreamError, FlowError, LMError
from dspy_stream.lm.secret import masked
from dspy_stream.modules.hosts import Hosts
from dspy_stream.modules.process.told import PartError
from dspy_stream.modules.scope import Clients
from dspy_stream.rows import DeadLetter, Row, Stage
from dspy_stream.state.journal import MemoryJournal
from dspy_stream.stream.batches import open_lane
from dspy_stream.stream.gate import Gate
from dspy_stream.stream.held import HeldBack
from dspy_stream.stream.limits import Limit, Streak
from dspy_stream.stream.spending import Spending
from dspy_stream.types import Usage

if TYPE_CHECKING:
    from dspy_stream.adapters import Adapter
    from dspy_stream.lm.base import Model
    from dspy_stream.lm.batch.lane import BatchLane, Waiting
    from dspy_stream.lm.batch.plan import BatchOptions
    from dspy_stream.lm.budget import Budget
    from dspy_stream.state.blackbox import BlackBox
    from dspy_stream.state.store import Store
    from dspy_stream.stream.ask import Pool
    from dspy_stream.stream.sources.base import Partition
    from dspy_stream.stream.terminal import Counts

__all__ = ["Calls", "Job", "State"]

T = TypeVar("T")

# Characters of an unreadable answer that a dead letter keeps.
_ANSWER = 4000
_WARN = 30.0
_NAP = 0.005
_log = logging.getLogger("dspy_stream")


@dataclass(frozen=True)
class State:
    """The state folder of a run, opened: its store, its run id, and the watch over user code."""

    store: Store
    run_id: str
    journal: Any  # a recorder of Journal
    blackbox: BlackBox


@dataclass
class Calls:
    """Model calls of this process. ``hits`` were served by the journal and cost nothing."""

    made: int = 0
    hits: int = 0
    usage: Usage = field(default_factory=Usage)


class Job:
    """One run of one flow in one process.

    Args:
        flow: the flow's name.
        digest: the program's digest, written into dead letters.
        opener: opens the state folder, once; None for a run that keeps nothing.
        budget: what the run may spend over all its restarts.
        clock: time.
    """

    def __init__(
        self,
        flow: str,
        digest: str,
        *,
        opener: Callable[[], State] | None = None,
        budget: Budget | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.flow = flow
        self.digest = digest
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.gate = Gate()
        self.calls = Calls()
        self.spending = Spending(budget)
        self.first_error: tuple[str, BaseException] | None = None
        self.fatal: BaseException | None = None  # a row's failure that is to end the flow
        self.pools: dict[str, Pool] = {}
        self.models: tuple[Model | None, Adapter] | None = None  # where the settings have changed since
        self.counts: dict[str, Counts] = {}
        self.limit = Limit()
        self.calm = True  # failures end the flow from within; False under bytewax's own runner
        self.strict = False  # the first dead letter ends the flow
        self.defaults: dict[str, int] = {}  # rows that failed and went on with default outputs, by step
        self.failure = ""  # the latest row's that is a dead letter
        self.held = HeldBack()
        self.ignored = 0  # fields of answers that nobody had asked for
        self.rows_before = 0  # rows that had come out before this process began
        self.read: dict[str, int] = {}
        self.bytes_read: dict[str, int] = {}
        self.checks: list[Callable[[list[Row | DeadLetter]], list[Row | DeadLetter]]] = []
        self.state: State | None = None
        self.clients = Clients(None)
        self.hosts = Hosts(self.clock)
        self.lane: tuple[BatchLane, Clients] | None = None
        self._opener = opener
        self._opened = False
        self._warned = -_WARN
        self._silent: set[str] = set()  # steps whose model was said not to answer
        self._lock = threading.RLock()
        self._slots = threading.local()

    # ------------------------------------------------------------------------------------ opening

    def open(self) -> None:
        """Open the state folder and start the clients; does nothing the second time.

        Raises:
            StateError: the folder cannot be used.
        """
        with self._lock:
            if self._opened:
                return
            if self._opener is not None:
                self.state = self._opener()
            journal = self.state.journal if self.state is not None else MemoryJournal()
            self.spending.resume(self.state.journal if self.state is not None else None)
            self.clients = Clients(journal, wrap=self.spending.around)
            self._opened = True

    def clients_for(self, batches: BatchOptions | None, outage: float) -> Clients:
        """The clients of a step: those that call, or with ``batches`` those of the batch lane.

        Raises:
            FlowError: another step of the flow has other options; they share their batches.
        """
        if batches is None:
            return self.clients
        with self._lock:
            if self.lane is None:
                self.lane = open_lane(self.clients, self.state, batches, outage)
            lane, clients = self.lane
        if lane.options != batches:
            raise FlowError("the batch steps of a flow share their batches: give them the same BatchOptions")
        return clients

    def waiting(self) -> list[Waiting]:
        """Batches at a provider that rows of this job wait for; may be called from any thread."""
        return self.lane[0].waiting() if self.lane is not None else []

    @property
    def run_id(self) -> str:
        """Name of the run; empty where nothing is kept."""
        return self.state.run_id if self.state is not None else ""

    @property
    def folder(self) -> Path | None:
        """The state folder."""
        return Path(self.state.store.path) if self.state is not None else None

    # ------------------------------------------------------------------------------ what went wrong

    def guarded(self, where: str, fn: Callable[..., T], *args: Any) -> T:
        """Call ``fn`` and remember its first failure, which bytewax may lose on its way up."""
        try:
            return fn(*args)
        except (StopIteration, AbortExecution):
            raise
        except BaseException as error:  # only noted here, and raised on
            self.note(where, error)
            raise

    def calmly(self, where: str, fn: Callable[..., T], *args: Any) -> T | None:
        """Call ``fn``; after a failure, close the gate and return None.

        The sources then end the flow from within. An exception that reaches the engine ends it as
        well, but with its own stack traces on the screen before ours is told.
        """
        if not self.calm:
            return self.guarded(where, fn, *args)
        try:
            return fn(*args)
        except Exception as error:  # noqa: BLE001  noted here, and raised when the engine has ended
            self.note(where, error)
            self.gate.broken = True
            return None

    def note(self, where: str, error: BaseException) -> None:
        """Remember an error, if it is the first; the interrupt of a clock that was set back is none."""
        if isinstance(error, KeyboardInterrupt) and self.gate.set_back:
            return
        with self._lock:
            if self.first_error is None:
                self.first_error = (where, error)

    # --------------------------------------------------------------------------------- accounting

    def count_read(self, partition: str, rows: int, inner: Partition) -> None:
        """Note how far a partition has been read."""
        self.read[partition] = rows
        self.bytes_read[partition] = inner.bytes_read

    def streak(self, where: str) -> Streak:
        """A counter of failures in a row, which closes the gate when there are too many."""
        return Streak(where, self.limit.consecutive, self.gate.exceed)

    def rows_in(self) -> int:
        """Rows read, over all restarts."""
        return sum(self.read.values())

    def rows_here(self) -> int:
        """Rows that came out in this process."""
        return sum(count.settled() for count in self.counts.values()) - self.rows_before

    def admit(self, rows: Sequence[Row | DeadLetter]) -> list[Row | DeadLetter]:
        """What may enter the flow: rows checked for conflicting ids, envelopes completed."""
        admitted = list(rows)
        for check in self.checks:
            admitted = check(admitted)
        for index, item in enumerate(admitted):
            if type(item) is DeadLetter:
                admitted[index] = self.stamp(item)
        return admitted

    def replaced(self, ticket: Ticket) -> None:
        """Keep second answers as those to the questions themselves, so that a later run finds them."""
        if self.state is not None and ticket.instead:
            self.state.journal.replace({key: other for key, (_, other) in ticket.instead.items()})

    def used(self, ticket: Ticket) -> None:
        """Add an attempt's calls."""
        if not ticket.calls:
            return
        calls = self.calls
        if ticket.hits:
            self.spending.used(ticket)
        calls.hits += ticket.hits
        calls.made += ticket.calls - ticket.hits
        for used in (ticket.usage or {}).values():
            calls.usage += used

    def halt(self, error: BudgetExceeded) -> None:
        """Start no row any more, because the budget is used up; end when those in flight have finished."""
        with self._lock:
            self.gate.spent = self.gate.spent or error

    def attempt_failed(self, error: LMError) -> None:
        """Count an attempt at a call that may have been charged for."""
        self.spending.attempt_failed(error)
        self.held.failed(error, self.clock.monotonic())

    def tight(self) -> bool:
        """True while calls wait for what is left of a budget."""
        return self.spending.budget.tight

    def troubled(self, step: str, error: LMError) -> None:
        """Warn that a model does not answer, at most twice a minute."""
        now = self.clock.monotonic()
        if now - self._warned >= _WARN:
            self._warned = now
            self._silent.add(step)
            _log.warning("%s: the model does not answer, the rows wait for it: %s", step, error)

    def recovered(self, step: str, seconds: float) -> None:
        """Say that it answers again, where somebody was warned."""
        if step in self._silent:
            self._silent.discard(step)
            _log.warning("%s: the model answers again, after %.0f s", step, seconds)

    def defaulted(self, step: str, row_id: str, error: BaseException) -> None:
        """Count a row that goes on with default outputs; say so the first time in each step."""
        with self._lock:
            before = self.defaults.get(step, 0)
            self.defaults[step] = before + 1
        if not before:
            why = f"{type(error).__name__}: {error}"
            _log.warning("%s: row %s failed and goes on with default outputs: %s", step, row_id, why)

    def count_ignored(self, fields: int) -> None:
        """Count fields of an answer that nobody had asked for."""
        with self._lock:
            self.ignored += fields

    # ---------------------------------------------------------------------------- watch over rows

    def entered(self, step: str, row_id: str) -> None:
        """Note that this thread now runs code of a row."""
        state = self.state
        if state is not None:
            slot = getattr(self._slots, "number", None)
            state.blackbox.enter(slot if slot is not None else self._slot(), step, row_id)

    def left(self) -> None:
        """Note that this thread runs no row's code."""
        state = self.state
        if state is not None:
            slot = getattr(self._slots, "number", None)
            state.blackbox.leave(slot if slot is not None else self._slot())

    def deaths(self, step: str, row_id: str) -> int:
        """How often the process died in this row's code."""
        state = self.state
        return state.blackbox.attempts(step, row_id) if state is not None else 0

    def _slot(self) -> int:
        slot: int | None = getattr(self._slots, "number", None)
        if slot is None:
            assert self.state is not None
            slot = self._slots.number = self.state.blackbox.claim()
        return slot

    # ------------------------------------------------------------------------------- dead letters

    def write(
        self, row: Row, stage: Stage, step: str, error: BaseException, *, attempts: int = 1
    ) -> DeadLetter:
        """An envelope for a row that failed in ``step``."""
        model = None
        if isinstance(error, LMError):
            model = {"name": error.model, "request_id": error.request_id, "status": error.status}
        code = error.code if isinstance(error, DSPyStreamError) else "exception"
        kind, message = type(error).__name__, str(error) or repr(error)
        if isinstance(error, PartError):  # of a class that is known in a worker process only
            kind, message = error.original
        described = {"code": code, "type": kind, "message": message}
        if isinstance(error, AdapterParseError):
            described["answer"] = error.lm_response[:_ANSWER]
        elif code == "exception" and error.__traceback__ is not None:
            last = traceback.extract_tb(error.__traceback__)[-1]
            here = f"{os.path.basename(last.filename)}, line {last.lineno}, in {last.name}"
            described["where"] = getattr(error, "where_in_worker", here)
        # Into files and the state folder goes text alone; a message may quote what is none.
        told = {
            name: masked(text.encode("utf-8", "backslashreplace").decode())
            for name, text in described.items()
        }
        self.failure = f"{step}: row {row.id}: {told['type']}: {told['message']}"
        letter = DeadLetter(
            row.id, row.origin, row.raw_bytes(), stage, told, attempts=attempts, step=step, model=model
        )
        return self.stamp(letter)

    def stamp(self, letter: DeadLetter) -> DeadLetter:
        """The envelope with the flow, the program and the time filled in."""
        now = datetime.fromtimestamp(self.clock.time(), timezone.utc).isoformat(timespec="milliseconds")
        return DeadLetter(
            row_id=letter.row_id,
            origin=letter.origin,
            raw=letter.raw,
            stage=letter.stage,
            error=letter.error,
            attempts=letter.attempts,
            step=letter.step,
            program_digest=self.digest,
            flow=self.flow,
            first_seen=letter.first_seen or now,
            last_seen=now,
            model=letter.model,
            fields=letter.fields,
        )

    # ------------------------------------------------------------------------------------ stopping

    def stop(self, grace: float) -> None:
        """Read nothing more; cancel what is still in flight after ``grace`` seconds.

        Only sets a flag and starts a timer, so that a signal handler may call it. What is in a
        batch is not waited for: it goes on at the provider, and a later run fetches it.
        """
        self.gate.stop = True
        for pool in list(self.pools.values()):
            if pool.patient:
                pool.cancel()
        if self.lane is not None:
            self.lane[0].hurry(grace)
        timer = threading.Timer(grace, self._expire)
        timer.daemon = True
        timer.start()

    def _expire(self) -> None:
        for pool in list(self.pools.values()):
            pool.cancel()

    def settle(self, grace: float, ended: threading.Event | None = None) -> None:
        """Let the calls in flight finish for up to ``grace`` seconds, or until ``ended`` is set; blocks.

        They are paid for, and are journaled when answered; what is in a batch goes on at the provider.
        """
        ended = ended if ended is not None else threading.Event()
        end = time.monotonic() + grace
        pools = [pool for pool in list(self.pools.values()) if not pool.patient]
        while any(pool.running for pool in pools) and time.monotonic() < end and not ended.wait(_NAP):
            pass

    def wait_quiet(self, seconds: float) -> None:
        """Let callbacks that the loop has queued run out; what runs on, of a failed flow, is given up."""
        self._expire()
        end = time.monotonic() + seconds
        while any(pool.running for pool in self.pools.values()) and time.monotonic() < end:
            threading.Event().wait(_NAP)
