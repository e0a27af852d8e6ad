"""File: a document in a prompt, with its bytes or by the id that the provider gave it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from pydantic import ConfigDict, field_validator, model_validator
from typing_extensions import Self

from dspy_stream.program.types.base import Blocks, Type
from dspy_stream.program.types.binary import block_of, data_uri, media_type, read, split_data_uri

__all__ = ["File"]

_UNKNOWN: Final = "application/octet-stream"


class File(Type):
    """A file, such as a PDF: ``file_data``, a data URI, or ``file_id``, with the ``filename`` to show.

    ``File(source)`` takes a data URI or bytes and opens nothing. Files are read by
    :meth:`from_path`, which your own code calls. At most 32 MiB.

    Raises:
        ValueError: neither data nor id, or the data are no data URI, or too large.

    >>> File.from_file_id("file-abc", filename="report.pdf")
    File(file_id='file-abc', filename='report.pdf')
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None

    def __init__(self, source: Any = None, /, **data: Any) -> None:
        if source is not None:
            made = self._coerce(source)
            data = {**data, **(made if isinstance(made, Mapping) else {"file_data": made})}
        super().__init__(**data)

    @classmethod
    def from_path(
        cls,
        file_path: str | os.PathLike[str],
        filename: str | None = None,
        mime_type: str | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
    ) -> Self:
        """The file at a path, read now, as :meth:`Image.from_path` reads a picture.

        Without ``mime_type`` its kind is that which its first bytes show, or that of its name.

        Raises:
            ValueError: it is empty, too large, no regular file, or outside of ``root``.
            OSError: it cannot be read.
        """
        return cls.from_bytes(read(file_path, root), filename or PurePath(file_path).name, mime_type)

    @classmethod
    def from_bytes(cls, file_bytes: bytes, filename: str | None = None, mime_type: str | None = None) -> Self:
        """A file of these bytes.

        Raises:
            ValueError: there are none, or too many.

        >>> File.from_bytes(b"%PDF-1.7", "a.pdf")
        File(file_data=<DATA_URI(application/pdf, 12 chars)>, filename='a.pdf')
        """
        kind = mime_type or media_type(file_bytes, filename) or _UNKNOWN
        return cls(file_data=data_uri(kind, file_bytes), filename=filename)

    @classmethod
    def from_file_id(cls, file_id: str, filename: str | None = None) -> Self:
        """A file that the provider has already been given, by the id that it gave back."""
        return cls(file_id=file_id, filename=filename)

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "a file: a data URI"

    def format(self) -> Blocks:
        """One ``file`` block."""
        held = {"file_data": self.file_data, "file_id": self.file_id, "filename": self.filename}
        return [{"type": "file", "file": {name: value for name, value in held.items() if value}}]

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"file_data": value}
        if isinstance(value, (bytes, bytearray, memoryview)):
            data = bytes(value)
            return {"file_data": data_uri(media_type(data) or _UNKNOWN, data)}
        if isinstance(value, File):
            return {name: getattr(value, name) for name in cls.model_fields}
        held = block_of(value, "file")
        return value if held is None else dict(held)

    @classmethod
    def _of_block(cls, block: Mapping[str, Any]) -> Any:
        return dict(block_of(block, "file") or {})

    @field_validator("file_data")
    @classmethod
    def _checked(cls, data: str | None) -> str | None:
        if data is None:
            return None
        if data[:5].lower() != "data:":
            raise ValueError(
                f"{data[:80]!r} is no data URI. Data are never opened as a path: your own code reads a "
                "file, with File.from_path(...), for instance in a .map()"
            )
        kind, body = split_data_uri(data)
        return f"data:{kind};base64,{body}"

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.file_data and not self.file_id:
            raise ValueError("a file must contain at least one of: file_data, file_id")
        return self

    def __repr__(self) -> str:
        shown = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None:
                head, _, body = value.partition(",")
                short = f"<DATA_URI({head[5:].partition(';')[0]}, {len(body)} chars)>"
                shown.append(f"{name}={short if name == 'file_data' else repr(value)}")
        return f"File({', '.join(shown)})"

    __str__ = __repr__
