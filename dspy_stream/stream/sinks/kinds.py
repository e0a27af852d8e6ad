"""What a column of a typed file holds: kinds of JSON values, and what two of them have in common.

A kind is itself JSON, so that it can be part of a position: None for nulls alone, ``"bool"``, ``"text"``,
``"number"`` for floats (and the integers among them), ``["integer", least, most]``, ``["list", kind]`` and
``["object", {name: kind}]``.

>>> both(kind_of([1, None]), kind_of([0.5]))
['list', 'number']
>>> both(kind_of("x"), kind_of(1))
Traceback (most recent call last):
...
dspy_stream.stream.sinks.kinds.Mixed: text and an integer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["Kind", "Mixed", "both", "kind_of", "widened"]

Kind = Any

_SIGNED: Final = 2**63 - 1
_EXACT: Final = 2**53  # the integers up to here are floats too
_NAMES: Final = 5_000  # in an object; more are data, not names


class Mixed(ValueError):
    """Two kinds that no column can hold together."""


def kind_of(value: Any) -> Kind:
    """The kind of a JSON value.

    Raises:
        Mixed: a list holds several.
    """
    if value is None:
        return None
    kind = type(value)
    if kind is str:
        return "text"
    if kind is bool:
        return "bool"
    if kind is float:
        return "number"
    if kind is int:
        return _range(value, value)
    if kind is dict:
        return ["object", widened({}, value)]
    inner: Kind = None
    for item in value:
        inner = both(inner, kind_of(item))
    return ["list", inner]


def both(one: Kind, other: Kind) -> Kind:
    """The kind that holds values of both.

    Raises:
        Mixed: there is none.
    """
    if one == other or other is None:
        return one
    if one is None:
        return other
    if type(one) is list and type(other) is list and one[0] == other[0]:
        if one[0] == "integer":
            return _range(min(one[1], other[1]), max(one[2], other[2]))
        if one[0] == "list":
            return ["list", both(one[1], other[1])]
        return ["object", _merged(one[1], other[1], _itself)]
    for number, integer in ((one, other), (other, one)):
        if number == "number" and type(integer) is list and integer[0] == "integer":
            if integer[1] >= -_EXACT and integer[2] <= _EXACT:
                return "number"
            raise Mixed("integers of more than 53 bits and other numbers")
    raise Mixed(f"{_named(one)} and {_named(other)}")


def widened(kinds: Mapping[str, Kind], values: Mapping[str, Any]) -> dict[str, Kind]:
    """What columns, or the fields of an object, hold with these values.

    Raises:
        Mixed: one of them would hold two kinds, or there are too many.
    """
    return _merged(kinds, values, kind_of)


def _merged(
    kinds: Mapping[str, Kind], others: Mapping[str, Any], of: Callable[[Any], Kind]
) -> dict[str, Kind]:
    made = dict(kinds)
    for name, other in others.items():
        try:
            made[name] = both(made.get(name), of(other))
        except Mixed as error:  # noqa: PERF203 - the name is needed
            raise Mixed(f"{name!r} would hold {error}") from None
    if len(made) > _NAMES:
        raise Mixed(f"objects with more than {_NAMES:,} different names between them")
    return made


def _itself(kind: Kind) -> Kind:
    return kind


def _range(least: int, most: int) -> Kind:
    if least < 0 and most > _SIGNED:
        raise Mixed("integers below zero and of 64 bits")
    return ["integer", least, most]


def _named(kind: Kind) -> str:
    name = kind if isinstance(kind, str) else kind[0]
    return {"text": "text", "bool": "true or false", "integer": "an integer", "object": "an object"}.get(
        name, f"a {name}"
    )
