"""What a sink is: one place that rows go to, which can be cut back to a position after a crash.

A sink is at once exactly-once or it says otherwise. Files and memory are: what was written after
the last committed position is cut off when the run goes on, and written again. Standard output is
at least once, with the row id to tell repetitions by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dspy_stream.rows import Row

__all__ = ["Position", "Sink", "SinkPartition"]

Position = dict[str, Any]
"""Where to cut back to: plain JSON, understood by the sink that made it."""


class SinkPartition(Protocol):
    """An open output, used by one thread."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows in order; blocks for as long as the output takes.

        Raises:
            OutputError: not all rows could be written. The output can no longer be written or
                committed through this object; opening it again at the last position repairs it.
        """
        ...

    def flush(self) -> Position:
        """Make everything written durable, and return the position just after it; a fresh dict.

        Raises:
            OutputError: it cannot be made durable, or an earlier write had failed.
        """
        ...

    def close(self) -> None:
        """Flush and close; safe to call twice. After a failed write it only closes.

        Raises:
            OutputError: what was written cannot be made durable.
        """
        ...


class Sink(Protocol):
    """A place for rows. ``overwrite`` allows :meth:`open` to empty what is there already."""

    overwrite: bool

    def check(self) -> None:
        """Find out, without changing anything, whether the output can be written.

        Raises:
            OutputError: there is no such folder, no permission, or something else is in the way.
        """
        ...

    def occupied(self) -> bool:
        """True where there is output already, which opening without a position would empty."""
        ...

    def open(self, position: Position | None) -> SinkPartition:
        """Open empty, or cut back to exactly ``position``.

        Raises:
            ConfigurationError: it is occupied, and neither ``position`` nor ``overwrite`` is given.
            OutputError: it cannot be opened, or holds less than ``position`` says.
        """
        ...

    def finish(self) -> None:
        """Complete the output after the whole run; doing it again changes nothing.

        Raises:
            OutputError: it cannot be completed; what was written is kept.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What was asked for, as JSON, for the run record."""
        ...
