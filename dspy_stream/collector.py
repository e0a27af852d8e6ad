"""Fewer passes of the garbage collector while much is under way.

Rows, requests and answers are freed by their reference counts; what the collector finds are the few
cycles of what failed. With its usual thresholds it looks at all that waits for models again and again:
for a tenth of all that a row costs, and with a thousand streams for a tenth of a second at a time.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["seldom_collected"]

_THRESHOLDS: Final = (50_000, 20, 50)
_lock: Final = threading.Lock()
_users = 0
_before: tuple[int, int, int] = (0, 0, 0)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Collect less often, until the last of those inside has left; from any thread.

    Nothing is changed where the collector is switched off or already set to collect less often.

    >>> import gc
    >>> before = gc.get_threshold()
    >>> with seldom_collected():
    ...     gc.get_threshold()[0] >= 50_000
    True
    >>> gc.get_threshold() == before
    True
    """
    changed = _begin()
    try:
        yield
    finally:
        if changed:
            _end()


def _begin() -> bool:
    global _users, _before
    with _lock:
        if _users == 0:
            _before = gc.get_threshold()
            if not gc.isenabled() or not 0 < _before[0] < _THRESHOLDS[0]:
                return False
            gc.set_threshold(*_THRESHOLDS)
        _users += 1
        return True


def _end() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            gc.set_threshold(*_before)
