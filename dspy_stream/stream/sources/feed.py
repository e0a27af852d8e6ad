"""Lines of an input with a look ahead, and the count of what was consumed."""

from __future__ import annotations

from typing import Any, Final

from dspy_stream.errors import InputError
from dspy_stream.stream.sources.base import Position
from dspy_stream.stream.sources.blocks import Blocks
from dspy_stream.stream.sources.fingerprint import changed
from dspy_stream.stream.sources.lines import LineCutter, TooLong
from dspy_stream.stream.sources.rows import RowBuilder

__all__ = ["BOM", "FeedPartition", "LineFeed", "NotYet"]

BOM: Final = b"\xef\xbb\xbf"
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff")


class NotYet(Exception):
    """A live input has not sent the rest of this record."""


class LineFeed:
    """Lines from blocks. ``offset`` and ``line`` say where the next one begins; lines count from 1.

    ``torn`` is True once the line that ends the input was consumed and had no newline.
    """

    __slots__ = (
        "_at",
        "_blocks",
        "_cutter",
        "_fresh",
        "_last_open",
        "_lines",
        "ended",
        "line",
        "name",
        "offset",
        "torn",
    )

    def __init__(self, blocks: Blocks, cap: int, name: str, *, position: Position | None = None) -> None:
        self._blocks = blocks
        self._cutter = LineCutter(cap)
        self._lines: list[bytes | TooLong] = []
        self._at = 0
        self._last_open = False
        self._fresh = position is None
        self.name = name
        self.ended = False
        self.offset: int = position["offset"] if position else 0
        self.line: int = position["line"] if position else 1
        self.torn: bool = position["torn"] if position else False

    @property
    def exhausted(self) -> bool:
        """True once every line was consumed."""
        return self.ended and self._at >= len(self._lines)

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the file."""
        return self._blocks.bytes_read

    def take(self, limit: int) -> list[bytes | TooLong]:
        """Consume up to ``limit`` lines; none at the end, or where a live input has none now."""
        while self._at >= len(self._lines):
            if not self._fill():
                return []
        taken = self._lines[self._at : self._at + limit]
        self._advance(taken)
        return taken

    def ahead(self, count: int) -> bytes | TooLong | None:
        """The line ``count`` lines after the next one, unconsumed; None past the end.

        Raises:
            NotYet: a live input has not sent it.
        """
        while self._at + count >= len(self._lines):
            if not self._fill():
                if self.ended:
                    return None
                raise NotYet
        return self._lines[self._at + count]

    def consume(self, count: int) -> list[bytes | TooLong]:
        """Consume lines that ``ahead`` has shown."""
        taken = self._lines[self._at : self._at + count]
        self._advance(taken)
        return taken

    def step(self) -> None:
        """Consume one line that ``ahead`` has shown."""
        self.offset += len(self._lines[self._at]) + 1
        self._at += 1
        self.line += 1
        if self._last_open:
            self._mark_torn()

    def position(self, number: int) -> Position:
        """Where the next line begins; ``number`` records lie before it."""
        return {
            "offset": self.offset,
            "line": self.line,
            "number": number,
            "torn": self.torn,
            **self._marks(),
        }

    def close(self) -> None:
        """Release the file."""
        self._blocks.close()

    def _marks(self) -> dict[str, Any]:
        try:
            return self._blocks.marks(self.offset)
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror or error}") from error

    def _advance(self, taken: list[bytes | TooLong]) -> None:
        self._at += len(taken)
        self.line += len(taken)
        self.offset += sum(map(len, taken)) + len(taken)
        if self._last_open and taken:
            self._mark_torn()

    def _mark_torn(self) -> None:
        """Take back the newline that was counted for the last line but is not there."""
        if self.exhausted:
            self.offset -= 1
            self.torn = True

    def _fill(self) -> bool:
        """Read one block; False at the end or where nothing has arrived."""
        if self.ended:
            return False
        block = self._blocks.next()
        if block is None:
            return False
        if block:
            fresh = self._cutter.feed(self._checked(block))
        else:
            fresh = self._cutter.finish()
            self._last_open = bool(fresh)
            self.ended = True
        self._lines = self._lines[self._at :] + fresh
        self._at = 0
        return True

    def _checked(self, block: bytes) -> bytes:
        if self.torn:
            return self._after_torn(block)
        if self._fresh and block[:2] in _WIDE:
            raise InputError(f"{self.name} is UTF-16 text; convert it to UTF-8")
        self._fresh = False
        return block

    def _after_torn(self, block: bytes) -> bytes:
        """What follows a line that was taken for the last one: it may only be its newline."""
        newline = next((end for end in (b"\n", b"\r\n") if block.startswith(end)), None)
        if newline is None:
            raise changed(self.name, f"line {self.line - 1}, which ended the file, has grown")
        self.torn = False
        self.offset += len(newline)
        return block[len(newline) :]


class FeedPartition:
    """What lies between a feed of lines and rows: all of a partition but ``read``.

    No record is longer than ``cap`` bytes; ``number`` records were read before.
    """

    def __init__(self, feed: LineFeed, rows: RowBuilder, *, cap: int, number: int = 0) -> None:
        self._feed = feed
        self._rows = rows
        self._cap = cap
        self._number = number

    @property
    def exhausted(self) -> bool:
        """True once every record was read."""
        return self._feed.exhausted

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the file."""
        return self._feed.bytes_read

    def position(self) -> Position:
        """The byte offset of the next record, and what lies before it."""
        return self._feed.position(self._number)

    def close(self) -> None:
        """Release the file."""
        self._feed.close()
