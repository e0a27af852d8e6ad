"""Any Python value a row may hold, as the JSON value it means.

Kept as they are: text, numbers, booleans, None. Time stamps, dates and times become ISO 8601
text, decimals, UUIDs and paths text, time spans seconds, bytes base64 text, enums their value,
sets sorted lists, models, dataclasses and examples objects. Missing values of pandas and NaN
become None. Libraries are known by their values' shape; none is imported.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import os
import uuid
from collections.abc import Mapping, Sequence, Set
from typing import Any

__all__ = ["plain", "plain_fields"]

_ATOMS = frozenset({int, bool, type(None)})
_DEPTH = 200


def plain_fields(record: Any) -> dict[str, Any]:
    """The fields of a mapping, a model, a dataclass or an example.

    Raises:
        TypeError: the record, or the value of the named field, has no JSON form.
        ValueError: a text holds a lone surrogate.

    >>> plain_fields({"day": datetime.date(2026, 1, 2), "tags": {"b", "a"}})
    {'day': '2026-01-02', 'tags': ['a', 'b']}
    """
    source = record if type(record) is dict else _mapping_of(record)
    if source is None:
        raise TypeError(f"a record must be a mapping, a model or a dataclass, not a {type(record).__name__}")
    fields: dict[str, Any] = {}
    for key, value in source.items():
        if type(value) in _ATOMS:
            fields[str(key)] = value
            continue
        try:
            fields[str(key)] = plain(value)
        except TypeError as error:
            raise TypeError(f"field {str(key)!r}: {error}") from error
        except ValueError as error:
            raise ValueError(f"field {str(key)!r}: {error}") from error
    return fields


def plain(value: Any, depth: int = 0) -> Any:
    """The JSON value.

    Raises:
        TypeError: it has none.
        ValueError: a text holds a lone surrogate, or the value is nested beyond 200 levels.

    >>> plain([1.5, float("nan"), decimal.Decimal("2.50"), b"hi"])
    [1.5, None, '2.50', 'aGk=']
    """
    kind = type(value)
    if kind is str:
        if not value.isascii():
            value.encode("utf-8")
        return value
    if kind in _ATOMS:
        return value
    if kind is float:
        return value if value - value == 0.0 else _not_finite(value)
    if depth > _DEPTH:
        raise ValueError(f"nested beyond {_DEPTH} levels")
    if kind is dict:
        return {_key(name): plain(item, depth + 1) for name, item in value.items()}
    if kind is list or kind is tuple:
        return [plain(item, depth + 1) for item in value]
    return _uncommon(value, depth + 1)


def _key(name: Any) -> str:
    if isinstance(name, enum.Enum):
        name = name.value
    text = str(name)
    if not text.isascii():
        text.encode("utf-8")
    return text


def _not_finite(value: float) -> None:
    if value == value:
        raise ValueError("infinity has no JSON form")


def _uncommon(value: Any, depth: int) -> Any:
    if isinstance(value, enum.Enum):
        return plain(value.value, depth)
    if _is_missing(value):
        return None
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return plain(dump(mode="json"), depth)  # a model may be a text
    mapping = _mapping_of(value)
    if mapping is not None:
        return {_key(name): plain(item, depth) for name, item in mapping.items()}
    if isinstance(value, Set):
        return sorted((plain(item, depth) for item in value), key=lambda item: (str(type(item)), str(item)))
    if isinstance(value, Sequence):
        return [plain(item, depth) for item in value]
    for method in ("tolist", "to_list", "to_pylist"):  # numpy and pandas, polars, Arrow
        convert = getattr(value, method, None)
        if callable(convert):
            return plain(convert(), depth)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


_CONVERSIONS: tuple[tuple[Any, Any], ...] = (
    (str, lambda value: plain(str.__str__(value))),
    (int, int),
    (float, lambda value: plain(float(value))),
    ((datetime.datetime, datetime.date, datetime.time), lambda value: value.isoformat()),
    (datetime.timedelta, lambda value: value.total_seconds()),
    ((decimal.Decimal, uuid.UUID), str),
    ((bytes, bytearray, memoryview), lambda value: base64.b64encode(value).decode("ascii")),
    (os.PathLike, lambda value: plain(os.fsdecode(value))),
)


def _is_missing(value: Any) -> bool:
    """The NA and NaT of pandas, which answer no comparison with themselves as a bool."""
    return type(value).__name__ in {"NAType", "NaTType"}


def _mapping_of(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        found = dump(mode="json")
        return found if isinstance(found, Mapping) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    to_dict = getattr(value, "toDict", None)
    if callable(to_dict) and not isinstance(value, type):
        converted = to_dict()
        return converted if isinstance(converted, Mapping) else None
    fields = getattr(value, "_asdict", None)  # named tuples
    if callable(fields) and isinstance(value, tuple):
        named: Mapping[Any, Any] = fields()
        return named
    return None
