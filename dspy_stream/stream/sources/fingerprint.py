"""Telling whether a file is still the one that a position was taken from.

A file is known by its first bytes and by those just before the position. Inode and time stamps
play no part: a copy on another machine may go on where the first one stopped, and a file edited
in place may not.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from dspy_stream.errors import SourceChanged

__all__ = ["HEAD", "changed", "head_of", "marks", "verify"]

HEAD = 1024
_TAIL = 256


def head_of(descriptor: int) -> bytes:
    """The first bytes of an open file."""
    return os.pread(descriptor, HEAD, 0)


def marks(descriptor: int, head: bytes, offset: int | None) -> dict[str, Any]:
    """What to keep in a position: digests of ``head`` and of the bytes before ``offset``.

    ``offset`` is None where positions do not count the file's own bytes, as under compression.
    """
    found: dict[str, Any] = {"head": [len(head), _digest(head)]}
    if offset is not None:
        start = max(0, offset - _TAIL)
        found["tail"] = _digest(os.pread(descriptor, offset - start, start))
    return found


def verify(descriptor: int, name: str, position: dict[str, Any], offset: int | None) -> None:
    """Check an open file against the marks in a position.

    Raises:
        SourceChanged: it is shorter than ``offset``, or its bytes are others.
    """
    size = os.fstat(descriptor).st_size
    if offset is not None and size < offset:
        raise changed(name, f"it has {size} bytes now and {offset} had been read")
    length, digest = position["head"]
    if _digest(os.pread(descriptor, length, 0)) != digest:
        raise changed(name, "its first bytes are others")
    if offset is not None and marks(descriptor, b"", offset)["tail"] != position["tail"]:
        raise changed(name, f"the bytes before offset {offset} are others")


def changed(name: str, how: str) -> SourceChanged:
    """The error for a file that is not the one the run began with."""
    return SourceChanged(
        f"{name} was replaced or rewritten after the run had begun: {how}; "
        "put the first file back to go on, or start a fresh run"
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
