"""Values of a program as JSON, for demos, settings and digests."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from dspy_stream.errors import ConfigurationError
from dspy_stream.program.example import Example

__all__ = ["canonical", "to_jsonable"]


def to_jsonable(value: Any, where: str = "value") -> Any:
    """The value as plain JSON data: dicts with text keys, lists, text, numbers, True, False, None.

    Examples become objects of all their fields, pydantic models, dataclasses and named tuples
    objects of theirs, enums their values; dates, times, UUIDs, paths, URLs and decimals become
    text as pydantic writes it; tuples and sets become lists, sets sorted by their JSON. Keys that
    are numbers, booleans or None become text as ``json`` writes them.

    Raises:
        ConfigurationError: something has no JSON form, such as NaN; the message says where.

    >>> to_jsonable({"seen": {3, 1}, "example": Example(q="2+2?", dspy_uuid="7")})
    {'seen': [1, 3], 'example': {'q': '2+2?', 'dspy_uuid': '7'}}
    """
    try:
        return _convert(value, where)
    except RecursionError as error:
        raise ConfigurationError(f"{where} contains itself, or nests too deep for JSON") from error


def canonical(value: Any) -> bytes:
    """The one spelling of JSON data that digests are taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _convert(value: Any, where: str) -> Any:
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, enum.Enum):
        return _convert(value.value, where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigurationError(f"{where} is {value}, which JSON cannot hold")
        return float(value)
    if isinstance(value, Example):
        value = dict(value.items(include_dspy=True))
    elif isinstance(value, BaseModel):
        value = value.model_dump()  # not as JSON: its sets would come in the order of their hashes
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key, where): _convert(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_convert(item, where) for item in value), key=canonical)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [_convert(item, f"{where}[{number}]") for number, item in enumerate(value)]
    return _foreign(value, where)


def _foreign(value: Any, where: str) -> Any:
    if hasattr(value, "_asdict"):
        return _convert(value._asdict(), where)
    try:
        plain = to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise ConfigurationError(f"{where}: a {type(value).__name__} has no JSON form: {error}") from error
    if type(plain) is type(value) and not isinstance(plain, (str, int)):
        raise ConfigurationError(f"{where}: a {type(value).__name__} has no JSON form")
    return plain if isinstance(plain, (str, int)) else _convert(plain, where)


def _key(key: Any, where: str) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return str(key)
    if key is None or isinstance(key, (bool, int, float)):
        return json.dumps(key)
    raise ConfigurationError(f"{where} has the key {key!r}; JSON keys are text")
