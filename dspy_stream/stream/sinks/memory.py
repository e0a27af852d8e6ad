"""Sinks without a file: a list, and nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspy_stream.errors import ConfigurationError, OutputError
from dspy_stream.rows import Row
from dspy_stream.stream.sinks.base import Position

__all__ = ["MemorySink", "NullSink"]


class MemorySink:
    """Keeps the rows in ``rows``; the sink to test a flow with.

    Exactly once as long as the list lives: resuming in another process, which has an empty list,
    is refused.

    >>> from dspy_stream.rows import Origin
    >>> sink = MemorySink()
    >>> out = sink.open(None)
    >>> out.write([Row("a", {"n": 1}, Origin("memory", "0", 0))])
    >>> out.flush(), [row.n for row in sink.rows]
    ({'count': 1}, [1])
    """

    def __init__(self, *, overwrite: bool = False) -> None:
        self.rows: list[Row] = []
        self.overwrite = overwrite

    def check(self) -> None:
        """A list can always be written."""

    def occupied(self) -> bool:
        """True if it holds rows."""
        return bool(self.rows)

    def open(self, position: Position | None) -> MemorySink:
        """Empty the list, or cut it back."""
        if position is None and self.rows and not self.overwrite:
            raise ConfigurationError(
                "this MemorySink holds the rows of an earlier run; make another, or pass overwrite=True"
            )
        count = position["count"] if position else 0
        if len(self.rows) < count:
            raise OutputError(
                f"this MemorySink holds {len(self.rows)} rows and {count} were committed: "
                "rows in memory do not outlive the process; write to a file to be able to resume"
            )
        del self.rows[count:]
        return self

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self.rows.extend(rows)

    def flush(self) -> Position:
        """The number of rows."""
        return {"count": len(self.rows)}

    def close(self) -> None:
        """Nothing to release."""

    def finish(self) -> None:
        """Nothing is left to do."""

    def describe(self) -> dict[str, Any]:
        """The kind."""
        return {"kind": "memory"}


class NullSink:
    """Forgets every row, and counts them in ``count``."""

    def __init__(self) -> None:
        self.count = 0
        self.overwrite = True

    def check(self) -> None:
        """Nothing can be wrong."""

    def occupied(self) -> bool:
        """Never."""
        return False

    def open(self, position: Position | None) -> NullSink:
        """Count from the position on."""
        self.count = position["count"] if position else 0
        return self

    def write(self, rows: Sequence[Row]) -> None:
        """Count rows."""
        self.count += len(rows)

    def flush(self) -> Position:
        """The number of rows."""
        return {"count": self.count}

    def close(self) -> None:
        """Nothing to release."""

    def finish(self) -> None:
        """Nothing is left to do."""

    def describe(self) -> dict[str, Any]:
        """The kind."""
        return {"kind": "null"}
