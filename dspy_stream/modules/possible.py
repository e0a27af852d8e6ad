"""Which values a field can have, where the parts before say so: what a route's keys are checked against."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict

if TYPE_CHECKING:
    from dspy_stream.modules.compose import Named

__all__ = ["Values", "made_by", "made_in_order", "values_after", "values_of"]

Values = Mapping[str, tuple[Any, ...] | None]
"""The possible values of fields; None where there may be any."""


def values_of(annotation: Any) -> tuple[Any, ...] | None:
    """The values that a type allows, where they can be counted.

    >>> values_of(Literal["a", "b"] | None), values_of(bool), values_of(str)
    (('a', 'b', None), (True, False), None)
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return values_of(get_args(annotation)[0])
    if origin is Literal:
        return get_args(annotation)
    if origin in (Union, UnionType):
        found: list[Any] = []
        for arm in get_args(annotation):
            values = values_of(arm)
            if values is None:
                return None
            found += values
        return tuple(found)
    if annotation is bool:
        return (True, False)
    if annotation in (None, type(None)):
        return (None,)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(annotation)
    return None


def made_by(part: Named, known: Values) -> Values | None:
    """What a part puts into a record of which so much is ``known``; None where nobody can tell.

    Raises:
        ConfigurationError: a route in it has a key that none of its values can be.
    """
    options = part.options
    found = _made(part.module, known)
    if options.fallback is not None:
        found = _either(found, _made(options.fallback, known))
    if options.outputs is not None:  # the others are left out
        found = {new: (found or {}).get(name) for name, new in options.outputs.items()}
    return found


def _made(module: Module, known: Values) -> Values | None:
    own = getattr(module, "_made_values", None)
    if own is not None:
        of_parts: Values | None = own(known)
        return of_parts
    if type(module) in (Predict, ChainOfThought):  # another's way of its own may make something else of it
        (predictor,) = module.predictors()
        fields = predictor.signature.output_fields.items()
        return {name: values_of(field.annotation) for name, field in fields}
    names = module.output_names()
    return None if names is None else dict.fromkeys(names)


def _either(one: Values | None, other: Values | None) -> Values | None:
    if one is None or other is None:
        return None
    made: dict[str, tuple[Any, ...] | None] = {}
    for name in (*one, *other):
        mine, theirs = one.get(name), other.get(name)
        made[name] = (*mine, *theirs) if mine is not None and theirs is not None else None
    return made


def values_after(known: Values, made: Values | None) -> Values:
    """What is known of a record once that has been put into it."""
    return {} if made is None else {**known, **made}


def made_in_order(parts: list[Named], known: Values) -> Values | None:
    """What parts put into a record one after the other."""
    all_made: Values | None = {}
    for part in parts:
        made = made_by(part, known)
        known = values_after(known, made)
        all_made = None if all_made is None or made is None else {**all_made, **made}
    return all_made
