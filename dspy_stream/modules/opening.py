"""How long a part may take to be opened and closed, and where its code is when it does not come back."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from dspy_stream.errors import EXIT_UNAVAILABLE, ConfigurationError, DSPyStreamError, Scope
from dspy_stream.modules.supervisor import is_seconds

__all__ = [
    *("CLOSING", "OPENING", "OpenTimeout", "place_of"),
    *("seconds_to_close", "seconds_to_open", "told_when_late", "when_late"),
]

_log = logging.getLogger("dspy_stream")

OPENING: Final = 120.0
"""Seconds until a part is opened, or a worker process ready, where ``open_timeout`` does not say how many."""

CLOSING: Final = 10.0
"""Seconds that ``close`` and ``healthy`` may take, where ``close_timeout`` does not say how many."""

_OURS: Final = str(Path(__file__).parents[1]) + os.sep
_DEEPEST: Final = 3  # calls that are named, the innermost last


class OpenTimeout(DSPyStreamError):
    """The ``open`` of a part, or the start of its worker process, did not come to an end; stops the flow.

    The rows keep their place: run again to go on.
    """

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_UNAVAILABLE
    code = "open_timeout"

    @classmethod
    def of(cls, what: str, seconds: float, where: str) -> OpenTimeout:
        """The error for what took too long, with where its code is."""
        place = f"; it is at {where}" if where else ""
        return cls(
            f"{what} did not come to an end within {seconds:g} s{place}. Give what it waits for a limit of "
            "its own, or the module more time, open_timeout = ... seconds, and run again to go on"
        )


def seconds_to_open(module: Any) -> float:
    """What a module says in ``open_timeout``; 120 s where it says nothing.

    Raises:
        ConfigurationError: it says something that is no number of seconds.

    >>> class Search:
    ...     open_timeout = 600
    >>> seconds_to_open(Search()), seconds_to_open(None)
    (600.0, 120.0)
    """
    return _seconds(module, "open_timeout", OPENING)


def seconds_to_close(module: Any) -> float:
    """What a module says in ``close_timeout``; 10 s where it says nothing.

    Raises:
        ConfigurationError: it says something that is no number of seconds.
    """
    return _seconds(module, "close_timeout", CLOSING)


def _seconds(module: Any, name: str, usual: float) -> float:
    found = getattr(module, name, usual)
    if not is_seconds(found):
        raise ConfigurationError(
            f"{name}={found!r} of {type(module).__name__}: must be more than 0 seconds, as a number"
        )
    return min(float(found), threading.TIMEOUT_MAX)


def place_of(thread: int | None) -> str:
    """Where the code of a thread is: its innermost calls outside this package; empty where it has ended."""
    frame = sys._current_frames().get(thread) if thread is not None else None
    if frame is None:
        return ""
    calls = traceback.extract_stack(frame)
    ours = [number for number, call in enumerate(calls) if call.filename.startswith(_OURS)]
    theirs = calls[ours[-1] + 1 :] if ours else calls
    named = [
        f"{os.path.basename(call.filename)}, line {call.lineno}, in {call.name}" for call in theirs or calls
    ]
    return " > ".join(named[-_DEEPEST:])


@contextmanager
def when_late(seconds: float, tell: Callable[[str], object]) -> Iterator[None]:
    """Around code that cannot be interrupted: ``tell`` hears where it is after so many seconds, if it lasts.

    It is called in a thread of its own, while the code goes on.
    """
    thread = threading.get_ident()
    timer = threading.Timer(seconds, lambda: tell(place_of(thread)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def told_when_late(what: str, seconds: float) -> AbstractContextManager[None]:
    """Around code that cannot be interrupted: the log says where it is after so many seconds."""

    def tell(where: str) -> None:
        _log.warning(
            "%s has not come to an end for %g s, and nothing else can run meanwhile; it is at %s. Code of an "
            "inline part cannot be interrupted: a second Ctrl-C or SIGTERM ends the process; with "
            "isolation='thread' or 'process' it would not be waited for any longer",
            *(what, seconds, where),
        )

    return when_late(seconds, tell)
