"""The async operator: a module inside a dataflow, with hundreds of rows in flight on one thread.

A :class:`Pool` per step owns the in-flight limit and runs rows on the engine's loop. An
:class:`AskLogic` per shard key is the bytewax side: it hands rows to the pool, emits what has
finished, and is snapshotted as the rows it holds. After a crash those rows run again; their
finished calls are in the journal. Emission is in completion order, or in input order per key with
``ordered``.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Protocol, TypeVar

from bytewax.operators import StatefulBatchLogic

from dspy_stream.engine import Ticket
from dspy_stream.errors import RowTimeout
from dspy_stream.modules.noted import of_row
from dspy_stream.runtime import GIVES_UP, Pending, Steps, advance, loop
from dspy_stream.stream.codec import Frozen
from dspy_stream.stream.meter import Meter

__all__ = ["HELD", "Again", "AskLogic", "Pool", "RowWork"]

X = TypeVar("X", contravariant=True)  # what goes in: a row
Y = TypeVar("Y", covariant=True)  # what comes out: a row or a dead letter

# How often a worker looks for results. It does not limit the rate: the pool refills itself.
_POLL: Final = timedelta(milliseconds=20)
# Rows a step may hold, beyond those in flight, before the sources are told to wait: enough to keep
# the model busy while the worker commits an epoch, few enough to keep snapshots small.
_AHEAD: Final = 4
# In a step that waits for hours a worker looks, and is snapshotted, ever more rarely: after a tenth of
# the time since something last happened, and once in so many seconds.
_RARELY: Final = 0.1
_RAREST: Final = 30.0


@dataclass(frozen=True, slots=True)
class Again:
    """Try the row again after ``delay`` seconds."""

    delay: float


class _Held:
    """See ``HELD``."""


HELD: Final = _Held()
"""Leave the row as it is, for a run to come. The flow is stopping when this is said."""


class RowWork(Protocol[X, Y]):
    """What a step does with one row, as pure decisions; the pool does the waiting."""

    timeout: float | None

    def begin(self, item: X, last: Ticket | None) -> tuple[Steps[Any], Ticket]:
        """Steps for one attempt, and its ticket; ``last`` is the ticket of the failed one before."""
        ...

    def passes(self, item: X) -> bool:
        """True for an item that is not this step's business and goes through untouched."""
        ...

    def finish(self, item: X, value: Any, ticket: Ticket) -> Y:
        """The row that comes out of a successful attempt."""
        ...

    def fail(self, item: X, error: BaseException, ticket: Ticket | None) -> Y | Again | _Held:
        """What comes out of a failed attempt, when to try again, or ``HELD``. Raises to stop the flow."""
        ...

    def entered(self, item: X) -> None:
        """Called before the row's own code runs."""
        ...

    def left(self) -> None:
        """Called when the row's own code has returned or waits."""
        ...


class _Entry:
    """One row in a pool: where its result goes, and the ticket of its latest attempt."""

    __slots__ = ("began", "done", "expired", "item", "seq", "ticket", "timer")

    def __init__(self, done: deque[tuple[int, Any]], seq: int, item: Any) -> None:
        self.done = done
        self.seq = seq
        self.item = item
        self.ticket: Ticket | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.expired = False
        self.began = 0.0


class Pool:
    """The in-flight limit of one step in one process, and the tasks under it.

    ``backlog`` counts rows taken and not yet emitted, ``queued`` those of them that nothing is done
    about; the gate reads both, in this order, from other threads. ``fatal`` holds the error that must
    end the flow. A ``patient`` pool's answers take hours: a stop does not wait for them, and few rows
    are held beyond those in flight, since all are in every snapshot.
    """

    def __init__(
        self,
        work: RowWork[Any, Any],
        capacity: int,
        *,
        context: contextvars.Context | None = None,
        stopping: Callable[[], bool] = lambda: False,
        patient: bool = False,
        meter: Meter | None = None,
    ) -> None:
        self.meter = meter if meter is not None else Meter()
        self.work = work
        self.capacity = capacity
        self.patient = patient
        self.high = capacity if patient else _AHEAD * capacity + 1024
        self._moved = time.monotonic()
        self.backlog = 0
        self.fatal: BaseException | None = None
        self._context = context if context is not None else contextvars.copy_context()
        self._stopping = stopping
        self._queue: deque[_Entry] = deque()
        self._running = self._waiting = self._blocked = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._halted = False
        self._lock = threading.Lock()

    @property
    def queued(self) -> int:
        """Rows that nothing is done about: not started, waiting for another attempt, or behind such a row."""
        if self.patient:  # what has finished may stay held as well: it is in the journal
            return self.backlog - self._running
        return len(self._queue) + self._waiting + self._blocked

    @property
    def running(self) -> int:
        """Rows in flight."""
        return self._running

    @property
    def poll(self) -> timedelta:
        """How long a worker should leave it until it looks for results again."""
        if not self.patient:
            return _POLL
        still = time.monotonic() - self._moved
        return max(_POLL, timedelta(seconds=min(_RAREST, still * _RARELY)))

    def hold(self, change: int) -> None:
        """Count rows taken (or, negative, emitted)."""
        self._moved = time.monotonic()
        with self._lock:
            self.backlog += change

    def block(self, change: int) -> None:
        """Count rows that have finished and wait for one before them; said before they are emitted."""
        with self._lock:
            self._blocked += change

    def submit(self, entries: Sequence[_Entry]) -> None:
        """Hand rows over, from a worker thread; one wake-up for all of them."""
        self.hold(len(entries))
        loop().call_soon_threadsafe(self._accept, entries, context=self._context)

    def cancel(self) -> None:
        """Cancel the calls in flight, from any thread; their rows stay in the snapshot."""
        loop().call_soon_threadsafe(self._cancel)

    # ------------------------------------------------------------------- on the engine's loop only

    def _cancel(self) -> None:
        self._halted = True
        for task in tuple(self._tasks):
            task.cancel()

    def _accept(self, entries: Sequence[_Entry]) -> None:
        self._queue.extend(entries)
        self._pump()

    def _pump(self) -> None:
        while self._queue and self._running < self.capacity and not self._over():
            self._start(self._queue.popleft())

    def _over(self) -> bool:
        return self._halted or self.fatal is not None or self._stopping()

    def _start(self, entry: _Entry) -> None:
        self._running += 1
        work, meter = self.work, self.meter
        if not entry.began:
            entry.began = time.monotonic()
            meter.taken += 1
        if self._running > meter.most:
            meter.most = self._running
        try:
            work.entered(entry.item)
            try:
                steps, entry.ticket = work.begin(entry.item, entry.ticket)
                outcome = advance(steps)
            finally:
                work.left()
        except BaseException as error:  # noqa: BLE001 - the row's own failure, judged by the step's policy
            self._failed(entry, of_row(error))
            return
        if isinstance(outcome, Pending):
            task = loop().create_task(self._follow(entry, steps, outcome))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if work.timeout is not None:
                entry.timer = loop().call_later(work.timeout, _expire, entry, task)
        else:
            self._succeeded(entry, outcome)

    async def _follow(self, entry: _Entry, steps: Steps[Any], outcome: Any) -> None:
        work = self.work
        if work.timeout is not None:
            GIVES_UP.set(loop().time() + work.timeout)
        try:
            while isinstance(outcome, Pending):
                value: Any = None
                thrown: BaseException | None = None
                try:
                    value = await outcome.effect
                except BaseException as error:  # noqa: BLE001 - thrown into the row's code, which may handle it
                    thrown = error
                work.entered(entry.item)
                try:
                    outcome = advance(steps, value, thrown)
                finally:
                    work.left()
        except asyncio.CancelledError as cancelled:
            if entry.expired:
                self._failed(entry, RowTimeout(f"not finished within the step's limit of {work.timeout} s"))
            elif self._stopping():
                self._running -= 1  # the row stays held, and is in the snapshot
                self._queue.appendleft(entry)
            else:
                self._failed(entry, cancelled if self._halted else of_row(cancelled))
        except BaseException as error:  # noqa: BLE001 - the row's own failure, judged by the step's policy
            self._failed(entry, error)
        else:
            self._succeeded(entry, outcome)
        self._pump()

    def _succeeded(self, entry: _Entry, value: Any) -> None:
        try:
            assert entry.ticket is not None
            result = self.work.finish(entry.item, value, entry.ticket)
        except BaseException as error:  # noqa: BLE001 - such as a result that is no prediction
            self._failed(entry, error)
        else:
            self._settle(entry, result)

    def _failed(self, entry: _Entry, error: BaseException) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        try:
            result = self.work.fail(entry.item, error, entry.ticket)
        except BaseException as fatal:  # noqa: BLE001 - the policy says that the flow must not go on
            self._running -= 1
            self.fatal = self.fatal or fatal
            return
        if result is HELD:
            self._running -= 1
            self._queue.appendleft(entry)
            return
        if isinstance(result, Again):
            self._running -= 1
            entry.expired = False
            self._waiting += 1
            loop().call_later(result.delay, self._retry, entry, context=self._context)
            return
        self._settle(entry, result)

    def _retry(self, entry: _Entry) -> None:
        self._waiting -= 1
        # Before those that have not begun: rows that fail would else gather behind all the others.
        self._queue.appendleft(entry)
        self._pump()

    def _settle(self, entry: _Entry, result: Any) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        self._running -= 1
        self._moved = now = time.monotonic()
        self.meter.took(now - entry.began)
        entry.done.append((entry.seq, result))


def _expire(entry: _Entry, task: asyncio.Task[None]) -> None:
    entry.expired = True
    task.cancel()


def _nap() -> None:
    time.sleep(0.002)  # releases the interpreter to the engine's loop


class AskLogic(StatefulBatchLogic[Any, Any, "list[Frozen]"]):
    """One shard of a step: the rows it holds, and those of them that have finished."""

    def __init__(
        self,
        pool: Pool,
        *,
        ordered: bool,
        freeze: Callable[[Any], Frozen],
        resumed: Iterable[Any] = (),
        hard: int | None = None,
    ) -> None:
        self._pool = pool
        self._hard = hard
        self._ordered = ordered
        self._freeze = freeze
        self._held: dict[int, Any] = {}
        self._frozen: dict[int, Frozen] = {}  # those of the latest snapshot
        self._done: deque[tuple[int, Any]] = deque()
        self._early: dict[int, Any] = {}  # finished, but an earlier row has not
        self._numbers = itertools.count()
        self._next = 0
        for item in self._take(resumed):  # nothing can be emitted yet
            self._keep(item)

    def _take(self, items: Iterable[Any]) -> list[Any]:
        """Hand rows to the pool; return what goes straight through."""
        pool, passes = self._pool, self._pool.work.passes
        entries: list[_Entry] = []
        through: list[Any] = []
        for item in items:
            if passes(item):
                (self._keep if self._ordered else through.append)(item)
                continue
            number = next(self._numbers)
            self._held[number] = item
            entries.append(_Entry(self._done, number, item))
        if entries:
            pool.submit(entries)
        return through

    def _keep(self, item: Any) -> None:
        """Hold what needs no work until it is its turn."""
        number = next(self._numbers)
        self._held[number] = item
        self._pool.hold(1)
        self._done.append((number, item))

    def _drain(self, *, gated: bool = True) -> list[Any]:
        pool = self._pool
        if pool.fatal is not None:
            if gated and self._hard is None:
                return []  # the gate has seen it, and ends the flow at the sources
            raise pool.fatal
        out: list[Any] = []
        done, held, blocked = self._done, self._held, len(self._early)
        while done:
            number, result = done.popleft()
            if self._ordered:
                self._early[number] = result
            else:
                del held[number]
                out.append(result)
        if self._ordered:
            while self._next in self._early:
                out.append(self._early.pop(self._next))
                del held[self._next]
                self._next += 1
            if len(self._early) != blocked:
                pool.block(len(self._early) - blocked)
        if out:
            pool.hold(-len(out))
        return out

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        """Take rows, and emit what has finished meanwhile.

        Where no gate holds the sources back, ``hard`` bounds what is held, by blocking: the whole
        worker stands still meanwhile, so it is the last resort.
        """
        out = self._take(values) + self._drain()
        while self._hard is not None and self._pool.backlog > self._hard:
            _nap()
            out += self._drain()
        return out, False

    def on_notify(self) -> tuple[list[Any], bool]:
        """Emit what has finished."""
        return self._drain(), False

    def on_eof(self) -> tuple[list[Any], bool]:
        """Emit the rest. Blocks; with gated sources nothing is left by now."""
        out = self._drain()
        while self._held:
            _nap()
            out += self._drain(gated=False)
        return out, True

    def notify_at(self) -> datetime | None:
        """Poll while rows are held; bytewax cannot be woken from outside."""
        return datetime.now(timezone.utc) + self._pool.poll if self._held else None

    def snapshot(self) -> list[Frozen]:
        """Rows taken and not yet emitted, in the order they came; one that stays is frozen only once."""
        self._frozen = {n: self._frozen.get(n) or self._freeze(item) for n, item in self._held.items()}
        return list(self._frozen.values())
