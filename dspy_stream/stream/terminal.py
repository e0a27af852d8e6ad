"""The end of a flow: rows to the sink, failures to the dead letters, and the counting of both.

One partition writes everything of one ``.write``, and its snapshot holds the positions of the
output, of the dead letters and of the counters together. After a crash all three go back to the
same committed epoch: that is what makes them agree, with each other and with the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from dspy_stream.errors import DSPyStreamError, OutputError, RowError
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.limits import Limit
from dspy_stream.stream.sinks.base import Sink, SinkPartition
from dspy_stream.stream.work import Dropped, refuse_poison

if TYPE_CHECKING:
    from dspy_stream.stream.job import Job

__all__ = ["Counts", "Terminal", "TerminalSink"]

Measure = Callable[[Row], "float | bool | None"]


@dataclass
class Counts:
    """What has come out of one ``.write``, as of its latest snapshot plus what followed."""

    rows: int = 0
    dead: int = 0
    dropped: int = 0
    measured: dict[str, tuple[int, float]] = field(default_factory=dict)

    def settled(self) -> int:
        """Rows that have come to an end, whichever."""
        return self.rows + self.dead + self.dropped

    def means(self) -> dict[str, float]:
        """The mean of each measure, over the rows for which it had a value."""
        return {name: total / count for name, (count, total) in self.measured.items() if count}


class Box(Protocol):
    """Where a terminal keeps dead letters."""

    def append(self, letters: list[DeadLetter]) -> None:
        """Keep them."""
        ...

    def position(self) -> int:
        """How many are kept."""
        ...


@dataclass(frozen=True)
class Terminal:
    """What one ``.write`` asks for."""

    step: str
    sink: Sink
    letters: Sink | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    limit: Limit = field(default_factory=Limit)


class TerminalSink(FixedPartitionedSink[Any, Any]):
    """A terminal as a bytewax sink of one partition."""

    def __init__(self, terminal: Terminal, job: Job, open_box: Callable[[str, int], Box | None]) -> None:
        self._terminal = terminal
        self._job = job
        self._open_box = open_box

    def list_parts(self) -> list[str]:
        """The only partition."""
        return ["all"]

    def part_fn(self, item_key: str) -> int:  # noqa: ARG002
        """Everything belongs to it."""
        return 0

    def build_part(
        self,
        step_id: str,  # noqa: ARG002
        for_part: str,  # noqa: ARG002
        resume_state: Any,
    ) -> StatefulSinkPartition[Any, Any]:
        """Open the outputs, cut back to the committed epoch."""
        self._job.open()
        opened = self._job.calmly(f"opening {self._terminal.step}", self._build, resume_state)
        return opened if opened is not None else _Unopened(self._job)

    def _build(self, resume: Any) -> _TerminalPartition:
        terminal = self._terminal
        counts = Counts()
        if resume is not None:
            counts = Counts(**{**resume["counts"], "measured": dict(resume["counts"]["measured"])})
        out = terminal.sink.open(resume["sink"] if resume else None)
        letters = terminal.letters.open(resume["letters"] if resume else None) if terminal.letters else None
        box = self._open_box(terminal.step, resume["dead"] if resume else 0)
        self._job.counts[terminal.step] = counts
        self._job.rows_before += counts.settled()
        return _TerminalPartition(terminal, self._job, _Outputs(out, letters, box), counts)


class _Unopened(StatefulSinkPartition[Any, Any]):
    """In the place of outputs that cannot be opened: takes nothing, and lets nothing be committed."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def write_batch(self, values: Iterable[Any]) -> None:
        pass

    def snapshot(self) -> Any:
        assert self._job.first_error is not None
        raise self._job.first_error[1]


@dataclass(frozen=True)
class _Outputs:
    rows: SinkPartition
    letters: SinkPartition | None
    box: Box | None


class _TerminalPartition(StatefulSinkPartition[Any, Any]):
    def __init__(self, terminal: Terminal, job: Job, outputs: _Outputs, counts: Counts) -> None:
        self._terminal = terminal
        self._job = job
        self._outputs = outputs
        self._counts = counts
        self._streak = job.streak(f"while writing {terminal.step}")

    def write_batch(self, values: Iterable[Any]) -> None:
        if not self._job.gate.broken:
            self._job.calmly(f"writing {self._terminal.step}", self._write, values)

    def _write(self, values: Iterable[Any]) -> None:
        counts, job = self._counts, self._job
        rows: list[Row] = []
        letters: list[DeadLetter] = []
        for value in values:
            if type(value) is Row:
                rows.append(value)
                counts.rows += 1
            elif type(value) is DeadLetter:
                if job.strict:
                    message, where = value.error["message"], str(value.origin)
                    raise RowError(message if message.startswith(where) else f"{where}: {message}")
                letters.append(value)
                counts.dead += 1
            elif type(value) is Dropped:
                counts.dropped += 1
        if rows:
            letters += self._deliver(rows)
        if letters:
            self._bury(letters)
            self._terminal.limit.check(counts.dead, counts.rows + counts.dead, job.rows_in() - counts.dropped)
        if job.gate.exceeded is not None:
            raise job.gate.exceeded

    def _deliver(self, rows: list[Row]) -> list[DeadLetter]:
        """Write the rows; the letters of those that have no form in the output."""
        add = getattr(self._outputs.rows, "add", None)  # of sinks that can tell
        if add is None:
            self._outputs.rows.write(rows)
            self._measure(rows)
            return []
        job, step = self._job, self._terminal.step
        unfit: list[OutputError] = add(rows)
        if len(unfit) < len(rows):
            self._streak.passed()
        for error in unfit:
            if job.strict:
                raise error
            self._streak.failed()
        bad = {id(error.row) for error in unfit}
        self._measure([row for row in rows if id(row) not in bad] if bad else rows)
        self._counts.rows -= len(unfit)
        self._counts.dead += len(unfit)
        return [job.write(error.row, "write", step, error) for error in unfit]

    def _measure(self, rows: list[Row]) -> None:
        job = self._job
        for name, measure in self._terminal.measures.items():
            # A step of its own: a row that ended the process in one measure has a value in the others.
            step = f"{self._terminal.step}, measure {name}"
            count, total = self._counts.measured.get(name, (0, 0.0))
            for row in rows:
                job.entered(step, row.id)
                try:
                    refuse_poison(job, step, row.id)
                    value = measure(row)
                    number = None if value is None else float(value)
                except Exception:  # noqa: BLE001  the user's function; the row is written all the same
                    self._unmeasured(name)
                    continue
                finally:
                    job.left()
                if number is not None:
                    count += 1
                    total += number
            self._counts.measured[name] = (count, total)

    def _unmeasured(self, name: str) -> None:
        """Count a row that a measure raised on, as a measure of its own whose mean is that number."""
        _, failed = self._counts.measured.get(f"{name}, rows it raised on", (1, 0.0))
        self._counts.measured[f"{name}, rows it raised on"] = (1, failed + 1)

    def _bury(self, letters: list[DeadLetter]) -> None:
        outputs = self._outputs
        if outputs.box is not None:
            outputs.box.append(letters)
        if outputs.letters is not None:
            outputs.letters.write([_envelope(letter) for letter in letters])

    def snapshot(self) -> dict[str, Any]:
        return self._job.guarded(f"committing {self._terminal.step}", self._snapshot)

    def _snapshot(self) -> dict[str, Any]:
        outputs = self._outputs
        if self._job.gate.broken and self._job.first_error is not None:
            raise self._job.first_error[1]  # what failed to be written must never be committed
        state = self._job.state
        if state is not None:
            state.store.sync()
        return {
            "sink": outputs.rows.flush(),
            "letters": outputs.letters.flush() if outputs.letters is not None else None,
            "dead": outputs.box.position() if outputs.box is not None else 0,
            "counts": asdict(self._counts),
        }

    def close(self) -> None:
        for part in (self._outputs.rows, self._outputs.letters):
            if part is not None:
                try:
                    part.close()
                except (DSPyStreamError, KeyboardInterrupt) as error:
                    # The engine aborts the process where a close raises; an interrupt may be one of several.
                    self._job.note(f"closing {self._terminal.step}", error)


def _envelope(letter: DeadLetter) -> Row:
    envelope = letter.to_json()
    return Row(envelope["row_id"], envelope, letter.origin)
