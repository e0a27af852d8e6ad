"""A run's hold on its state folder: opened before the engine starts, closed with a verdict.

The store's lock is the fence: two processes on one recovery folder would both run and double the
output, and the engine would not notice. So the store is opened first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from dspy_stream.errors import ConfigurationError, DSPyStreamError, OutputError, ProgramChanged
from dspy_stream.lm import LM
from dspy_stream.lm.address import parse
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.state.batch import Batch
from dspy_stream.state.blackbox import BlackBox
from dspy_stream.state.dead_letters import DeadLetterBox, FiledLetter
from dspy_stream.state.journal import Journal
from dspy_stream.state.leftovers import drop_uncommitted
from dspy_stream.state.recorder import run_prefix
from dspy_stream.state.recovery import has_progress
from dspy_stream.state.runs import Run, Runs, RunSpec
from dspy_stream.state.store import Store
from dspy_stream.state.successors import Successors
from dspy_stream.stream.flow import Spec, default_state, retry_name
from dspy_stream.stream.job import Job, State
from dspy_stream.stream.replaced import letters_replaced, replaced
from dspy_stream.stream.report import PartReport, Report, known_cost, usage_of
from dspy_stream.stream.sinks.base import Sink
from dspy_stream.stream.sources.ids import Check, RecentIds, check_ids, check_kept_ids
from dspy_stream.stream.spending import step_in_force
from dspy_stream.stream.terminal import Box

if TYPE_CHECKING:
    from dspy_stream.stream.run import RunOptions

__all__ = ["Session", "open_outside"]

_log = logging.getLogger("dspy_stream")


class Session:
    """What a run has open. Without a state folder it keeps nothing and cannot be resumed."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.ends = spec.ends
        self.opener: Callable[[], State] | None = None
        self.checks: Check | None = None
        self.resumed = False

    @staticmethod
    @contextmanager
    def begin(spec: Spec, options: RunOptions, digest: str) -> Iterator[Session]:
        """Open the state folder and the run; close them at the end.

        Raises:
            StateError: the folder cannot be used.
            ProgramChanged: an unfinished run belongs to another program.
            OutputError: an output cannot be written.
        """
        if options.state is None:
            _apart(spec)
            for sink in _sinks(spec):
                _ready(sink, options.fresh, _paths(spec))
            made = Session(spec)
            made.checks = _checks(spec, RecentIds().check)
            yield made
            return
        folder = Path(options.state) if isinstance(options.state, (str, Path)) else default_state(spec.name)
        with Store.open(folder) as store:
            yield _KeptSession(spec, options, digest, store)

    def open_box(self, step: str, position: int) -> Box | None:  # noqa: ARG002
        """Where a terminal's dead letters are kept; nowhere without a state folder."""
        return None

    def recovery_config(self) -> Any:
        """bytewax's recovery settings, or None."""
        return None

    def changed(self, changes: Mapping[str, Any], digest: str) -> None:
        """Note that the run goes on with other settings, and as another program."""

    def failed(self, job: Job) -> None:
        """Note that the run ended with an error."""

    def ended(self, job: Job, seconds: float) -> Report:
        """Finish the outputs of a run that is through; report."""
        if not job.gate.abort:
            for _, terminal in self.ends:
                for sink in (terminal.sink, terminal.letters):
                    if sink is None:
                        continue
                    if terminal.step not in job.counts:
                        # Not one row came, so the engine opened no output: an old one would remain.
                        sink.open(None).close()
                    sink.finish()
        return _report(self, job, seconds)


class _KeptSession(Session):
    def __init__(self, spec: Spec, options: RunOptions, digest: str, store: Store) -> None:
        super().__init__(spec)
        self._options = options
        self._store = store
        self._runs = Runs(store)
        self._changed = options.accept_program_change
        lm, server = _model_of(options.lm)
        wanted = RunSpec(
            spec.name, digest, _text(_source_of(spec)), _text(_sinks_of(spec)), lm=lm, server=server
        )
        last = self._runs.newest(spec.name)
        self.run, self.resumed = self._begin(wanted)
        try:
            self._check_outputs()
            anew = last if not self.resumed and not spec.retries else None
            if anew is not None and (why := replaced(anew, wanted, fresh=options.fresh)):
                paths = filter(None, (_place(terminal.sink.describe()) for _, terminal in self.ends))
                _log.warning("%s: %s", ", ".join(paths), why)
            files = [_place(end.letters.describe()) for _, end in self.ends if end.letters is not None]
            if anew is not None and (why := letters_replaced(anew, wanted, files)):
                _log.warning("%s", why)
        except BaseException:  # a signal, too, must leave no record of a run that did not begin
            if not self.resumed:
                self._runs.drop(self.run.run_id)
            raise
        self._journal = Journal(store, ttl=options.journal_ttl)
        if store.disk_bytes() > options.journal_max_bytes:
            self._journal.gc(max_bytes=options.journal_max_bytes)
        self.opener = self._open
        # A retry adds to the output, and leaves other letters open.
        self._successors = Successors(store, self.run.run_id, () if spec.retries else self._earlier())
        check = _checks(spec, self._check_ids)
        self.checks = lambda records: check(self._successors.note(records))
        self._blackbox: BlackBox | None = None
        self._begun = False

    def _earlier(self) -> Iterator[FiledLetter]:
        """Open letters of earlier runs, and of retries of theirs, whose output this run writes anew."""
        name, this = self.spec.name, self.run
        runs = (*self._runs.list(name), *self._runs.list(retry_name(name)))
        apart = {run.run_id for run in runs if run.run_id == this.run_id or not run.wrote_to(this.sink)}
        for filed in DeadLetterBox(self._store).scan():
            ours = filed.letter.flow in (name, retry_name(name)) and not filed.run_id.startswith("outside-")
            if ours and not filed.resolved and filed.run_id.split(".")[0] not in apart:
                yield filed

    def _check_outputs(self) -> None:
        # A file that an earlier run of this flow wrote may be replaced; one of unknown making not.
        earlier = [run for run in self._runs.list(self.spec.name) if self.resumed or run != self.run]
        known = {_text(sink) for run in earlier for sink in orjson.loads(run.sink)}
        _apart(self.spec)
        for sink in _sinks(self.spec):
            _ready(sink, self._options.fresh or _text(sink.describe()) in known, _paths(self.spec))

    def _begin(self, wanted: RunSpec) -> tuple[Run, bool]:
        options = self._options
        try:
            return self._runs.begin(
                wanted, accept_program_change=options.accept_program_change, fresh=options.fresh
            )
        except ProgramChanged as changed:
            if options.ask is None:
                raise
            if not options.ask(f"{changed}\nContinue with the changed program?"):
                raise ProgramChanged("the unfinished run was left as it is, and nothing was run") from changed
            self._changed = True
            return self._runs.begin(wanted, accept_program_change=True)

    def _open(self) -> State:
        self._blackbox = BlackBox(self._store)
        if not self.resumed or self._changed:
            self._blackbox.forget()  # deaths under another program, or of another run, say nothing
        run_id = self.run.run_id
        return State(self._store, run_id, self._journal.recorder(run_id, step_in_force), self._blackbox)

    def open_box(self, step: str, position: int) -> Box:
        box = DeadLetterBox(self._store)
        box.open(self.run.run_id if step == "write" else f"{self.run.run_id}.{step}", position)
        return box

    def recovery_config(self) -> Any:
        self._begun = True
        from bytewax.recovery import RecoveryConfig, init_db_dir

        folder = self._runs.recovery_folder(self.run)
        if not has_progress(self._store.path, self.run.run_id):
            # A process that dies in between must not leave files that look complete.
            made = folder / "new"
            made.mkdir(mode=0o700)
            init_db_dir(made, self._options.workers)  # type: ignore[no-untyped-call]
            for part in sorted(made.iterdir(), reverse=True):
                part.rename(folder / part.name)
            made.rmdir()
        else:
            drop_uncommitted(folder)
        return RecoveryConfig(str(folder))  # type: ignore[no-untyped-call]

    def _check_ids(self, records: list[Row | DeadLetter]) -> list[Row | DeadLetter]:
        prefix = b"seen\0" + self.run.run_id.encode() + b"\0"

        def seen(ids: Sequence[str]) -> dict[str, bytes]:
            found = self._store.get_many("ids", [prefix + _bytes(row_id) for row_id in ids])
            return {row_id: digest for row_id, digest in zip(ids, found, strict=True) if digest is not None}

        def remember(new: Mapping[str, bytes]) -> None:
            batch = Batch()
            for row_id, digest in new.items():
                batch.put("ids", prefix + _bytes(row_id), digest)
            self._store.write(batch)

        return check_ids(records, seen, remember)

    def changed(self, changes: Mapping[str, Any], digest: str) -> None:
        self.run = self._runs.changed(self.run, changes, digest)

    def failed(self, job: Job) -> None:
        error = job.first_error[1] if job.first_error else None
        job.spending.close()
        self._close_box(clean=True)
        if not self._begun and not self.resumed:  # such as a model without a key
            self._runs.drop(self.run.run_id)
            return
        self._runs.fail(self.run, repr(error)[:500] if error else "failed", self._totals(job))

    def ended(self, job: Job, seconds: float) -> Report:
        try:
            report = super().ended(job, seconds)
        except DSPyStreamError as error:  # an output that cannot be finished; the next run tries again
            job.note("finishing the output", error)
            self.failed(job)
            raise
        self._close_box(clean=True)
        if job.gate.abort:
            self._runs.stop(self.run, self._totals(job), str(job.gate.spent or ""))
        else:
            self._journal.forget([run_prefix(self.run.run_id)])
            self._store.delete_prefix("ids", b"seen\0" + self.run.run_id.encode() + b"\0")
            self._successors.close(self.run.updated)
            self._runs.finish(self.run, self._totals(job))
        return replace(
            report,
            run_id=self.run.run_id,
            state=os.path.relpath(self._store.path),
            hits=self.run.totals.get("hits", 0) + job.calls.hits,
            left_open=0 if self.spec.retries or job.gate.abort else sum(1 for _ in self._earlier()),
        )

    def _close_box(self, *, clean: bool) -> None:
        if self._blackbox is not None and clean:
            self._blackbox.close()
            self._blackbox = None

    def _totals(self, job: Job) -> dict[str, int]:
        counts = job.counts.values()
        return {
            "rows_in": sum(job.read.values()),
            "rows_out": sum(count.rows for count in counts),
            "dead_letters": sum(count.dead for count in counts),
            "dropped": sum(count.dropped for count in counts),
            "hits": self.run.totals.get("hits", 0) + job.calls.hits,
        }


def _checks(spec: Spec, check: Check) -> Check:
    return check if spec.names_rows() else partial(check_kept_ids, check=check)


def _bytes(row_id: str) -> bytes:
    return row_id.encode("utf-8", "surrogatepass")


def _report(session: Session, job: Job, seconds: float) -> Report:
    counts = list(job.counts.values())
    rows_in = sum(job.read.values())
    measures: dict[str, float] = {}
    for count in counts:
        measures.update(count.means())
    account = job.spending.close()
    spend = account.total
    return Report(
        flow=session.spec.name,
        status="stopped" if job.gate.abort else "finished",
        rows_in=rows_in,
        rows_out=sum(count.rows for count in counts),
        dead_letters=sum(count.dead for count in counts),
        dropped=sum(count.dropped for count in counts),
        calls=spend.calls,
        hits=job.calls.hits,
        prompt_tokens=spend.prompt_tokens,
        completion_tokens=spend.completion_tokens,
        cached_tokens=spend.cached_tokens,
        reasoning_tokens=spend.reasoning_tokens,
        cost=known_cost(spend),
        priced=spend.priced,
        lost=spend.lost,
        usage=usage_of(account),
        reason="budget" if job.gate.spent is not None else "",
        seconds=seconds,
        rows_per_second=job.rows_here() / seconds if seconds > 0 else 0.0,
        measures=measures,
        outputs=tuple(_place(terminal.sink.describe()) for _, terminal in session.ends),
        resumed=session.resumed,
        waiting=tuple(str(batch) for batch in job.waiting()),
        defaulted=sum(job.defaults.values()),
        ignored=job.ignored,
        held=dict(job.held.rates),
        restarts=job.hosts.restarts,
        worker_deaths=job.hosts.deaths,
        parts=tuple(
            PartReport.of(step, job.pools[step].meter, job.pools[step].capacity) for step in sorted(job.pools)
        ),
    )


def _ready(sink: Sink, overwrite: bool, read_from: Sequence[str]) -> None:
    """See that a sink can be written, before any model is called."""
    sink.overwrite = sink.overwrite or overwrite
    try:
        sink.check()
    except OutputError as error:
        raise OutputError(f"{error} (set by .write(...) or --output)") from error
    written = str(sink.describe().get("path", ""))
    for read in read_from:
        if written and os.path.exists(written) and os.path.exists(read) and os.path.samefile(written, read):
            raise ConfigurationError(f"{written} is the input; write to another file")
    if not sink.overwrite and sink.occupied():
        where = sink.describe().get("path")
        raise ConfigurationError(
            f"{where} exists and no run of this flow in its state folder wrote it; "
            "move it away, write to another file, or give --fresh (run(fresh=True)) to replace it"
            if where
            else "the list to write to holds something; give an empty one, or run(fresh=True) to empty it"
        )


def _apart(spec: Spec) -> None:
    """See that no two outputs are one file: each would cut off what the other has written."""
    seen: set[str] = set()
    for sink in _sinks(spec):
        path = str(sink.describe().get("path", ""))
        where = os.path.realpath(path) if "\0" not in path else path  # the sink says what is wrong with it
        if path and path != "-" and where in seen:
            raise ConfigurationError(
                f"{path} is named twice, for rows or dead letters; give each output a file of its own"
            )
        seen.add(where)


def _paths(spec: Spec) -> list[str]:
    """Files that the flow reads, as far as their names say."""
    path = spec.source().describe().get("path")
    if not path:
        return []
    roots = (path, os.path.dirname(path))
    return [path, *(os.path.join(root, part) for root in roots for part in spec.source().partitions())]


def _source_of(spec: Spec) -> Any:
    return [spec.source_node().operation.identity()]


def _sinks(spec: Spec) -> list[Sink]:
    both = [sink for _, end in spec.ends for sink in (end.sink, end.letters)]
    return [sink for sink in both if sink is not None]


def _model_of(lm: Any) -> tuple[str, str]:
    """Name and server of the model that a run was given; nothing of one whose name is not all of it."""
    if isinstance(lm, str):
        return lm, ""
    if not isinstance(lm, LM) or lm.identity() != {"model": lm.model, "options": {}}:
        return "", ""
    return lm.model, parse(lm.api_base).origin if lm.api_base is not None else ""


def _sinks_of(spec: Spec) -> Any:
    return [sink.describe() for sink in _sinks(spec)]


def _place(described: Mapping[str, Any]) -> str:
    return "-" if described.get("kind") == "stdout" else str(described.get("path", ""))


def _text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str).decode()


def open_outside(spec: Spec, folder: Path) -> tuple[State, Callable[[str, int], Box]]:
    """The state of a flow that bytewax's own runner started: one standing run."""
    store = Store.open(folder)
    run_id = f"outside-{spec.name}"
    key, sinks = b"outside/" + spec.name.encode(), _text(_sinks_of(spec)).encode()
    outputs = _sinks(spec)
    ours = {_text(sink) for run in Runs(store).list(spec.name) for sink in orjson.loads(run.sink)}
    for sink in outputs:  # what it wrote the last time, under either runner
        sink.overwrite = store.get("meta", key) == sinks or _text(sink.describe()) in ours
    if not any(sink.occupied() for sink in outputs):
        store.put("meta", key, sinks)
    state = State(store, run_id, Journal(store).recorder(run_id, step_in_force), BlackBox(store))

    def open_box(step: str, position: int) -> Box:
        box = DeadLetterBox(store)
        box.open(f"{run_id}.{step}", position)
        return box

    return state, open_box
