"""The command line with a fault in it: the process ends at the n-th pass of a named point.

    python tests/chaos/launch.py --die put:3 --hits hits.txt --epoch 0.2 -- run flow.py ...

The points wrap the package from outside, so that nothing of this is in the product. A point that
was reached is written to the file of hits before the process ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Place = tuple[str, str, str]  # where to import from, the attribute's path, before or after the call

POINTS: dict[str, Place] = {
    "lm-answered-not-journaled": ("dspy_stream.state.journal", "Journal.put", "before"),
    "journal-batch-not-written": ("dspy_stream.state.journal", "Journal._write", "before"),
    "journaled-not-seen": ("dspy_stream.state.journal", "Journal._write", "after"),
    "journaled-not-emitted": ("dspy_stream.stream.ask", "Pool._settle", "before"),
    "read-not-entered": ("dspy_stream.stream.job", "Job.admit", "after"),
    "emitted-not-written": ("dspy_stream.stream.terminal", "_TerminalPartition._write", "before"),
    "written-no-epoch": ("dspy_stream.stream.terminal", "_TerminalPartition._write", "after"),
    "rows-written-letters-not": ("dspy_stream.stream.terminal", "_TerminalPartition._bury", "before"),
    "letter-not-stored": ("dspy_stream.state.dead_letters", "DeadLetterBox.append", "before"),
    "letter-stored-file-not": ("dspy_stream.state.dead_letters", "DeadLetterBox.append", "after"),
    "snapshot-begun": ("dspy_stream.stream.terminal", "_TerminalPartition._snapshot", "before"),
    "flushed-epoch-not-committed": ("dspy_stream.stream.terminal", "_TerminalPartition._snapshot", "after"),
    "source-snapshot": ("dspy_stream.stream.gate", "_GatedPartition.snapshot", "after"),
    "held-rows-snapshot": ("dspy_stream.stream.ask", "AskLogic.snapshot", "after"),
    "run-recorded-no-folder": ("dspy_stream.state.recovery", "create", "before"),
    "recovery-folder-no-engine": ("dspy_stream.stream.session", "_KeptSession.recovery_config", "before"),
    "engine-set-up-no-row": ("dspy_stream.stream.session", "_KeptSession.recovery_config", "after"),
    "batch-intended": ("dspy_stream.state.batches", "Ledger.intend", "after"),
    "batch-step-not-noted": ("dspy_stream.lm.batch.follow", "Batch._note", "before"),
    "batch-step-noted": ("dspy_stream.lm.batch.follow", "Batch._note", "after"),
    "batch-looked-at": ("dspy_stream.lm.batch.api", "BatchApi.state", "before"),
    "batch-fetched-not-journaled": ("dspy_stream.lm.batch.layer", "BatchLayer.deliver", "before"),
    "batch-journaled-not-forgotten": ("dspy_stream.state.batches", "Ledger.close", "before"),
    "database-made-not-stamped": ("dspy_stream.state.store", "Store._begin_stamp", "before"),
    "sink-opened": ("dspy_stream.stream.sinks.file", "FileSink.open", "after"),
    "engine-done-not-finished": ("dspy_stream.stream.session", "_KeptSession.ended", "before"),
    "finished-not-recorded": ("dspy_stream.state.runs", "Runs.finish", "before"),
    "recorded-not-closed": ("dspy_stream.state.runs", "Runs.finish", "after"),
}


def _fault(original: Callable[..., Any], place: str, nth: int, hit: Callable[[], None]) -> Callable[..., Any]:
    passed = 0

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        if place == "before":
            passed += 1
            if passed == nth:
                hit()
        result = original(*args, **kwargs)
        if place == "after":
            passed += 1
            if passed == nth:
                hit()
        return result

    return faulty


def install(point: str, nth: int, hits: Path, *, kill: bool = False) -> None:
    """Put the fault in."""
    from importlib import import_module

    module, path, place = POINTS[point]
    holder: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)

    def hit() -> None:
        descriptor = os.open(hits, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{point}\n".encode())
        os.close(descriptor)
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(9)

    setattr(holder, name, _fault(getattr(holder, name), place, nth, hit))


def set_default(option: str, seconds: float) -> None:
    """Change a default of the run's options, such as the time between commits."""
    from dspy_stream.stream.run import RunOptions

    defaults = RunOptions.__init__.__defaults__
    assert defaults is not None
    names = RunOptions.__init__.__code__.co_varnames[1 : len(defaults) + 1]
    RunOptions.__init__.__defaults__ = tuple(
        seconds if name == option else value for name, value in zip(names, defaults, strict=True)
    )


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--die", help="POINT:N")
    parser.add_argument("--hits", type=Path)
    parser.add_argument("--kill", action="store_true", help="die by SIGKILL, instead of exiting with 9")
    parser.add_argument("--epoch", type=float, help="seconds between commits")
    parser.add_argument("--stuck", type=float, help="seconds until the watchdog speaks")
    parser.add_argument("--outage", type=float, help="seconds that a model may not answer")
    parser.add_argument("rest", nargs="*")
    given = parser.parse_args()
    for option in ("epoch", "stuck", "outage"):
        if getattr(given, option) is not None:
            set_default(option, getattr(given, option))
    if given.die is not None:
        point, _, nth = given.die.partition(":")
        install(point, int(nth or 1), given.hits, kill=given.kill)
    sys.argv = ["dspy-stream", *given.rest]
    from dspy_stream.cli import main as run

    run()


if __name__ == "__main__":
    main()
