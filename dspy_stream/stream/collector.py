"""Fewer passes of the garbage collector while a flow runs.

Rows, requests and answers are freed by their reference counts; what the collector finds in a flow
are the few cycles of failed rows. With its usual thresholds it looks at every module and class of
the process again and again, for a tenth of all that a row costs.
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
_flows = 0
_before: tuple[int, int, int] = (0, 0, 0)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Set what is there aside and collect less often, until the last of the flows inside has ended.

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
    global _flows, _before
    with _lock:
        if _flows == 0:
            _before = gc.get_threshold()
            if not gc.isenabled() or not 0 < _before[0] < _THRESHOLDS[0]:
                return False
            gc.freeze()
            gc.set_threshold(*_THRESHOLDS)
        _flows += 1
        return True


def _end() -> None:
    global _flows
    with _lock:
        _flows -= 1
        if _flows == 0:
            gc.set_threshold(*_before)
            gc.unfreeze()
