"""JSON files as this package writes and reads them: whole, closed to surprises, and bounded."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import orjson

from dspy_stream.errors import ConfigurationError
from dspy_stream.program.fields import nearest
from dspy_stream.program.refusals import MissingDocument, SavedStateError

__all__ = ["LARGEST", "closed", "parse_document", "read_document", "write_document", "unique_keys"]

LARGEST: Final = 8 << 20  # bytes of a saved program; pictures in demos are what fills one
_DEEPEST: Final = 64


def read_document(path: Path, *, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigurationError: the file cannot be read, is larger than ``largest`` bytes, is not strict
            JSON, nests too deep, or is not an object; the file is named.
    """
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except FileNotFoundError:
        raise MissingDocument(f"cannot read {path}: there is no such file") from None
    except OSError as error:
        raise SavedStateError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > largest:
        raise ConfigurationError(f"{path} has more than {largest} bytes, which no saved program should")
    return parse_document(data, str(path))


def parse_document(data: bytes, where: str) -> dict[str, Any]:
    """The object in JSON text: UTF-8, no key twice, no NaN, at most 64 deep.

    Raises:
        ConfigurationError: it is none; ``where`` is named.

    >>> parse_document(b'{"a": 1, "a": 2}', "x.json")
    Traceback (most recent call last):
        ...
    dspy_stream.program.refusals.SavedStateError: x.json is not JSON: the key 'a' is there twice
    """
    try:
        orjson.loads(data)  # bounds the depth, and refuses NaN and half characters, before anything else
        value = json.loads(
            data, object_pairs_hook=unique_keys, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise SavedStateError(f"{where} is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} is not a saved state: the top is not an object")
    if _deeper(value, _DEEPEST):
        raise ConfigurationError(f"{where} nests deeper than {_DEEPEST}")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for ``json.loads(..., object_pairs_hook=)``.

    Raises:
        ValueError: a key is there twice.

    >>> unique_keys([("a", 1), ("b", 2)])
    {'a': 1, 'b': 2}
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is there twice")
    return made


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return False
        layer = inner
    return True


def write_document(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON; the file is replaced whole or not at all.

    Raises:
        ConfigurationError: a value has no JSON form, the file could not be read again (see
            :func:`read_document`), or not be written.
    """
    try:
        data = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    if len(data) >= LARGEST:
        raise ConfigurationError(
            f"{path} would have {len(data)} bytes, and no more than {LARGEST} are read again"
        )
    parse_document(data, f"what was to be written to {path}")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(part, flags, 0o666), "wb") as file:
            file.write(data + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SavedStateError(f"cannot write {path}: {error.strerror}") from None


def closed(
    value: Any, keys: Collection[str], where: str, *, optional: Collection[str] = ()
) -> dict[str, Any]:
    """The value, which is an object with these keys and perhaps the optional ones, and no other.

    Raises:
        ConfigurationError: it is not; ``where`` says which object is meant.
    """
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: an object is expected, not {type(value).__name__}")
    for key in value:
        if key not in keys and key not in optional:
            known = [*keys, *optional]
            hint = nearest(key, known) or f"; known are {', '.join(known)}"
            raise ConfigurationError(f"{where}: unknown key {key[:80]!r}{hint}")
    for key in keys:
        if key not in value:
            raise ConfigurationError(f"{where}: the key {key!r} is missing")
    return value
