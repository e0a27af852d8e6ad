"""Running a flow: state first, then bytewax, with signals, resuming and a report at the end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from dspy_stream import runtime
from dspy_stream.adapters import Adapter
from dspy_stream.collector import seldom_collected
from dspy_stream.configuration import context
from dspy_stream.configuration import settings as global_settings
from dspy_stream.errors import (
    EXIT_BUDGET,
    EXIT_DATA,
    EXIT_TERMINATED,
    BudgetExceeded,
    DSPyStreamError,
    FlowError,
    LMError,
    StateCorrupt,
    StateError,
)
from dspy_stream.lm.base import Model, resolve
from dspy_stream.lm.budget import Budget
from dspy_stream.lm.cost import PriceSource, load_prices
from dspy_stream.modules.hosts import processes_allowed
from dspy_stream.modules.scope import default_adapter
from dspy_stream.program.fields import nearest
from dspy_stream.state.stamp import RESTORE
from dspy_stream.stream.batches import tell_of_others
from dspy_stream.stream.checks import check_input, check_models
from dspy_stream.stream.cluster import run_cluster
from dspy_stream.stream.compile import Settings, build
from dspy_stream.stream.flow import Spec, default_state
from dspy_stream.stream.following import following
from dspy_stream.stream.job import Job, State
from dspy_stream.stream.leaving import ended_at_exit
from dspy_stream.stream.report import Report
from dspy_stream.stream.signals import stopped_by_signals
from dspy_stream.stream.wall import ClockSetBack, set_back, wall_watched
from dspy_stream.stream.watchdog import watched

__all__ = ["RunOptions", "outside_job", "run_flow"]

_UNSET: Final = object()
_log = logging.getLogger("dspy_stream")


@dataclass(frozen=True)
class RunOptions:
    """How to run a flow.

    Args:
        lm: the model of every predictor that names none.
        adapter: the adapter likewise.
        state: the state folder; None keeps nothing; by default ``.dspy_stream/<flow name>``.
        capacity: rows in flight of every step, instead of the flow's own numbers.
        limit: read at most so many rows.
        fresh: start over instead of resuming; an output file that is not known is overwritten.
        accept_program_change: resume with a changed program.
        workers: bytewax worker threads.
        epoch: seconds between commits.
        grace: seconds that calls in flight may take after a stop was asked for.
        outage: seconds without one answer after which the flow ends.
        stuck: seconds after which a flow whose code blocks it shows all stacks, once.
        journal_ttl: seconds after which a finished call is forgotten; None never.
        journal_max_bytes: above it the oldest calls are forgotten when the run starts.
        max_cost: US dollars that the run may spend on calls, over all its restarts; see
            :class:`~dspy_stream.lm.budget.Budget` for what exactly this and the next two guarantee.
        max_tokens: tokens likewise, prompts and answers together.
        max_calls: calls likewise.
        prices: what models cost, before the package's own list: a mapping from names to ``Price``, a
            function of a name, or a JSON file.
        strict: the first dead letter is an error.
        quiet: no progress bar.
        watch: called with the job once it runs, for a progress display; returns its closer.
        ask: called with a question that has a yes or no answer; None answers no.
    """

    lm: Any = None
    adapter: Any = None
    state: Any = _UNSET
    capacity: int | None = None
    limit: int | None = None
    fresh: bool = False
    accept_program_change: bool = False
    workers: int = 1
    epoch: float = 1.0
    grace: float = 10.0
    outage: float = 300.0
    stuck: float = 60.0
    journal_ttl: float | None = None
    journal_max_bytes: int = 10_000_000_000
    max_cost: float | None = None
    max_tokens: int | None = None
    max_calls: int | None = None
    prices: PriceSource | str | Path | None = None
    strict: bool = False
    quiet: bool = False
    watch: Callable[[Job], Callable[[], None]] | None = None
    ask: Callable[[str], bool] | None = None

    @staticmethod
    def of(options: Mapping[str, Any]) -> RunOptions:
        """Options by name.

        Raises:
            FlowError: there is no such option, or a number is out of range.
        """
        names = [item.name for item in fields(RunOptions)]
        for name in options:
            if name not in names:
                raise FlowError(f"run() has no option {name!r}{nearest(name, names)}")
        made = RunOptions(**options)
        for name, least in (("capacity", 1), ("limit", 0), ("workers", 1)):
            value = getattr(made, name)
            if value is not None and value < least:
                raise FlowError(f"{name}={value}: must be at least {least}")
        for name in ("epoch", "grace", "outage", "stuck"):
            if not getattr(made, name) >= 0:  # NaN is neither
                raise FlowError(f"{name}={getattr(made, name)}: must be seconds, zero or more")
        return made


def run_flow(spec: Spec, options: RunOptions) -> Report:
    """Run a flow to its end or to a stop; see :meth:`dspy_stream.stream.flow.Flow.run`."""
    if runtime.on_loop():
        raise FlowError("a flow cannot be run inside a module that is itself running in a flow")
    if not processes_allowed():
        raise FlowError(
            "the file runs a flow while a worker process imports it for isolation='process': put what starts "
            'the flow under `if __name__ == "__main__":`'
        )
    with priced(options.prices), ended_at_exit() as jobs:
        report, spent = _run_on(spec, options, jobs)
    if spent is None:
        return report
    raise _out_of_budget(report, spent)


@contextmanager
def priced(prices: PriceSource | str | Path | None) -> Iterator[None]:
    """The prices of a run in force; from a file where a path is given.

    Raises:
        ConfigurationError: the file holds no prices.
    """
    if prices is None:
        yield
        return
    with context(prices=load_prices(prices) if isinstance(prices, (str, Path)) else prices):
        yield


def _out_of_budget(report: Report, spent: BudgetExceeded) -> BudgetExceeded:
    option = f"{spent.limit} (--{spent.limit.replace('_', '-')})"
    how = (
        f"run again with a higher {option} to go on, and nothing that was paid is paid again"
        if report.run_id
        else f"without a state folder a run with a higher {option} begins anew"
    )
    error = BudgetExceeded(f"{spent}. {report.rows_out:,} rows are out; {how}")
    error.limit, error.report = spent.limit, report
    return error


def _run_on(spec: Spec, options: RunOptions, jobs: list[Job]) -> tuple[Report, BudgetExceeded | None]:
    """Run, and go on from the last commit, as after a crash, whenever the clock was set back."""
    while True:
        try:
            return _run(spec, options, jobs)
        except ClockSetBack as error:
            if options.state is None:
                raise
            _log.warning("%s", error)
        options = replace(options, fresh=False)


def _run(spec: Spec, options: RunOptions, jobs: list[Job]) -> tuple[Report, BudgetExceeded | None]:
    """The report, and why the run ended before its rows did where it could pay for no more."""
    from dspy_stream.stream.session import Session

    started = time.monotonic()
    lm = model_of(spec, options.lm)
    if options.limit is not None:
        from dspy_stream.stream.sources.head import Head

        spec = spec.with_source(Head(spec.source(), options.limit))
    if not spec.retries:  # a letter that lacks a field is a letter again
        check_input(spec)
    digest = spec.digest(lm.identity() if lm is not None else None, options.adapter)
    with Session.begin(spec, options, digest) as session:
        budget = Budget(max_cost=options.max_cost, max_tokens=options.max_tokens, max_calls=options.max_calls)
        job = Job(spec.name, digest, opener=session.opener, budget=budget)
        jobs.append(job)
        compiled = Settings(
            lm=lm,
            adapter=options.adapter or spec.defaults.get("adapter"),
            capacity=options.capacity,
            workers=options.workers,
            outage=options.outage,
            anew=spec.anew,
            open_box=session.open_box,
        )

        def in_force() -> tuple[Model | None, Adapter]:
            return model_of(spec, options.lm), compiled.adapter or default_adapter(None)

        def note(changes: Mapping[str, Any], lm: Model | None, adapter: Adapter) -> None:
            job.digest = spec.digest(lm.identity() if lm is not None else None, adapter)
            session.changed(changes, job.digest)

        job.open()
        try:
            check_models(spec.ends, compiled, job)
            tell_of_others(job.state, job.lane[0] if job.lane is not None else None)
            if session.checks is not None:
                job.checks.append(session.checks)
            job.strict = options.strict
            job.limit = spec.ends[0][1].limit
            dataflow = build(spec.name, session.ends, job, compiled)
            with following(job, compiled, session.ends, look=in_force, note=note):
                _drive(dataflow, job, options, session)
            if job.gate.set_back and not job.gate.stop:
                raise set_back(job.gate.set_back, kept=options.state is not None)
        except BaseException as error:  # a signal, too, is an end that the run's record tells of
            if isinstance(error, DSPyStreamError) and not isinstance(error, LMError):
                job.settle(options.grace)  # the fault is not the model's: what is asked will be answered
            session.failed(job)
            raise
        finally:
            job.wait_quiet(1.0)
            runtime.run(job.hosts.aclose())
            runtime.run(job.clients.aclose())
        return session.ended(job, time.monotonic() - started), job.gate.spent


def model_of(spec: Spec, lm: Any) -> Model | None:
    """The model of predictors that name none: that of the run, else the settings', else the flow's."""
    for candidate in (lm, global_settings.lm, spec.defaults.get("lm")):
        if candidate is not None:
            return resolve(candidate)
    return None


# -------------------------------------------------------------------------------------- the engine


def _drive(dataflow: Any, job: Job, options: RunOptions, session: Any) -> None:
    from bytewax.testing import run_main

    # The engine's own traces say nothing to a reader; the error behind them is raised below.
    os.environ["RUST_BACKTRACE"] = "0"
    arguments: dict[str, Any] = {
        "epoch_interval": timedelta(seconds=options.epoch),
        "recovery_config": session.recovery_config(),
    }
    close = options.watch(job) if options.watch is not None else None
    try:
        with (
            stopped_by_signals(job, options.grace),
            watched(job.gate, options.stuck),
            wall_watched(job, options.grace),
            seldom_collected(),
        ):
            if options.workers == 1:
                run_main(dataflow, **arguments)  # type: ignore[no-untyped-call]
            else:
                run_cluster(dataflow, options.workers, job.gate, **arguments)
    except BaseException as error:  # a panic of the engine is a BaseException
        raise _translated(job, error) from error
    finally:
        if close is not None:
            close()
    if job.gate.failed or job.first_error is not None:
        raise _translated(job, FlowError("the flow failed"))


def _translated(job: Job, error: BaseException) -> BaseException:
    """The error behind an engine's failure: ours where there is one."""
    for pool in job.pools.values():
        if pool.fatal is not None:
            return pool.fatal
    if job.fatal is not None:
        return job.fatal
    if job.first_error is not None:
        where, first = job.first_error
        if isinstance(first, (DSPyStreamError, KeyboardInterrupt)):
            return first
        return FlowError(f"{where}: {type(first).__name__}: {first}")
    root = error
    while not isinstance(root, (DSPyStreamError, KeyboardInterrupt, MemoryError)):
        if root.__cause__ is None:
            return _engine_error(root, error)
        root = root.__cause__
    return root


def _engine_error(root: BaseException, error: BaseException) -> DSPyStreamError:
    """What a failure inside the engine means; its database of recovery files has only words for it."""
    text = str(root)
    if "DiskFull" in text:
        return StateError("the recovery files cannot be written: the disk is full; free space and run again")
    if any(word in text for word in ("SystemIoFailure", "CannotOpen", "ReadOnly")):
        return StateError(f"the recovery files cannot be used; check the disk and run again ({text[:200]})")
    if any(
        word in f"{type(root).__name__}: {text}"
        for word in ("DatabaseCorrupt", "NotADatabase", "PartitionsError")
    ):
        return StateCorrupt(f"the recovery files are damaged ({text[:200]}): {RESTORE}")
    return FlowError(f"the engine failed: {type(root).__name__}: {root} ({error})")


# ------------------------------------------------------------------------- under bytewax's runner


def outside_job(spec: Spec, lm: Model | None) -> tuple[Job, Any]:
    """The job of a flow that bytewax's own runner may start: opens the default folder when it does."""
    from dspy_stream.stream.session import open_outside

    holder: dict[str, Any] = {}

    def opener() -> State:
        state, boxes = open_outside(spec, default_state(spec.name))
        holder["boxes"] = boxes
        return state

    job = Job(spec.name, spec.digest(lm.identity() if lm is not None else None), opener=opener)
    job.calm = False
    job.limit = spec.ends[0][1].limit
    return job, lambda step, position: holder["boxes"](step, position)


def exit_code(report: Report) -> int:
    """0 for a finished run, 65 where every row failed, 77 out of budget, 143 for one stopped cleanly."""
    if report.status != "finished":
        return EXIT_BUDGET if report.reason == "budget" else EXIT_TERMINATED
    return EXIT_DATA if report.dead_letters and not report.rows_out + report.dropped else 0
