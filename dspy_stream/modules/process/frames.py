"""Frames on a pipe: a head of JSON and a body of bytes. Pure; reads any slicing of the stream."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

__all__ = ["Frame", "Unframer", "frame"]

_SIZES: Final = struct.Struct(">II")
MOST: Final = 512 << 20
"""Bytes of a frame at most; a longer one means that the stream is no stream of frames."""


class Frame(NamedTuple):
    """One message."""

    head: dict[str, Any]
    body: bytes = b""


def frame(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A message as bytes.

    Raises:
        ValueError: it is too long.
    """
    packed = orjson.dumps(head)
    if len(packed) + len(body) > MOST:
        raise ValueError(f"{len(packed) + len(body):,} bytes are too many for a worker process")
    return b"".join((_SIZES.pack(len(packed), len(body)), packed, body))


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
            found.append(Frame(orjson.loads(buffer[begin : begin + head]), bytes(buffer[begin + head : end])))
            start = end
        del buffer[:start]
        return found
