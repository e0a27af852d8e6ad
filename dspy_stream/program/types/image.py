"""Image: a picture in a prompt, by its address or with its bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, field_validator
from typing_extensions import Self

from dspy_stream.program.types.base import Blocks, Type
from dspy_stream.program.types.binary import block_of, data_uri, fetch, media_type, read, reference

__all__ = ["Image"]


class Image(Type):
    """A picture: an ``http(s)`` or ``gs`` address that the provider fetches, or a data URI.

    ``Image(source)`` takes an address, a data URI, bytes, or a PIL image, and opens nothing. A path
    is refused: files are read by :meth:`from_path`, which your own code calls. The same holds for
    values that come out of rows, saved programs and answers.

    The kind of bytes is told by what they begin with. At most 32 MiB; providers take less.

    Raises:
        ValueError: the source is none of these, or too large.

    >>> Image("https://example.com/cat.png")
    Image(url='https://example.com/cat.png')
    >>> Image("cat.png")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    pydantic_core._pydantic_core.ValidationError: 1 validation error for Image
    url
      Value error, Unrecognized image string: 'cat.png' is neither an http(s) URL nor a data URI. Data...
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    url: str

    def __init__(
        self, /, url: Any = None, *, download: bool = False, verify: bool = True, **data: Any
    ) -> None:
        del verify  # of a download, which does not happen here
        if download:
            raise ValueError(
                "Image(...) downloads nothing; your own code does, with Image.from_url(url, True)"
            )
        if url is not None:
            made = self._coerce(url)
            data = {**data, **(made if isinstance(made, Mapping) else {"url": made})}
        super().__init__(**data)

    @classmethod
    def from_path(
        cls, file_path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
    ) -> Self:
        """The picture in a file, read now; blocks while it is read.

        Its kind is that which its first bytes show, or where they show none, that of its name.

        Args:
            file_path: where it is. With ``root`` it is taken from there and may not lead out of it: for
                paths that come from somebody else.
            root: the folder that holds all files that may be read.

        Raises:
            ValueError: it is no picture, too large, no regular file, or outside of ``root``.
            OSError: it cannot be read.
        """
        return cls(url=_pictured(read(file_path, root), os.fspath(file_path), file_path))

    @classmethod
    def from_url(
        cls, url: str, download: bool = False, *, verify: bool = True, timeout: float = 30.0
    ) -> Self:
        """The picture at an address: fetched by the provider, or with ``download`` here and now.

        Raises:
            ValueError: ``verify`` is false, the address is none, or what is there is no picture.
            OSError: it could not be fetched.
        """
        return cls(url=_pictured(fetch(url, timeout, verify=verify), url)) if download else cls(url=url)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The picture that a file with these bytes holds.

        Raises:
            ValueError: they are no picture, or too many.

        >>> Image.from_bytes(b"\\x89PNG\\r\\n\\x1a\\n")
        Image(url=data:image/png;base64,<IMAGE_BASE_64_ENCODED(12)>)
        """
        return cls(url=_pictured(data, "the data"))

    @classmethod
    def from_pil(cls, pil_image: Any, format: str = "PNG") -> Self:
        """A picture of the library PIL, encoded in a format of its."""
        buffer = io.BytesIO()
        pil_image.save(buffer, format=format)
        return cls.from_bytes(buffer.getvalue())

    from_file = from_path
    from_PIL = from_pil

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "an image: its URL, or a data URI"

    def format(self) -> Blocks:
        """One ``image_url`` block."""
        return [{"type": "image_url", "image_url": {"url": self.url}}]

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"url": value}
        if isinstance(value, (bytes, bytearray, memoryview)):
            return {"url": _pictured(bytes(value), "the data")}
        if isinstance(value, Image):
            return {"url": value.url}
        if callable(getattr(value, "save", None)) and hasattr(value, "getbands"):
            return {"url": cls.from_pil(value).url}
        return cls._of_block(value) if block_of(value, "image_url") is not None else value

    @classmethod
    def _of_block(cls, block: Mapping[str, Any]) -> Any:
        return {"url": (block_of(block, "image_url") or {}).get("url")}

    @field_validator("url")
    @classmethod
    def _checked(cls, url: str) -> str:
        return reference(url, "Image")

    def __repr__(self) -> str:
        head, comma, body = self.url.partition(",")
        if comma and head.startswith("data:"):
            return f"Image(url={head},<IMAGE_BASE_64_ENCODED({len(body)})>)"
        return f"Image(url={self.url!r})"

    __str__ = __repr__


def _pictured(data: bytes, source: str, name: str | os.PathLike[str] | None = None) -> str:
    kind = media_type(data, name)
    if kind is None or not kind.startswith("image/"):
        found = f"{kind}, no image" if kind else "no image of a known kind (PNG, JPEG, GIF, WebP, ...)"
        raise ValueError(f"{source[:80]!r} holds {found}")
    return data_uri(kind, data)
