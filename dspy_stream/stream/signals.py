"""SIGTERM and SIGINT while a flow runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from dspy_stream.errors import EXIT_TERMINATED

if TYPE_CHECKING:
    from dspy_stream.stream.job import Job

__all__ = ["stopped_by_signals"]

# Seconds after the grace period for cancelling calls and committing the epoch.
_CLOSING: Final = 5.0


@contextmanager
def stopped_by_signals(job: Job, grace: float) -> Iterator[None]:
    """Stop cleanly on the first SIGTERM or SIGINT, at once on the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    last: list[threading.Timer] = []

    def stop(number: int, _frame: Any) -> None:
        if job.gate.abort:
            job.gate.stop = job.gate.stop or number == signal.SIGTERM  # SIGINT may be our own, see wall.py
            raise KeyboardInterrupt  # all is committed, and a worker of the engine did not hear of the end
        if job.gate.stop:
            os._exit(128 + number)  # recovery covers what is open
        job.stop(grace)
        # Code of a row that never returns cannot be cancelled, and would hold the stop for ever.
        last.append(threading.Timer(grace + _CLOSING, os._exit, (EXIT_TERMINATED,)))
        last[0].daemon = True
        last[0].start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in last:
            timer.cancel()
