"""Flows in daemon threads when the process ends: their engine ends before the interpreter does.

A thread of the engine that met an interpreter which ends would take the process down with SIGABRT.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from dspy_stream.errors import FlowError
from dspy_stream.threads import goes_on, process_ends

if TYPE_CHECKING:
    from dspy_stream.stream.job import Job

__all__ = ["ended_at_exit"]

_PATIENCE: Final = 5.0  # seconds for what is asked to be answered, and for a row's code to come back
_LOOK: Final = 0.02

_Run = tuple["list[Job]", threading.Event]
_runs: Final[list[_Run]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runs.clear)


@contextmanager
def ended_at_exit() -> Iterator[list[Job]]:
    """While a flow runs in here, the end of the process fails its job, put into the list, and waits a while.

    What is committed is kept, and a later run goes on from there. The thread goes no further.
    """
    jobs: list[Job] = []
    run = (jobs, threading.Event())
    _runs.append(run)
    try:
        goes_on()  # it is listed by now, or else the process ended before
        yield jobs
    finally:
        _runs.remove(run)
        run[1].set()
        goes_on()


@atexit.register
def _end() -> None:
    process_ends()
    until = time.monotonic() + _PATIENCE
    for jobs, ended in _runs.copy():
        while not ended.wait(_LOOK) and time.monotonic() < until:
            for job in jobs:
                error = FlowError(
                    "the process ended while the flow ran in a daemon thread: run it again to go on"
                )
                job.note("running it", error)
                job.gate.broken = True
