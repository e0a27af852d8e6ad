"""Frames on a pipe: a head of JSON and a body of bytes. Pure; reads any slicing of the stream."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

__all__ = ["Frame", "Unframer", "frame"]

_SIZES: Final = struct.Struct(">II")
_LOOSE: Final = b" "  # before a head that the fast reader of JSON would not give back as it was
MOST: Final = 512 << 20
"""Bytes of a frame at most; a longer one means that the stream is no stream of frames."""


class Frame(NamedTuple):
    """One message."""

    head: dict[str, Any]
    body: bytes = b""


def frame(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A message as bytes.

    Raises:
        TypeError: the head holds what is no JSON.
        ValueError: it is too long, or holds a number of thousands of digits.
    """
    try:
        packed = orjson.dumps(head)
    except TypeError:  # a number beyond 64 bits, half a character
        packed = _LOOSE + json.dumps(head).encode()
    if len(packed) + len(body) > MOST:
        raise ValueError(f"{len(packed) + len(body):,} bytes are too many for a worker process")
    return b"".join((_SIZES.pack(len(packed), len(body)), packed, body))


def _head(packed: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(packed) if packed[:1] == _LOOSE else orjson.loads(packed)
    return found


class Unframer:
    """Takes bytes as they come and gives the frames that are complete.

    >>> reader = Unframer()
    >>> data = frame({"kind": "run"}, b"body")
    >>> reader.feed(data[:5]), reader.feed(data[5:])
    ([], [Frame(head={'kind': 'run'}, body=b'body')])
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete.

        Raises:
            ValueError: the bytes are no frames.
        """
        buffer = self._buffer
        buffer += data
        found: list[Frame] = []
        start = 0
        while len(buffer) - start >= _SIZES.size:
            head, body = _SIZES.unpack_from(buffer, start)
            if head + body > MOST:
                raise ValueError("these are no frames of a worker process")
            begin = start + _SIZES.size
            end = begin + head + body
            if len(buffer) < end:
                break
            found.append(Frame(_head(bytes(buffer[begin : begin + head])), bytes(buffer[begin + head : end])))
            start = end
        del buffer[:start]
        return found
