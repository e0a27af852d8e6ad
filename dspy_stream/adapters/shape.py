"""What kind of value an annotation describes, as far as reading and writing text needs to know."""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from pydantic import BaseModel

from dspy_stream.program.types.base import Type

__all__ = [
    "bare",
    "choices_of",
    "is_custom",
    "is_plain",
    "mentions_types",
    "parts_of",
    "union_arms",
    "without_none",
]

# Types whose values, with nothing else in them, are never more than data.
_PLAIN: Final = frozenset(
    {bool, int, float, complex, bytes, type(None), None, date, datetime, time, timedelta, Decimal, UUID}
)
_CONTAINERS: Final = (list, tuple, dict, set, frozenset)


def bare(annotation: Any) -> Any:
    """The annotation without ``Annotated``, ``NewType`` and named aliases around it."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def union_arms(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; empty for every other annotation."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()


def without_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation without its ``None``, and whether it had one.

    >>> without_none(int | None)
    (<class 'int'>, True)
    """
    arms = union_arms(annotation)
    kept = tuple(arm for arm in arms if arm is not type(None))
    if not kept or len(kept) == len(arms):
        return annotation, False
    return Union[kept], True  # noqa: UP007 - the arms are data; one arm alone is that arm


def choices_of(annotation: Any) -> tuple[Any, ...] | None:
    """The values of a Literal or an Enum, in order; None for every other annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return tuple(annotation)
    return None


def is_plain(annotation: Any) -> bool:
    """Whether no value of the type can hold one that says itself how it is written.

    ``str`` is not plain by itself, since a field that nobody gave a type is one.

    >>> is_plain(dict[str, list[int]]), is_plain(list), is_plain(str)
    (True, False, False)
    """
    return bare(annotation) is not str and _is_plain(annotation)


def _is_plain(annotation: Any) -> bool:
    annotation = bare(annotation)
    if annotation is str or annotation is Ellipsis or choices_of(annotation) is not None:
        return True
    members = get_args(annotation)
    if union_arms(annotation) or get_origin(annotation) in _CONTAINERS:
        return bool(members) and all(map(_is_plain, members))
    try:
        return annotation in _PLAIN
    except TypeError:  # an annotation that cannot be hashed
        return False


def is_custom(annotation: Any) -> bool:
    """Whether it is a class whose values say themselves how they are written."""
    # On Python 3.10 list[int] counts as a class.
    return isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, Type)


def mentions_types(annotation: Any) -> bool:
    """Whether a value that says itself how it is written belongs somewhere into the type.

    >>> from dspy_stream.program.types import Image
    >>> mentions_types(dict[str, list[Image] | None]), mentions_types(dict[str, str])
    (True, False)
    """
    return any(map(is_custom, parts_of(annotation)))


def parts_of(annotation: Any) -> Iterator[Any]:
    """The type, and every type that it is made of, each once.

    >>> list(parts_of(dict[str, int] | None))
    [dict[str, int] | None, <class 'NoneType'>, dict[str, int], <class 'int'>, <class 'str'>]
    """
    seen: set[int] = set()
    left = [annotation]
    while left:
        current = bare(left.pop())
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if get_origin(current) is not Literal:
            left.extend((*get_args(current), *_members(current)))


def _members(annotation: Any) -> Iterator[Any]:
    """The types of the fields of a model, a dataclass, a named tuple or a typed dict."""
    origin = get_origin(annotation) or annotation
    if not isinstance(origin, type):
        return
    if issubclass(origin, BaseModel):
        yield from (field.annotation for field in origin.model_fields.values())
    elif dataclasses.is_dataclass(origin) or hasattr(origin, "__total__") or hasattr(origin, "_fields"):
        try:
            yield from get_type_hints(origin).values()
        except (NameError, TypeError):  # a type that only type checkers know
            return
