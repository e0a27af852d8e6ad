"""Backpressure and stopping: the one thing every source of a flow asks before it reads.

bytewax bounds its own queues but never sees the rows an operator holds while it waits for a model.
So the operators count what they hold, and the sources stop reading where one of them has come to its
high mark: held are up to the sum of these, and one read of each partition. The same gate carries a
stop: sources read nothing more, calls in flight finish, the epoch is committed, and only then does
the flow end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, Protocol

from bytewax.inputs import (
    AbortExecution,
    DynamicSource,
    FixedPartitionedSource,
    StatefulSourcePartition,
    StatelessSourcePartition,
)

from dspy_stream.errors import BudgetExceeded, TooManyFailures
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources.base import Partition, Source

if TYPE_CHECKING:
    from dspy_stream.stream.job import Job

__all__ = ["ControlSource", "Gate", "GatedSource"]

# How long a source that may not read waits before it asks again: so long for each that there is, within
# these bounds.
_EACH: Final = timedelta(microseconds=50)
_SHUT: Final = timedelta(milliseconds=5)
_RAREST: Final = timedelta(milliseconds=250)
_IDLE: Final = timedelta(milliseconds=20)
# Rows per read. bytewax costs 8 us a batch; above a few hundred rows nothing is gained.
_READ: Final = 256
# A source with nothing to do has seen this many quiet polls before it believes the flow is empty:
# a row on its way from one operator to the next is in nobody's backlog for a moment.
_QUIET: Final = 3


class Holder(Protocol):
    """An operator that holds rows."""

    high: int
    backlog: int  # rows taken and not yet emitted
    fatal: BaseException | None  # what must end the flow

    @property
    def queued(self) -> int:
        """Of those, rows not in flight."""
        ...


class Gate:
    """One per flow and process. Plain attributes: a signal handler may set ``stop``."""

    def __init__(self) -> None:
        self.holders: list[Holder] = []
        self.stop = False
        self.abort = False
        self.over = False  # a source has seen the end of the whole flow; it is too late to stop
        self.broken = False  # a source or a terminal failed
        self.exceeded: TooManyFailures | None = None  # set, the flow ends when the letters are written
        self.spent: BudgetExceeded | None = None  # set, the flow stops when what is in flight has finished
        self.set_back = 0.0  # seconds by which the machine's clock was set back: the engine cannot go on
        self.open_partitions = 0
        self.polls = 0  # how often sources were asked; the watchdog sees by it that workers move
        self._partitions = 0
        self._lock = threading.Lock()

    def opened(self, change: int) -> None:
        """Count partitions that have not ended."""
        with self._lock:
            self.open_partitions += change
            self._partitions += change > 0

    @property
    def closing(self) -> bool:
        """True when no row may be started any more."""
        return self.stopping or self.broken or self.exceeded is not None or self.set_back > 0

    @property
    def stopping(self) -> bool:
        """True when the flow is to end with rows left over, all of them committed."""
        return self.stop or self.spent is not None

    @property
    def open(self) -> bool:
        """True while sources may read."""
        return not self.closing and all(holder.backlog < holder.high for holder in self.holders)

    @property
    def pause(self) -> timedelta:
        """How long a source that may not read waits before it asks again: the longer the more there are."""
        return min(max(_SHUT, self._partitions * _EACH), _RAREST)

    def exceed(self, error: TooManyFailures) -> None:
        """Let the flow end with this error once what is under way has been written."""
        self.exceeded = self.exceeded or error

    @property
    def failed(self) -> bool:
        """True when the flow cannot go on. Nothing is committed any more."""
        return self.broken or any(holder.fatal is not None for holder in self.holders)

    @property
    def empty(self) -> bool:
        """True when no operator holds a row."""
        return all(holder.backlog == 0 for holder in self.holders)

    @property
    def settled(self) -> bool:
        """True when every operator holds only rows that it has not started."""
        return all(holder.backlog <= holder.queued for holder in self.holders)


class GatedSource(FixedPartitionedSource[Any, Any]):
    """A source of ours as a bytewax source, behind the gate."""

    def __init__(self, source: Source, job: Job) -> None:
        self._source = source
        self._job = job

    def list_parts(self) -> list[str]:
        """The source's partitions."""
        return self._source.partitions()

    def build_part(
        self,
        step_id: str,  # noqa: ARG002
        for_part: str,
        resume_state: Any,
    ) -> StatefulSourcePartition[Any, Any]:
        """Open one partition where the committed epoch left it."""
        self._job.open()
        position, count = (resume_state["position"], resume_state["rows"]) if resume_state else (None, 0)
        partition = self._job.calmly(f"opening {for_part}", self._source.open, for_part, position)
        if partition is None:
            return _Unopened(resume_state)
        return _GatedPartition(partition, self._job, for_part, count)


class _Unopened(StatefulSourcePartition[Any, Any]):
    """In the place of a partition that cannot be opened: ends the flow, and stands where it stood."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def next_batch(self) -> Iterable[Any]:
        raise AbortExecution

    def snapshot(self) -> Any:
        return self._state


class _GatedPartition(StatefulSourcePartition[Any, Any]):
    def __init__(self, inner: Partition, job: Job, name: str, count: int) -> None:
        self._inner = inner
        self._job = job
        self._gate = job.gate
        self._name = name
        self._count = count
        self._ended = False
        self._quiet = 0
        self._committed = False
        self._awake: datetime | None = None
        self._streak = job.streak(f"while reading {name}")
        self._gate.opened(1)
        job.count_read(name, count, inner)

    def next_batch(self) -> Iterable[Row | DeadLetter]:
        gate, self._awake = self._gate, None
        gate.polls += 1
        if gate.failed and self._job.calm:
            raise AbortExecution
        if not self._ended and gate.open:
            rows = self._job.calmly(f"reading {self._name}", self._read)
            if rows is None:
                raise AbortExecution
            if rows:
                return rows
            if self._inner.exhausted:
                self._ended = True
                gate.opened(-1)
            else:
                self._awake = datetime.now(timezone.utc) + _IDLE
        return self._wait(gate)

    def _read(self) -> list[Row | DeadLetter]:
        rows = self._inner.read(_READ)
        if not rows:
            return rows
        self._count += len(rows)
        self._job.count_read(self._name, self._count, self._inner)
        self._quiet = 0
        admitted = self._job.admit(rows)
        passing = False  # told of once for rows that pass one after the other
        for item in admitted:
            if type(item) is DeadLetter:
                self._streak.failed()
                passing = False
            elif not passing:
                self._streak.passed()
                passing = True
        return admitted

    def _wait(self, gate: Gate) -> list[Row | DeadLetter]:
        if gate.exceeded is not None:
            self._quiet = self._quiet + 1 if gate.settled else 0
            if self._quiet >= _QUIET:
                # No letter has come out: they wait behind rows, or for halves, that are not begun any more.
                self._job.calmly(f"reading {self._name}", self._give_up, gate.exceeded)
                raise AbortExecution
        elif gate.stopping and not gate.over:
            self._quiet = self._quiet + 1 if gate.settled else 0
            if self._committed:
                # The epoch whose snapshot was taken when all was settled has been written.
                gate.abort = True
                raise AbortExecution
        elif self._ended and gate.open_partitions <= 0:
            # The end is held back until every row has come out, so that results stream to the
            # last and no operator has to block in on_eof.
            self._quiet = self._quiet + 1 if gate.empty else 0
            if self._quiet >= _QUIET or gate.over:
                gate.over = True
                raise StopIteration
        self._awake = self._awake or datetime.now(timezone.utc) + gate.pause
        return []

    def _give_up(self, error: TooManyFailures) -> None:
        latest = self._job.failure
        raise TooManyFailures(f"{error}; the latest: {latest}") if latest else error

    def next_awake(self) -> datetime | None:
        return self._awake

    def snapshot(self) -> dict[str, Any]:
        self._committed = self._gate.stopping and self._quiet >= _QUIET
        return {"position": self._inner.position(), "rows": self._count}

    def close(self) -> None:
        self._inner.close()


class ControlSource(DynamicSource[Any]):
    """Ends every worker of the process when the flow stops; emits nothing.

    A stop has to be raised on each worker, and a file is read by one of them only. So this source may
    end only when no stop can come any more: a worker that has ended is never told, and hangs.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _ControlPartition:  # noqa: ARG002
        """One partition a worker."""
        return _ControlPartition(self._gate)


class _ControlPartition(StatelessSourcePartition[Any]):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def next_batch(self) -> list[Any]:
        if self._gate.abort or self._gate.failed:
            raise AbortExecution
        if self._gate.over:
            raise StopIteration
        return []

    def next_awake(self) -> datetime:
        return datetime.now(timezone.utc) + _IDLE
