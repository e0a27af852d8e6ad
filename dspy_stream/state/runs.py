"""What was run: one record for every run of a flow, and which of them can be continued."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from dspy_stream.clock import Clock, SystemClock
from dspy_stream.errors import ProgramChanged, StateCorrupt
from dspy_stream.state import recovery
from dspy_stream.state.batch import Batch, after
from dspy_stream.state.journal import read_spend
from dspy_stream.state.recorder import run_prefix, spend_key
from dspy_stream.state.stamp import RESTORE

if TYPE_CHECKING:
    from dspy_stream.state.store import Store

__all__ = ["Run", "RunSpec", "Runs", "Status", "again_prefix", "seen_prefix"]

Status = Literal["running", "stopped", "failed", "finished"]
_STATUSES: Final = ("running", "stopped", "failed", "finished")
_PREFIX: Final = b"run/"
_CHANGES: Final = 100  # remembered of one run
_SHOWN: Final = 100  # characters of a setting in a message


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What is to be run. A run is continued only by the same flow, source, sink and program.

    ``recovers`` says that the dataflow engine keeps recovery files for it; a flow that keeps all
    its state in the store, as an optimization does, has none. ``lm`` is the name of the model that the
    run was given, ``server`` where that one answers, if it is not the provider's own; both for a reader.
    """

    flow: str
    program_digest: str = ""
    source: str = ""
    sink: str = ""
    recovers: bool = True
    lm: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One run. ``started`` and ``updated`` are UTC stamps (ISO 8601); ids sort by time.

    ``incarnation`` counts its processes, from one; ``totals`` are numbers by name, as the runner
    reports them. Status ``running`` in a folder that nobody owns means that the process died.
    ``changes`` are the settings that it has followed while it ran: ``at`` a stamp, by name what was
    and what is, and the digests of the program ``before`` and ``after``.
    """

    run_id: str
    flow: str
    program_digest: str
    source: str
    sink: str
    status: Status
    started: str
    updated: str
    incarnation: int = 1
    recovers: bool = True
    reason: str = ""
    totals: Mapping[str, int] = field(default_factory=dict)
    lm: str = ""
    server: str = ""
    changes: tuple[Mapping[str, Any], ...] = ()

    @property
    def programs(self) -> set[str]:
        """Digests of the programs that it was run with."""
        kept = (str(change.get(name)) for change in self.changes for name in ("before", "after"))
        return {self.program_digest, *kept}

    def wrote_to(self, sink: str) -> bool:
        """Whether its outputs are those, or, for a retry, whether it added to one of them."""
        if self.sink == sink:
            return True
        outputs = orjson.loads(sink)
        added_to = [output for output in orjson.loads(self.sink) if output.pop("appended", False)]
        return any(output in outputs for output in added_to)

    @property
    def resumable(self) -> bool:
        """Whether it may be continued."""
        return self.status != "finished"

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {name: getattr(self, name) for name in self.__slots__} | {"totals": dict(self.totals)}

    @staticmethod
    def from_bytes(data: bytes) -> Run:
        """Read the stored form.

        Raises:
            ValueError: the bytes are not a run record.
        """
        value = orjson.loads(data)
        try:
            run = Run(**{**value, "changes": tuple(value.get("changes", ()))})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a run record: {error}") from error
        texts = (run.run_id, run.flow, run.program_digest, run.source, run.sink, run.started, run.updated)
        if (
            not all(isinstance(text, str) for text in (*texts, run.lm, run.server))
            or run.status not in _STATUSES
        ):
            raise ValueError("not a run record: a field has the wrong kind of value")
        if (
            type(run.incarnation) is not int
            or not isinstance(run.totals, dict)
            or not _are_changes(run.changes)
        ):
            raise ValueError("not a run record: a field has the wrong kind of value")
        return run


class Runs:
    """The run records of one state folder.

    ``rng`` gives new ids their random part; at most ``keep`` runs of a flow are remembered.

    >>> import tempfile
    >>> from dspy_stream.state.store import Store
    >>> with tempfile.TemporaryDirectory() as parent, Store.open(parent + "/state") as store:
    ...     runs = Runs(store)
    ...     run, resumed = runs.begin(RunSpec("triage", recovers=False))
    ...     runs.stop(run, {"rows_in": 5}).status, resumed
    ...     again, resumed = runs.begin(RunSpec("triage", recovers=False))
    ...     again.run_id == run.run_id, again.incarnation, resumed
    ('stopped', False)
    (True, 2, True)
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        keep: int = 20,
    ) -> None:
        self._store = store
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._rng = rng if rng is not None else random.SystemRandom()
        self._keep = max(1, keep)

    def begin(
        self, spec: RunSpec, *, accept_program_change: bool = False, fresh: bool = False
    ) -> tuple[Run, bool]:
        """Continue the flow's newest run if it is unfinished, else start one; True if continued.

        A run whose recovery files are gone cannot be continued: it is closed as failed and a new
        run starts, whose finished calls come from the journal. ``fresh`` does so in any case. Nor is a
        run continued with another program that had failed before anything came of it, such as at a
        wrong key.

        Raises:
            ProgramChanged: the unfinished run had another program, source or sink.
            StateCorrupt: recovery files belong to another run, or to none that is recorded.
            ConfigurationError: the recovery folder is not ours alone.
        """
        self._check_unknown()
        newest = self.newest(spec.flow)
        if newest is not None and newest.resumable:
            if fresh:
                self._close(newest, "failed", "given up for a fresh run")
            elif newest.recovers and not recovery.has_progress(self._store.path, newest.run_id):
                self._close(newest, "failed", "it had committed nothing, or its recovery files are gone")
            elif spec.program_digest not in newest.programs and self._came_to_nothing(newest):
                self._close(newest, "failed", "nothing had come of it, and another program was run")
            else:
                _check_same(newest, spec, accept_program_change)
                if newest.recovers:
                    recovery.check(self._store.path, newest.run_id)
                return self._continue(newest, spec), True
        return self._start(spec), False

    def _came_to_nothing(self, run: Run) -> bool:
        """Whether it failed with no row out, no dead letter and no call paid: to go on is to begin anew."""
        done = [run.totals.get(name) for name in ("rows_out", "dead_letters")]
        return run.status == "failed" and done == [0, 0] and not read_spend(self._store, run.run_id).calls

    def recovery_folder(self, run: Run) -> Path:
        """The folder for the engine's recovery files, checked again just before it is opened.

        Raises:
            ConfigurationError: it is not ours alone.
            StateCorrupt: it is stamped with another run's id.
        """
        return recovery.check(self._store.path, run.run_id)

    def update(self, run: Run, totals: Mapping[str, int]) -> Run:
        """Store new totals of a running run."""
        return self._put(replace(run, totals=dict(totals), updated=self._stamp()))

    def changed(self, run: Run, changes: Mapping[str, Any], program_digest: str) -> Run:
        """Note that a running run goes on with other settings, and may be continued with either."""
        change = {"at": self._stamp(), **changes, "before": run.program_digest, "after": program_digest}
        made = replace(run, changes=(*run.changes, change)[-_CHANGES:], program_digest=program_digest)
        return self._put(replace(made, updated=self._stamp()))

    def finish(self, run: Run, totals: Mapping[str, int] | None = None) -> Run:
        """Close a run whose rows are all out; it is not continued."""
        return self._close(run, "finished", "", totals)

    def stop(self, run: Run, totals: Mapping[str, int] | None = None, reason: str = "") -> Run:
        """Close a run that was asked to stop, or may spend no more; it is continued by the next one."""
        return self._close(run, "stopped", reason, totals)

    def fail(self, run: Run, reason: str, totals: Mapping[str, int] | None = None) -> Run:
        """Close a run that ended with an error; it is continued by the next one."""
        return self._close(run, "failed", reason, totals)

    def get(self, run_id: str) -> Run | None:
        """The run of an id."""
        stored = self._store.get("runs", _key(run_id))
        return None if stored is None else self._read(stored)

    def list(self, flow: str | None = None) -> tuple[Run, ...]:
        """All runs, or those of one flow, oldest first."""
        runs = (self._read(stored) for _, stored in self._store.scan("runs", _PREFIX))
        return tuple(run for run in runs if flow is None or run.flow == flow)

    def newest(self, flow: str) -> Run | None:
        """The flow's last run."""
        runs = self.list(flow)
        return runs[-1] if runs else None

    def drop(self, run_id: str) -> None:
        """Forget a run: files, record, totals, private calls. Its dead letters stay until removed."""
        recovery.remove(self._store.path, run_id)
        batch = Batch()
        batch.delete("runs", _key(run_id))
        batch.delete("runs", spend_key(run_id))
        batch.delete_range("journal", run_prefix(run_id), after(run_prefix(run_id)))
        for prefix in (seen_prefix(run_id), again_prefix(run_id)):
            batch.delete_range("ids", prefix, after(prefix))
        self._store.write(batch)

    def prune(self, flow: str, keep: int) -> int:
        """Drop all but the last ``keep`` runs of a flow; returns how many were dropped."""
        old = self.list(flow)[: -max(1, keep)]
        for run in old:
            self.drop(run.run_id)
        return len(old)

    def _start(self, spec: RunSpec) -> Run:
        now = self._stamp()
        run = Run(
            run_id=self._new_id(),
            flow=spec.flow,
            program_digest=spec.program_digest,
            source=spec.source,
            sink=spec.sink,
            status="running",
            started=now,
            updated=now,
            recovers=spec.recovers,
            lm=spec.lm,
            server=spec.server,
        )
        # The record first: a folder without a record means that the database was replaced.
        self._put(run)
        if run.recovers:
            recovery.create(self._store.path, run.run_id)
        self.prune(run.flow, self._keep)
        return run

    def _continue(self, run: Run, spec: RunSpec) -> Run:
        return self._put(
            replace(
                run,
                program_digest=spec.program_digest,
                source=spec.source,
                sink=spec.sink,
                lm=spec.lm,
                server=spec.server,
                status="running",
                reason="",
                incarnation=run.incarnation + 1,
                updated=self._stamp(),
            )
        )

    def _close(self, run: Run, status: Status, reason: str, totals: Mapping[str, int] | None = None) -> Run:
        kept = dict(totals) if totals is not None else run.totals
        return self._put(replace(run, status=status, reason=reason, totals=kept, updated=self._stamp()))

    def _put(self, run: Run) -> Run:
        self._store.put("runs", _key(run.run_id), orjson.dumps(run.to_json()))
        self._store.sync()
        return run

    def _read(self, stored: bytes) -> Run:
        try:
            return Run.from_bytes(stored)
        except ValueError as error:
            raise StateCorrupt(
                f"a run record in {self._store.path} is damaged ({error}): {RESTORE}"
            ) from error

    def _check_unknown(self) -> None:
        unknown = recovery.unknown_runs(self._store.path, {run.run_id for run in self.list()})
        if unknown:
            raise StateCorrupt(
                f"{self._store.path}/runs/{unknown[0]} belongs to a run which the database does not know, so "
                f"one of them was replaced: {RESTORE}"
            )

    def _new_id(self) -> str:
        # The clock may have gone back since the last run, and the newest id must sort last.
        last = max((_time_of(run.run_id) for run in self.list()), default=0)
        return f"{max(int(self._clock.time() * 1000), last + 1):011x}-{self._rng.getrandbits(32):08x}"

    def _stamp(self) -> str:
        moment = datetime.fromtimestamp(self._clock.time(), timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seen_prefix(run_id: str) -> bytes:
    """The prefix, in the ``ids`` family, under which a run notes the row ids it has read."""
    return b"seen\0" + run_id.encode() + b"\0"


def again_prefix(run_id: str) -> bytes:
    """The prefix, in the ``ids`` family, under which a run notes the letters whose records it has read."""
    return b"seen\0" + run_id.encode() + b"/again\0"


def _check_same(run: Run, spec: RunSpec, accept_program_change: bool) -> None:
    for what, old, new in (("source", run.source, spec.source), ("sink", run.sink, spec.sink)):
        if old != new:
            raise ProgramChanged(
                f"run {run.run_id} of flow {run.flow} is unfinished, and its {what} is another: "
                f"{_differences(old, new)}; run it as it was to finish it, or start anew with --fresh"
            )
    if spec.program_digest not in run.programs and not accept_program_change:
        raise ProgramChanged(
            f"run {run.run_id} of flow {run.flow} is unfinished and was started with program "
            f"{_short(run.program_digest)}, and this is {_short(spec.program_digest)}: steps, prompts or the "
            "model were changed; continue it with --accept-program-change, or start anew with --fresh"
        )


def _are_changes(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(change, dict) for change in value)


def _short(digest: str) -> str:
    return digest[:12] or "unknown"


def _differences(old: str, new: str) -> str:
    """What differs between two descriptions of sources or sinks, for a reader."""
    try:
        pairs = list(zip(orjson.loads(old), orjson.loads(new), strict=True))
        found = [
            f"{name} {_said(was.get(name))}, not {_said(now.get(name))}"
            for was, now in pairs
            for name in dict.fromkeys([*was, *now])
            if was.get(name) != now.get(name)
        ]
    except (ValueError, TypeError, AttributeError):  # they were described in another way then
        found = []
    return "; ".join(found) or f"{old[:_SHOWN]}, not {new[:_SHOWN]}"


def _said(value: Any) -> str:
    return "none" if value is None else str(value)[:_SHOWN]


def _time_of(run_id: str) -> int:
    try:
        return int(run_id.split("-")[0], 16)
    except ValueError:
        raise StateCorrupt(f"{run_id[:80]!r} is no run id: {RESTORE}") from None


def _key(run_id: str) -> bytes:
    return _PREFIX + run_id.encode("utf-8", "replace")
