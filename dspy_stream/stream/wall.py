"""A clock that is set back while a flow runs: noticed, and the engine ended so that it can begin anew.

bytewax keeps all its times as moments of the wall clock: when a source is asked next, when an
operator is woken, when an epoch ends. Set back by a day, the clock reaches none of them for a day: no
row moves, nothing is committed, and no callback of ours is called that could end the flow. A step
forward only makes everything due at once.
"""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

from dspy_stream.clock import Clock
from dspy_stream.errors import EXIT_IO, DSPyStreamError, Scope

if TYPE_CHECKING:
    from dspy_stream.stream.job import Job

__all__ = ["LEAST", "ClockSetBack", "WallClock", "set_back", "wall_watched"]

LEAST: Final = 10.0
"""Seconds. A smaller step back is waited for: beginning anew would take no less of them."""

_LOOK: Final = 0.25
# Seconds that the engine has to end by itself before it is interrupted, and between interrupts.
_PATIENCE: Final = 0.5
_log = logging.getLogger("dspy_stream")


class ClockSetBack(DSPyStreamError):
    """The machine's clock was set back so far that the engine, whose timers follow it, stands still."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_IO
    code = "clock_set_back"


class WallClock:
    """How far the wall clock was set back between two looks, told by a clock that nobody sets.

    >>> wall = WallClock(time=1000.0, monotonic=5.0)
    >>> wall.back(time=1001.0, monotonic=6.0), wall.back(time=902.0, monotonic=7.0)
    (0.0, 100.0)
    >>> wall.back(time=903.0, monotonic=8.0)
    0.0
    """

    __slots__ = ("_ahead",)

    def __init__(self, *, time: float, monotonic: float) -> None:
        self._ahead = time - monotonic

    def back(self, *, time: float, monotonic: float) -> float:
        """Seconds by which it was set back since the last look; 0.0 where it was not, or was set forward."""
        before, self._ahead = self._ahead, time - monotonic
        return max(0.0, before - self._ahead)


@contextmanager
def wall_watched(job: Job, grace: float) -> Iterator[None]:
    """Watch the clock while the engine runs.

    Set back by more than ``LEAST`` seconds, ``job.gate.set_back`` says so: no row is begun any more,
    the calls in flight have ``grace`` seconds to be answered and journaled, and then the engine is
    interrupted, which it takes from the main thread only.
    """
    ended = threading.Event()
    mine = threading.current_thread() is threading.main_thread()
    watch = threading.Thread(target=_watch, args=(job, grace, ended, mine), name="wall clock", daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:  # run_main wraps the interrupt, cluster_main does not
        if not (job.gate.set_back and job.gate.abort and _interrupted(error)):
            raise
    finally:
        _end(job, watch, ended)


def _end(job: Job, watch: threading.Thread, ended: threading.Event) -> None:
    """End the watch; an interrupt of its own that was on its way is of no more use."""
    while watch.is_alive() or not ended.is_set():
        try:
            ended.set()
            watch.join()
        except KeyboardInterrupt:  # noqa: PERF203 - each turn is one interrupt
            if not (job.gate.set_back and job.gate.abort):
                raise


def _watch(job: Job, grace: float, ended: threading.Event, interrupts: bool) -> None:
    clock, gate = job.clock, job.gate
    time, monotonic = _both(clock)
    wall = WallClock(time=time, monotonic=monotonic)
    while not ended.wait(_LOOK):
        time, monotonic = _both(clock)
        seconds = wall.back(time=time, monotonic=monotonic)
        if seconds < LEAST:
            continue
        if not interrupts:
            _log.error(
                "the clock was set back by %.0f s, and the engine stands still until it catches up: end this "
                "process and run again (a flow that runs in the main thread begins anew by itself)",
                seconds,
            )
            continue
        gate.set_back = seconds
        job.settle(grace, ended)
        gate.abort = True
        while not ended.wait(_PATIENCE):
            _thread.interrupt_main()
        return


def _interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def _both(clock: Clock) -> tuple[float, float]:
    """Both clocks at one moment: a process that is held up between two looks would see a step."""
    while True:
        before = clock.monotonic()
        time = clock.time()
        if clock.monotonic() - before < _LOOK:
            return time, before


def set_back(seconds: float, *, kept: bool) -> ClockSetBack:
    """The error of a flow that ended because of it; what is ``kept`` goes on from its last commit."""
    how = (
        "it goes on from its last commit" if kept else "without a state folder it cannot go on: run it again"
    )
    return ClockSetBack(
        f"the machine's clock was set back by {seconds:,.0f} s, and the engine's timers with it; {how}"
    )
