"""Cutting blocks of bytes into lines without ever holding more than the cap."""

from __future__ import annotations

from dataclasses import dataclass

from dspy_stream.stream.sources.base import MAX_RAW

__all__ = ["LineCutter", "TooLong"]


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line over the cap: its first bytes, and how long it was without its newline."""

    head: bytes
    length: int

    def __len__(self) -> int:
        return self.length


class LineCutter:
    """Takes blocks of any size and gives the lines they complete, without their newline bytes.

    >>> cutter = LineCutter(cap=5)
    >>> cutter.feed(b"one\\ntwo\\nthree fo"), cutter.feed(b"ur\\nfi"), cutter.finish()
    ([b'one', b'two'], [TooLong(head=b'three four', length=10)], [b'fi'])
    """

    __slots__ = ("_cap", "_head", "_held", "_length")

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._held: list[bytes] = []
        self._head = b""
        self._length = 0

    def feed(self, block: bytes) -> list[bytes | TooLong]:
        """The lines that end in this block."""
        pieces: list[bytes] = block.split(b"\n")
        rest = pieces.pop()
        if not pieces:
            self._hold(rest)
            return []
        lines: list[bytes | TooLong] = [*pieces]
        if len(block) > self._cap:
            lines = [self._checked(piece) for piece in pieces]
        if self._length:
            self._hold(pieces[0])
            lines[0] = self._release()
        if rest:
            self._hold(rest)
        return lines

    def finish(self) -> list[bytes | TooLong]:
        """The last line, where it had no newline."""
        return [self._release()] if self._length else []

    def _checked(self, piece: bytes) -> bytes | TooLong:
        return piece if len(piece) <= self._cap else TooLong(piece[:MAX_RAW], len(piece))

    def _hold(self, piece: bytes) -> None:
        self._length += len(piece)
        if self._length <= self._cap:
            self._held.append(piece)
        elif len(self._head) < MAX_RAW:
            self._head = (self._head + b"".join(self._held) + piece)[:MAX_RAW]
            self._held.clear()

    def _release(self) -> bytes | TooLong:
        long = self._length > self._cap
        line = TooLong(self._head, self._length) if long else b"".join(self._held)
        self._held.clear()
        self._head = b""
        self._length = 0
        return line
