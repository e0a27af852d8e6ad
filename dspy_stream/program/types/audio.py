"""Audio: a sound in a prompt."""

from __future__ import annotations

import base64
import io
import os
import sys
import wave
from array import array as packed
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, field_validator
from typing_extensions import Self

from dspy_stream.program.types.base import Blocks, Type
from dspy_stream.program.types.binary import (
    MAX_BYTES,
    block_of,
    check_base64,
    data_uri,
    fetch,
    media_type,
    read,
    split_data_uri,
)

__all__ = ["Audio"]

_LOUDEST = 32767


class Audio(Type):
    """A sound: its bytes in base64, and their format, such as ``wav`` or ``mp3``.

    ``Audio(source)`` takes a data URI, or bytes, of ``audio_format`` or of the kind that can be told from
    how they begin, and opens nothing. Files are read by :meth:`from_path`, which your own code calls.
    At most 32 MiB.

    Raises:
        ValueError: the source is neither, or too large.

    >>> Audio("data:audio/x-wav;base64,aGk=")
    Audio(data=<AUDIO_BASE_64_ENCODED(4)>, audio_format='wav')
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    data: str
    audio_format: str

    def __init__(self, source: Any = None, /, **data: Any) -> None:
        if isinstance(source, (bytes, bytearray, memoryview)):
            source, data = None, {**data, "data": source}
        if isinstance(data.get("data"), (bytes, bytearray, memoryview)):
            data = {**data, **_sounding(bytes(data["data"]), data.get("audio_format"), "the data")}
        if source is not None:
            made = self._coerce(source)
            data = {**data, **(made if isinstance(made, Mapping) else {"data": made})}
        super().__init__(**data)

    @classmethod
    def from_path(
        cls, file_path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
    ) -> Self:
        """The sound in a file, read now, as :meth:`Image.from_path` reads a picture.

        Raises:
            ValueError: it is no sound, too large, no regular file, or outside of ``root``.
            OSError: it cannot be read.
        """
        return cls(**_sounding(read(file_path, root), None, os.fspath(file_path), file_path))

    @classmethod
    def from_url(cls, url: str, verify: bool = True, *, timeout: float = 30.0) -> Self:
        """The sound at an address, fetched here and now: providers take none by its address.

        Raises:
            ValueError: ``verify`` is false, the address is none, or what is there is no sound, or too large.
            OSError: it could not be fetched.
        """
        return cls(**_sounding(fetch(url, timeout, verify=verify), None, url))

    @classmethod
    def from_bytes(cls, data: bytes, audio_format: str | None = None) -> Self:
        """The sound that a file with these bytes holds, of this format or of that which they show.

        Raises:
            ValueError: they are no sound, or too many.
        """
        return cls(**_sounding(data, audio_format, "the data"))

    @classmethod
    def from_array(cls, array: Any, sampling_rate: int, format: str = "wav") -> Self:
        """The sound of samples between -1 and 1: a sequence of numbers, or one row for each moment
        with a number for each channel, as an array of numpy has them.

        Raises:
            ValueError: another format than ``wav``, or the samples are no numbers.
        """
        if format.lower() != "wav":
            raise ValueError(f"samples are written as wav, not as {format!r}")
        rows = array.tolist() if hasattr(array, "tolist") else list(array)
        channels = len(rows[0]) if rows and isinstance(rows[0], (list, tuple)) else 1
        flat = [value for row in rows for value in row] if channels > 1 else [*map(_single, rows)]
        level = packed("h", [round(max(-1.0, min(1.0, float(value))) * _LOUDEST) for value in flat])
        if sys.byteorder == "big":
            level.byteswap()
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(sampling_rate)
            file.writeframes(level.tobytes())
        return cls.from_bytes(buffer.getvalue(), "wav")

    from_file = from_path

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "a sound: a data URI"

    def format(self) -> Blocks:
        """One ``input_audio`` block."""
        return [{"type": "input_audio", "input_audio": {"data": self.data, "format": self.audio_format}}]

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        if isinstance(value, str):
            return _from_text(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return _sounding(bytes(value), None, "the data")
        if isinstance(value, Audio):
            return {"data": value.data, "audio_format": value.audio_format}
        return cls._of_block(value) if block_of(value, "input_audio") is not None else value

    @classmethod
    def _of_block(cls, block: Mapping[str, Any]) -> Any:
        held = block_of(block, "input_audio") or {}
        return {"data": held.get("data"), "audio_format": held.get("format")}

    @field_validator("data")
    @classmethod
    def _checked(cls, data: str) -> str:
        if len(data) * 3 // 4 > MAX_BYTES:
            raise ValueError(f"more than the {MAX_BYTES} bytes that are allowed")
        check_base64(data)
        return data

    @field_validator("audio_format")
    @classmethod
    def _named(cls, name: str) -> str:
        name = name.lower().removeprefix("x-")
        if not name.isascii() or not name.replace("-", "").isalnum():
            raise ValueError(f"{name[:40]!r} is no name of an audio format, such as wav or mp3")
        return name

    def __repr__(self) -> str:
        return f"Audio(data=<AUDIO_BASE_64_ENCODED({len(self.data)})>, audio_format={self.audio_format!r})"

    __str__ = __repr__


def _from_text(text: str) -> dict[str, str]:
    if text[:5].lower() != "data:":
        raise ValueError(
            f"{text[:80]!r} is no data URI. Data are never opened as a path or address: your own code "
            "reads a sound, with Audio.from_path(...) or Audio.from_url(...), for instance in a .map()"
        )
    kind, body = split_data_uri(text)
    family, _, name = kind.partition("/")
    if family != "audio":
        raise ValueError(f"a data URI of {kind} is no sound")
    return {"data": body, "audio_format": name}


def _sounding(
    data: bytes, name: str | None, source: str, path: str | os.PathLike[str] | None = None
) -> dict[str, str]:
    if name is None:
        kind = media_type(data, path)
        if kind is None or not kind.startswith("audio/"):
            found = f"{kind}, no sound" if kind else "no sound of a known kind; say audio_format=..."
            raise ValueError(f"{source[:80]!r} holds {found}")
        name = kind.partition("/")[2]
    data_uri("audio/any", data[:1])  # refuses the empty one
    if len(data) > MAX_BYTES:
        raise ValueError(f"{source[:80]!r} has more than the {MAX_BYTES} bytes that are allowed")
    return {"data": base64.b64encode(data).decode("ascii"), "audio_format": name}


def _single(row: Any) -> Any:
    return row[0] if isinstance(row, (list, tuple)) else row
