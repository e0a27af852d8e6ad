"""Says where a flow is stuck: the stacks of all threads, once, when nothing has moved for long.

The engine's loop and the engine's workers both come round many times a second, whatever the model
does. If one of them does not, somebody's code blocks it.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dspy_stream.runtime import loop
from dspy_stream.stream.gate import Gate

__all__ = ["watched"]


@contextmanager
def watched(gate: Gate, seconds: float) -> Iterator[None]:
    """Watch a running flow; blocks only for as long as it takes to stop watching."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(gate, seconds, done), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(gate: Gate, seconds: float, done: threading.Event) -> None:
    engine = loop()
    beat = time.monotonic()

    def came_round() -> None:
        nonlocal beat
        beat = time.monotonic()

    polls, moved = gate.polls, time.monotonic()
    while not done.wait(min(1.0, seconds / 4)):
        engine.call_soon_threadsafe(came_round)
        now = time.monotonic()
        if gate.polls != polls:
            polls, moved = gate.polls, now
        for what, since in (("the engine's loop", beat), ("a worker of the engine", moved)):
            if now - since > seconds:
                _report(what, now - since)
                return


def _report(what: str, seconds: float) -> None:
    message = (
        f"dspy-stream: {what} has not moved for {seconds:.0f} s; a row's code is blocking it, and all other "
        "rows and their time limits with it: use isolation='thread' or 'process' for code that blocks. "
        "All stacks:\n"
    )
    sys.stderr.write(message)
    sys.stderr.flush()
    try:
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
    except (AttributeError, ValueError, OSError):  # standard error was replaced by an object without a file
        sys.stderr.write("(standard error is no file; the stacks cannot be shown)\n")
