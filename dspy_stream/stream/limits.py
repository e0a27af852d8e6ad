"""When failed rows stop a flow: dead letters are for bad rows, not for a flow that is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dspy_stream.errors import TooManyFailures

__all__ = ["Limit", "Streak"]

_WHAT_NOW: Final = (
    "`dspy-stream dlq list FOLDER`, with the state folder of the flow (.dspy_stream/NAME), shows why; "
    "mend the cause and run again to go on, or raise"
)


@dataclass(frozen=True)
class Limit:
    """How many rows may fail.

    ``consecutive`` failures of one source or step without one row that passes it in between, or
    more than ``ratio`` of all rows read once ``warm_up`` of them have come out. None switches a
    limit off.
    """

    consecutive: int | None = 100
    ratio: float | None = 0.25
    warm_up: int = 200

    def check(self, dead: int, out: int, read: int) -> None:
        """Compare the dead letters so far with the rows that came out, and with all that were read.

        A row that fails early overtakes those that still wait for a model, so what was read counts
        as well as what came out.

        Raises:
            TooManyFailures: the ratio is exceeded.
        """
        if self.ratio is not None and out >= max(1, self.warm_up) and dead > self.ratio * max(out, read):
            share = f"{dead} of {max(out, read)} rows failed, more than {self.ratio:.0%}"
            raise TooManyFailures(f"{share}; {_WHAT_NOW} --max-failed")


class Streak:
    """Failures in a row, counted where they are decided: at a source, or in a step.

    ``exceed`` is called once with the error when there are too many; the flow goes on until the
    letters have been written.
    """

    __slots__ = ("_exceed", "_limit", "_where", "count", "passes")

    def __init__(self, where: str, limit: int | None, exceed: Callable[[TooManyFailures], None]) -> None:
        self._where = where
        self._limit = limit
        self._exceed = exceed
        self.count = 0
        self.passes = 0

    def passed(self) -> None:
        """A row passed."""
        self.count = 0
        self.passes += 1

    def failed(self, passes: int | None = None) -> None:
        """A row failed for good.

        Bad rows that are tried again gather behind the good ones, and then end one after the other.
        One that has seen others pass, since its first attempt failed at ``passes``, does not count.
        """
        if passes is not None and self.passes > passes:
            return
        self.count += 1
        if self._limit is not None and self.count >= self._limit:
            self._exceed(
                TooManyFailures(
                    f"{self.count} rows failed one after the other {self._where}; {_WHAT_NOW} "
                    "--max-consecutive"
                )
            )
