"""The first rows of a source, whatever its partitions."""

from __future__ import annotations

from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources.base import Partition, Position, Source

__all__ = ["Head"]


class Head:
    """At most ``limit`` rows of ``source``, its partitions read one after the other.

    The order is that of the partitions' names, so the same rows are read after a restart.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self._source = source
        self._limit = limit

    @property
    def name(self) -> str:
        """The source's name."""
        return self._source.name

    def partitions(self) -> list[str]:
        """One part that stands for all."""
        self._source.partitions()
        return ["head"]

    def open(self, partition: str, position: Position | None) -> _HeadPartition:
        """Open at the beginning or where a position says."""
        del partition  # there is only one
        return _HeadPartition(self._source, self._limit, position)

    def size(self) -> int | None:
        """The smaller of the limit and the source's own size."""
        size = self._source.size()
        return None if size is None else min(size, self._limit)

    def bytes_total(self) -> int | None:
        """Unknown: how many bytes the first rows have is not known before they are read."""
        return self._source.bytes_total()

    def describe(self) -> dict[str, object]:
        """The source, and the limit."""
        return {**self._source.describe(), "limit": self._limit}


class _HeadPartition:
    def __init__(self, source: Source, limit: int, position: Position | None) -> None:
        self._source = source
        self._parts = source.partitions()
        self._index = position["part"] if position else 0
        self._left = limit - (position["rows"] if position else 0)
        self._rows = position["rows"] if position else 0
        self._before = 0
        self._inner: Partition | None = None
        self._at: Position | None = position["position"] if position else None

    @property
    def exhausted(self) -> bool:
        """True once the limit or the last part is reached."""
        return self._left <= 0 or self._index >= len(self._parts)

    @property
    def bytes_read(self) -> int:
        """Bytes of all parts read so far."""
        return self._before + (self._inner.bytes_read if self._inner is not None else 0)

    def read(self, limit: int) -> list[Row | DeadLetter]:
        """The next rows."""
        while not self.exhausted:
            if self._inner is None:
                self._inner = self._source.open(self._parts[self._index], self._at)
                self._at = None
            rows = self._inner.read(min(limit, self._left))
            if rows or not self._inner.exhausted:
                self._left -= len(rows)
                self._rows += len(rows)
                return rows
            self._before += self._inner.bytes_read
            self._inner.close()
            self._inner = None
            self._index += 1
        return []

    def position(self) -> Position:
        """Where the current part stands, and how many rows were read."""
        inner = self._inner.position() if self._inner is not None else self._at
        return {"part": self._index, "position": inner, "rows": self._rows}

    def close(self) -> None:
        """Close the open part."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None
