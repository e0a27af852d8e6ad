"""What the rows of one step came to, counted where they pass; a fraction of a microsecond a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["Meter"]

_BUCKETS: Final = 184
_FINE: Final = 3  # bits of a number of microseconds beyond which only the first three count


class Meter:
    """Counts of one step in one process; written on the engine's loop only.

    ``taken`` rows were begun, ``settled`` ones came out, as rows or as what became of them. Times are
    those from a row's beginning to its end, with its retries, in buckets whose bounds are a quarter of
    a power of two apart, so that a quantile is right to about a tenth. ``mishaps`` says how often the
    part was started again, and how many of its worker processes ended.
    """

    __slots__ = (
        *("buckets", "dead_letters", "defaulted", "fallbacks", "mishaps", "most", "retries", "seconds"),
        *("settled", "skipped", "taken"),
    )

    def __init__(self) -> None:
        self.taken = 0
        self.settled = 0
        self.dead_letters = 0
        self.skipped = 0
        self.defaulted = 0
        self.fallbacks = 0
        self.retries = 0
        self.most = 0
        self.seconds = 0.0
        self.buckets = [0] * _BUCKETS
        self.mishaps: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def took(self, seconds: float) -> None:
        """A row came out after so many seconds."""
        self.settled += 1
        self.seconds += seconds
        micros = int(seconds * 1e6)
        bits = micros.bit_length()
        place = micros if bits < _FINE else bits * 4 + (micros >> (bits - _FINE) & 3)
        self.buckets[place if place < _BUCKETS else -1] += 1

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share of the rows came out; None where none has.

        >>> meter = Meter()
        >>> for millis in range(1, 101):
        ...     meter.took(millis / 1000)
        >>> 0.045 < meter.quantile(0.5) < 0.055, 0.085 < meter.quantile(0.95) < 0.105
        (True, True)
        """
        wanted, met = share * self.settled, 0
        for place, count in enumerate(self.buckets):
            met += count
            if count and met >= wanted:
                return _middle(place)
        return None


def _middle(place: int) -> float:
    bits, quarter = divmod(place, 4)
    if bits < _FINE:
        return place / 1e6
    return (4.5 + quarter) * 2.0 ** (bits - _FINE) / 1e6
