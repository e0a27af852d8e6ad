"""What kind of value an annotation describes, as far as reading and writing text needs to know."""

from __future__ import annotations

import enum
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

__all__ = ["bare", "choices_of", "union_arms", "without_none"]


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
