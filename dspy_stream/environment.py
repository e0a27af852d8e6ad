"""Settings from outside the program: ``pyproject.toml`` and environment variables, as plain values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from dspy_stream.errors import ConfigurationError

__all__ = ["PREFIX", "TABLE", "Reader", "count", "flag", "read_environment", "read_project", "text"]

PREFIX: Final = "DSPY_STREAM_"
TABLE: Final = "tool.dspy_stream"
_FILE: Final = "pyproject.toml"
_LARGEST: Final = 1 << 20  # bytes of a file that is looked into
_DIGITS: Final = 18
_YES: Final = ("1", "true", "yes", "on")
_NO: Final = ("0", "false", "no", "off", "")


class Reader(NamedTuple):
    """How a value is read: ``what`` it must be, and a function that raises ValueError for another."""

    what: str
    read: Callable[[Any], Any]


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _YES:
        return True
    if isinstance(value, str) and value.strip().lower() in _NO:
        return False
    raise ValueError


def _count(value: Any) -> int:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        if len(value.strip()) > _DIGITS:
            raise ValueError
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError
    return value.strip()


flag: Final = Reader("true or false", _flag)
count: Final = Reader("a whole number, 0 or more", _count)
text: Final = Reader("a text", _text)


def read_environment(environ: Mapping[str, str], known: Mapping[str, Reader]) -> dict[str, Any]:
    """The settings in ``DSPY_STREAM_*`` variables; those of other names are somebody else's.

    Raises:
        ConfigurationError: a value is not what the setting holds; the variable is named.

    >>> read_environment({"DSPY_STREAM_NUM_THREADS": "4", "HOME": "/"}, {"num_threads": count})
    {'num_threads': 4}
    """
    found = {}
    for name, reader in known.items():
        variable = PREFIX + name.upper()
        if variable in environ:
            found[name] = _read(f"the environment variable {variable}", reader, environ[variable])
    return found


def read_project(folder: Path, known: Mapping[str, Reader]) -> dict[str, Any]:
    """The settings in the table ``[tool.dspy_stream]`` of the nearest ``pyproject.toml``.

    It is looked for in ``folder`` and then upwards. A file without the table is not read as TOML.

    Raises:
        ConfigurationError: the file cannot be read, a key is no setting, or a value is not what the
            setting holds; file and key are named.
    """
    path = next((each / _FILE for each in (folder, *folder.parents) if (each / _FILE).is_file()), None)
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if b"dspy_stream" not in data:
        return {}
    table = _parsed(path, data).get("tool", {}).get("dspy_stream", {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: [{TABLE}] is a table of settings")
    for key in table:
        if key not in known:
            raise ConfigurationError(
                f"{path}: [{TABLE}] has {key!r}, which no file can set; there are: {', '.join(known)}"
            )
    return {key: _read(f"{path}: {TABLE}.{key}", known[key], value) for key, value in table.items()}


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        parsed: dict[str, Any] = tomllib.loads(data.decode())
    except ValueError as error:  # of the decoding, or of the TOML
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    return parsed


def _read(where: str, reader: Reader, value: Any) -> Any:
    try:
        return reader.read(value)
    except ValueError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        raise ConfigurationError(f"{where} is {shown}; it must be {reader.what}") from None
