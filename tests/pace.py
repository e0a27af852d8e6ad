"""How much work something may be, by the time of its thread alone: what runs beside it is not counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["linear"]


@contextmanager
def linear(seconds: float = 10.0) -> Iterator[None]:
    """Fail where the block's work grows faster than its input.

    A text of a megabyte is read in less than a second; the square of its length would take hours.
    """
    began = time.thread_time()
    yield
    assert time.thread_time() - began < seconds
