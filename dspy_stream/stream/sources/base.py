"""What a source is: named partitions, each read by one thread, each resumable from a position.

Every record becomes a :class:`~dspy_stream.rows.Row`, or a
:class:`~dspy_stream.rows.DeadLetter` in its place when it cannot be read; reading goes on. What
concerns the whole file (missing, replaced, cut short) is an exception instead.

``Row.raw`` holds the record's bytes where they are a JSON object by themselves, and is None
everywhere else, where the fields are the record; so ``Row.raw_bytes()`` is always JSON. Only the
dead letters of stage ``read`` carry bytes of another form, as they stood in the file.
"""

from __future__ import annotations

from typing import Any, Protocol

from dspy_stream.rows import DeadLetter, Row

__all__ = ["MAX_LINE", "MAX_RAW", "Partition", "Position", "Source"]

MAX_LINE = 16 * 1024 * 1024
"""Bytes of one record, by default; a longer one becomes a dead letter."""

MAX_RAW = 64 * 1024
"""Bytes kept of a record that is over the cap."""

Position = dict[str, Any]
"""Where to go on: plain JSON, made by one partition and understood by its source alone."""


class Partition(Protocol):
    """One open file or iterator, used by one thread."""

    @property
    def exhausted(self) -> bool:
        """True once everything was returned; it never becomes False again."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes consumed so far, on the scale of the source's ``bytes_total``."""
        ...

    def read(self, limit: int) -> list[Row | DeadLetter]:
        """Return the next 1 to ``limit`` records in order.

        An empty list means the end where ``exhausted`` is True, and otherwise that a live input
        has nothing right now. Files block for as long as the disk takes; standard input never
        blocks.

        Raises:
            InputError: the input cannot be read further; whatever was read before the fault has
                been returned, and every later call raises again.
            SourceChanged: the file shrank or was replaced while being read.
        """
        ...

    def position(self) -> Position:
        """The resume point just after the last record that ``read`` returned; a fresh dict."""
        ...

    def close(self) -> None:
        """Release the file; safe to call twice."""
        ...


class Source(Protocol):
    """A data set that can be opened partition by partition, as often as a run is restarted."""

    @property
    def name(self) -> str:
        """Stable name of the data set, part of a row's identity."""
        ...

    def partitions(self) -> list[str]:
        """Sorted, stable names of the parts.

        Raises:
            InputError: nothing to read: no such file, no permission, an unknown format.
        """
        ...

    def open(self, partition: str, position: Position | None) -> Partition:
        """Open a part at its beginning, or at a position that it returned earlier.

        Raises:
            InputError: it cannot be opened, or cannot be resumed.
            SourceChanged: it is not the file the position was taken from.
        """
        ...

    def size(self) -> int | None:
        """Rows altogether, where that is known without reading them."""
        ...

    def bytes_total(self) -> int | None:
        """Bytes altogether, where that means something."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was asked for, as JSON, for the run record."""
        ...
