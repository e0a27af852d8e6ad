"""Bytes for a prompt: which kind they are, how they become text, and where the user's code gets them.

Only :func:`read` and :func:`fetch` open anything, and only the constructors that a user's program
calls by name (``from_path``, ``from_url``) call those.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

__all__ = ["MAX_BYTES", "block_of", "data_uri", "fetch", "media_type", "read", "reference", "split_data_uri"]

MAX_BYTES: Final = 32 * 2**20
"""The largest image, sound or file, decoded. Providers take less: 5 to 50 MB a request."""

_LONGEST_URL: Final = 8192
_SCHEMES: Final = ("http", "https", "gs")

# What files begin with, and at which byte.
_MAGIC: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyphei", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (8, b"WAVE", "audio/wav"),
    (0, b"ID3", "audio/mp3"),
    (0, b"\xff\xfb", "audio/mp3"),
    (0, b"\xff\xf3", "audio/mp3"),
    (0, b"\xff\xf2", "audio/mp3"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (4, b"ftypM4A", "audio/m4a"),
    (0, b"\xff\xf1", "audio/aac"),
    (0, b"\x1aE\xdf\xa3", "audio/webm"),
    (0, b"%PDF-", "application/pdf"),
)

_BY_NAME: Final = {
    **{".csv": "text/csv", ".html": "text/html", ".json": "application/json", ".md": "text/markdown"},
    **{".py": "text/x-python", ".rtf": "application/rtf", ".txt": "text/plain", ".xml": "text/xml"},
    **{".avif": "image/avif", ".bmp": "image/bmp", ".gif": "image/gif", ".jpeg": "image/jpeg"},
    **{".jpg": "image/jpeg", ".png": "image/png", ".tiff": "image/tiff", ".webp": "image/webp"},
    **{".aac": "audio/aac", ".flac": "audio/flac", ".m4a": "audio/m4a", ".mp3": "audio/mp3"},
    **{".ogg": "audio/ogg", ".wav": "audio/wav", ".pdf": "application/pdf"},
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


def media_type(data: bytes, name: str | os.PathLike[str] | None = None) -> str | None:
    """The kind of the bytes by what they begin with, else by the file's ``name``; None where neither says it.

    >>> media_type(b"\\x89PNG\\r\\n\\x1a\\n..."), media_type(b"hello"), media_type(b"hello", "a.txt")
    ('image/png', None, 'text/plain')
    """
    for at, mark, kind in _MAGIC:
        if data[at : at + len(mark)] == mark and (at != 8 or data[:4] == b"RIFF"):
            return kind
    return None if name is None else _BY_NAME.get(Path(name).suffix.lower())


def data_uri(kind: str, data: bytes) -> str:
    """The bytes as text that can stand for an address.

    Raises:
        ValueError: they are none, or too many.
    """
    if not data:
        raise ValueError("there are no bytes in it")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes are more than the {MAX_BYTES} that are allowed")
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def split_data_uri(text: str) -> tuple[str, str]:
    """The media type and the base64 text of a data URI, which are checked.

    Raises:
        ValueError: it is no data URI in base64, or too large.

    >>> split_data_uri("data:image/png;base64,aGk=")
    ('image/png', 'aGk=')
    """
    head, comma, body = text.partition(",")
    kind, _, coding = head.removeprefix("data:").partition(";")
    if not comma or coding.rpartition(";")[2].lower() != "base64" or "/" not in kind:
        raise ValueError("a data URI has the form data:TYPE/SUBTYPE;base64,...")
    body = "".join(body.split())
    if len(body) * 3 // 4 > MAX_BYTES:
        raise ValueError(f"a data URI of {len(body)} characters holds more than {MAX_BYTES} bytes")
    check_base64(body)
    return kind.lower(), body


def check_base64(text: str) -> None:
    """Raise a ValueError where the text is not base64, or empty."""
    try:
        empty = not base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its base64 cannot be read: {error}") from None
    if empty:
        raise ValueError("there are no bytes in it")


def reference(text: str, kind: str) -> str:
    """An address that a provider can be given, or a data URI, as it is sent.

    The text is looked at and nothing else: no file is opened and no server is asked.

    Raises:
        ValueError: it is neither, such as a path.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        family, body = split_data_uri(text)
        if not family.startswith(f"{kind.lower()}/"):
            raise ValueError(f"a data URI of {family} is no {kind.lower()}")
        return f"data:{family};base64,{body}"
    shown = repr(text if len(text) <= 80 else text[:80] + "...")
    try:
        parts = urlsplit(text)
        good = parts.scheme in _SCHEMES and bool(parts.netloc)
    except ValueError:
        good = False
    if not good or len(text) > _LONGEST_URL or not text.isprintable() or " " in text:
        raise ValueError(
            f"Unrecognized {kind.lower()} string: {shown} is neither an http(s) URL nor a data URI. Data "
            "are never opened as a path: to send a local file, your own code reads it, with "
            f"{kind}.from_path(...), for instance in a .map()"
        )
    return text


class MissingFile(FileNotFoundError, ValueError):
    """There is no such file; DSPy raises a ValueError."""


def read(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> bytes:
    """The bytes of a regular file, which lies under ``root`` where one is given. Blocks.

    Raises:
        ValueError: it is too large, no regular file, or outside of ``root``.
        OSError: it cannot be read.
    """
    place = Path(path)
    if root is not None:
        base = Path(root).resolve()
        place = (base / place).resolve()
        if base not in place.parents:
            raise ValueError(f"{os.fspath(path)!r} is not below {os.fspath(root)!r}")
    # A named pipe would otherwise wait for its other end.
    try:
        handle = os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise MissingFile(f"File not found: {os.fspath(path)}") from None
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{os.fspath(path)!r} is no regular file")
        if status.st_size > MAX_BYTES:
            raise ValueError(
                f"{os.fspath(path)!r} has {status.st_size} bytes, more than the {MAX_BYTES} allowed"
            )
        return file.read(MAX_BYTES + 1)


def fetch(url: str, timeout: float = 30.0, *, verify: bool = True) -> bytes:
    """The bytes at an http(s) address. Blocks for at most about ``timeout`` seconds between two pieces.

    Raises:
        ValueError: another kind of address, or more bytes than are allowed; or ``verify`` is false, as
            certificates are always looked at.
        OSError: it cannot be had.
    """
    if not verify:
        raise ValueError("certificates are always verified; verify=False is not offered")
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"only http(s) addresses are fetched, not {url[:80]!r}")
    from urllib import request  # a tenth of a second to import, for those who fetch

    # Spelled out: the standard opener also knows file: and ftp:, which a redirect could name.
    opener = request.OpenerDirector()
    handlers = (
        *(request.ProxyHandler(), request.HTTPHandler(), request.HTTPSHandler()),
        *(request.HTTPDefaultErrorHandler(), request.HTTPRedirectHandler(), request.HTTPErrorProcessor()),
    )
    for handler in handlers:
        opener.add_handler(handler)
    with opener.open(request.Request(url, headers={"User-Agent": "dspy_stream"}), timeout=timeout) as answer:  # noqa: S310 - the scheme was checked
        data: bytes = answer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{url[:80]!r} has more than the {MAX_BYTES} bytes that are allowed")
    return data


def block_of(value: Any, kind: str) -> Mapping[str, Any] | None:
    """What a content block of this kind holds; None where the value is no such block."""
    if isinstance(value, Mapping) and value.get("type") == kind and isinstance(value.get(kind), Mapping):
        held: Mapping[str, Any] = value[kind]
        return held
    return None
