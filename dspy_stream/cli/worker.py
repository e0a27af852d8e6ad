"""A worker process of a part with ``isolation="process"``; started by its parent, never by hand."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from dspy_stream.cli.load import load_named
from dspy_stream.modules.hosts import forbid_processes
from dspy_stream.modules.process.child import Child
from dspy_stream.threads import interrupts_as_its_parent

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main(parent: int) -> None:
    """Serve the parent, whose process id is given, over standard input and output.

    What the user's code prints goes to standard error.
    """
    interrupts_as_its_parent()
    source, sink = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    os.close(nowhere)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _outlive_stops()
    _die_with(parent)
    forbid_processes()
    Child(source, sink, _found, _adopted).serve()
    sys.stdout.flush()
    os._exit(0)  # threads of the user's code may never end


def _outlive_stops() -> None:
    """Leave a SIGTERM that goes to all processes of a service to the parent, which ends this one in time.

    What the user's code starts or forks ends by it as ever: the signal is not ignored, which would be
    inherited, and held back while a process is forked, in which Python would forget it.
    """
    stop = {signal.SIGTERM}

    def forked() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop)

    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, stop),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, stop),
        after_in_child=forked,
    )


def _die_with(parent: int) -> None:
    """Have the kernel end this process with its parent, also while code holds the interpreter for ever.

    The pipe's end tells it as well; this is Linux's own way and missing elsewhere.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def _found(start: Mapping[str, Any]) -> Any:
    sys.path[:] = start["path"]
    origin = start["origin"]
    return load_named(origin["module"], origin["name"], origin["file"])


def _adopted(made: Any) -> Any:
    from dspy_stream.interop.dspy_module import DSPyModule, is_dspy_module  # for programs of DSPy's only

    return DSPyModule(made) if is_dspy_module(made) else made


if __name__ == "__main__":
    main(int(sys.argv[1]))
