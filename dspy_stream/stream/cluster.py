"""Several workers of the engine in one process, and an end for all of them when the flow stops."""

from __future__ import annotations

import _thread
import threading
from typing import TYPE_CHECKING, Any, Final

from dspy_stream.errors import FlowError

if TYPE_CHECKING:
    from dspy_stream.stream.gate import Gate

__all__ = ["run_cluster"]

# bytewax installs a process-wide panic hook for clusters: one run of several workers at a time.
_cluster: Final = threading.Lock()
_LOOK: Final = 0.1
# Seconds that the workers have to end by themselves once everything is committed.
_PATIENCE: Final = 1.0


def run_cluster(dataflow: Any, workers: int, gate: Gate, **arguments: Any) -> None:
    """Run the dataflow on so many worker threads; returns when it has ended or stopped.

    A stop is raised in the sources of every worker. A source is not asked while its worker waits for an
    epoch of the others, and those that have stopped bring no epoch to an end: so a worker that was just
    then an epoch ahead would wait for ever. What it waits for is committed by then, and the engine
    is interrupted, which it takes from the main thread only.

    Raises:
        FlowError: another cluster runs in this process.
    """
    from bytewax.testing import cluster_main

    if not _cluster.acquire(blocking=False):
        raise FlowError("another flow with several workers runs in this process; run them one by one")
    ended = threading.Event()
    if threading.current_thread() is threading.main_thread():
        threading.Thread(target=_interrupt, args=(gate, ended), name="cluster", daemon=True).start()
    try:
        cluster_main(dataflow, [], 0, worker_count_per_proc=workers, **arguments)  # type: ignore[no-untyped-call]
    except KeyboardInterrupt:
        if not gate.abort:
            raise
    finally:
        ended.set()
        _cluster.release()


def _interrupt(gate: Gate, ended: threading.Event) -> None:
    while not ended.wait(_LOOK):
        if gate.abort:
            while not ended.wait(_PATIENCE):
                _thread.interrupt_main()
            return
