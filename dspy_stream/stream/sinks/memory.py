"""Sinks without a file: lists, and nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspy_stream.errors import ConfigurationError, OutputError
from dspy_stream.rows import Row
from dspy_stream.stream.sinks.base import Position
from dspy_stream.stream.sinks.encode import JsonlEncoder

__all__ = ["ListSink", "MemorySink", "NullSink"]


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

    _kind = "MemorySink"

    def __init__(self, *, overwrite: bool = False) -> None:
        self.rows: list[Row] = []
        self.overwrite = overwrite

    def check(self) -> None:
        """A list can always be written."""

    def occupied(self) -> bool:
        """True if it holds rows."""
        return bool(self._list())

    def open(self, position: Position | None) -> MemorySink:
        """Empty the list, or cut it back."""
        kept = self._list()
        if position is None and kept and not self.overwrite:
            raise ConfigurationError(
                f"this {self._kind} holds the rows of an earlier run; make another, or pass overwrite=True"
            )
        count = position["count"] if position else 0
        if len(kept) < count:
            raise OutputError(
                f"this {self._kind} holds {len(kept)} rows and {count} were committed: "
                "rows in memory do not outlive the process; write to a file to be able to resume"
            )
        del kept[count:]
        return self

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self.rows.extend(rows)

    def flush(self) -> Position:
        """The number of rows."""
        return {"count": len(self._list())}

    def close(self) -> None:
        """Nothing to release."""

    def finish(self) -> None:
        """Nothing is left to do."""

    def describe(self) -> dict[str, Any]:
        """The kind."""
        return {"kind": "memory"}

    def _list(self) -> list[Any]:
        return self.rows


class ListSink(MemorySink):
    """Appends to a list that is given: of each row a dict, as a line of JSON would have it.

    >>> from dspy_stream.rows import Origin
    >>> found = []
    >>> ListSink(found).open(None).write([Row("a", {"n": 1}, Origin("memory", "0", 0))])
    >>> found
    [{'row_id': 'a', 'n': 1}]
    """

    _kind = "list"

    def __init__(
        self,
        into: list[dict[str, Any]],
        *,
        row_id: str | None = "row_id",
        columns: Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(overwrite=overwrite)
        self.into = into
        self._encoder = JsonlEncoder(row_id=row_id, columns=columns)

    def write(self, rows: Sequence[Row]) -> None:
        """Append what is to be seen of the rows."""
        self.into.extend(self._encoder.objects(rows))

    def _list(self) -> list[Any]:
        return self.into


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
