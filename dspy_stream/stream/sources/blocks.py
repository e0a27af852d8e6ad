"""Where bytes come from: a file, a compressed file, or standard input, one block at a time."""

from __future__ import annotations

import os
import select
import stat
import zlib
from typing import Any, Protocol

from dspy_stream.errors import InputError
from dspy_stream.stream.sources.fingerprint import changed, head_of, marks, verify

__all__ = ["BLOCK", "Blocks", "FileBlocks", "GzipBlocks", "PipeBlocks", "open_for_reading", "unreadable"]

BLOCK = 256 * 1024
_GZIP = 31  # zlib's window setting for the gzip container


class Blocks(Protocol):
    """Bytes in order. Every error is raised again by every later call."""

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the file itself, compressed where it is."""
        ...

    def next(self) -> bytes | None:
        """The next bytes, ``b""`` at the end, or None where there are none right now."""
        ...

    def marks(self, offset: int) -> dict[str, Any]:
        """What a position must hold for ``offset`` to be trusted later."""
        ...

    def close(self) -> None:
        """Release the descriptor; safe to call twice."""
        ...


def open_for_reading(path: str, name: str) -> int:
    """A descriptor of a regular file.

    Raises:
        InputError: there is no such file, it may not be read, or it is of another kind.
    """
    try:
        # O_NONBLOCK so that a pipe put in the file's place cannot hang the open.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(name, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"cannot read {name}: it is not a regular file; use - to read standard input")
    return descriptor


def unreadable(name: str, error: OSError, *, at: int | None = None) -> InputError:
    """The error for a file that the system refuses to give."""
    where = "" if at is None else f" at byte {at}"
    return InputError(f"cannot read {name}{where}: {error.strerror or error}")


class FileBlocks:
    """A regular file from ``start`` to the end it has when that end is reached.

    What is appended meanwhile is read too. The end is final: what is appended later belongs to
    the next run.

    Raises:
        SourceChanged: the file is not the one ``position`` was taken from.
    """

    __slots__ = ("_ended", "_fd", "_head", "_name", "_offset", "_path", "_stat")

    def __init__(
        self, path: str, name: str, *, start: int = 0, position: dict[str, Any] | None = None
    ) -> None:
        self._path = path
        self._name = name
        self._offset = start
        self._ended = False
        self._fd = open_for_reading(path, name)
        try:
            if position is not None:
                verify(self._fd, name, position, start if "tail" in position else None)
            self._head = head_of(self._fd)
            self._stat = os.fstat(self._fd)
        except OSError as error:
            self.close()
            raise unreadable(name, error) from error
        except InputError:
            self.close()
            raise

    @property
    def bytes_read(self) -> int:
        """Offset in the file."""
        return self._offset

    @property
    def head(self) -> bytes:
        """The first bytes of the file."""
        return self._head

    def next(self) -> bytes:
        """Up to 256 KB, or ``b""`` at the end."""
        if self._ended:
            return b""
        try:
            self._watch()
            block = os.pread(self._fd, BLOCK, self._offset)
        except OSError as error:
            raise unreadable(self._name, error, at=self._offset) from error
        self._offset += len(block)
        self._ended = not block
        return block

    def marks(self, offset: int) -> dict[str, Any]:
        """Digests of the head and of the bytes before ``offset``."""
        return marks(self._fd, self._head, offset)

    def head_marks(self) -> dict[str, Any]:
        """Digest of the head alone."""
        return marks(self._fd, self._head, None)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _watch(self) -> None:
        """Notice a file that shrank, was rewritten in place, or was replaced under its name."""
        size = os.fstat(self._fd).st_size
        if size < self._offset:
            raise changed(self._name, f"it has {size} bytes now and {self._offset} had been read")
        if os.pread(self._fd, len(self._head), 0) != self._head:
            raise changed(self._name, "its first bytes are others")
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            raise changed(self._name, "it was removed") from None
        if not os.path.samestat(there, self._stat):
            self._compare_successor(there.st_size)

    def _compare_successor(self, size: int) -> None:
        descriptor = open_for_reading(self._path, self._name)
        try:
            head = os.pread(descriptor, len(self._head), 0)
        finally:
            os.close(descriptor)
        if head != self._head or size < self._offset:
            raise changed(self._name, "another file has its name now")


class GzipBlocks:
    """The content of a gzip file of one or many members, from byte ``skip`` of that content.

    Bytes before ``skip`` are decompressed again and dropped. A file that is cut short gives all
    it holds and raises then.

    Raises:
        InputError: the file is truncated or damaged.
        SourceChanged: the content ends before ``skip``.
    """

    __slots__ = ("_file", "_inflate", "_name", "_rest", "_skip", "_started")

    def __init__(self, file: FileBlocks, name: str, *, skip: int = 0) -> None:
        self._file = file
        self._name = name
        self._skip = skip
        self._rest = b""
        self._started = False
        self._inflate = zlib.decompressobj(_GZIP)

    @property
    def bytes_read(self) -> int:
        """Compressed bytes taken from the file."""
        return self._file.bytes_read

    def next(self) -> bytes:
        """Up to 256 KB of content, or ``b""`` at the end."""
        while True:
            block = self._next_raw()
            if not block:
                if self._skip:
                    raise changed(self._name, f"its content ends {self._skip} bytes before the position")
                return b""
            if self._skip < len(block):
                kept, self._skip = block[self._skip :], 0
                return kept
            self._skip -= len(block)

    def marks(self, offset: int) -> dict[str, Any]:  # noqa: ARG002 - offsets count the content
        """Digest of the compressed file's head."""
        return self._file.head_marks()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _next_raw(self) -> bytes:
        while True:
            if self._inflate.eof and not self._next_member():
                return b""
            data = self._rest or self._file.next()
            if not data:
                raise InputError(
                    f"{self._name} is cut short: the gzip data ends at byte {self._file.bytes_read} "
                    "inside a member; every whole record before that was read; "
                    "fetch the whole file and run again, which goes on from there"
                )
            try:
                block = self._inflate.decompress(data, BLOCK)
            except zlib.error as error:
                raise InputError(
                    f"{self._name} is damaged gzip data before byte {self._file.bytes_read}: {error}"
                ) from error
            self._rest = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if block:
                return block

    def _next_member(self) -> bool:
        """Go on to the next member; False at the end. Zero bytes between members are padding."""
        while True:
            self._rest = self._rest.lstrip(b"\0") or self._file.next()
            if not self._rest:
                return False
            if self._rest[0]:
                self._inflate = zlib.decompressobj(_GZIP)
                return True


class PipeBlocks:
    """A pipe, a terminal or a socket: whatever has arrived, never waiting for more."""

    __slots__ = ("_ended", "_fd", "_read")

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._read = 0
        self._ended = False

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the pipe."""
        return self._read

    def next(self) -> bytes | None:
        """What has arrived, None if nothing has, ``b""`` after the other side closed."""
        if self._ended:
            return b""
        try:
            if not select.select([self._fd], [], [], 0)[0]:
                return None
            block = os.read(self._fd, BLOCK)
        except BlockingIOError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read standard input: {error}") from error
        self._read += len(block)
        self._ended = not block
        return block

    def marks(self, offset: int) -> dict[str, Any]:  # noqa: ARG002 - a pipe has no offsets
        """Nothing: a pipe cannot be read again."""
        return {"live": True}

    def close(self) -> None:
        """Leave the descriptor to the process that owns it."""
