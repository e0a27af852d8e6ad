"""What a predictor was called with: its inputs, what overrides its settings, and what looks odd.

Odd things are logged and not refused, as in DSPy, where a call is made by a program's own code. A
flow's rows are looked at when they are read, and bring many fields on purpose.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from dspy_stream.configuration import settings
from dspy_stream.errors import SignatureError
from dspy_stream.events import ROW
from dspy_stream.program import Signature
from dspy_stream.program.annotations import type_name
from dspy_stream.program.types import History

__all__ = ["Given", "given", "inputs_of"]

PRIVILEGED: Final = ("signature", "demos", "config", "lm")
_log = logging.getLogger("dspy_stream")


class Given(NamedTuple):
    """Inputs, and the settings of this call alone; None where there are none."""

    inputs: Mapping[str, Any]
    overrides: dict[str, Any] | None


def given(signature: type[Signature], kwargs: Mapping[str, Any]) -> Given:
    """Sort the arguments of a call.

    ``prediction`` is an input where the signature has one; in the form of a provider's predicted
    outputs, ``{"type": "content", "content": ...}``, it is an option of the call.
    """
    names, _ = inputs_of(signature)
    overrides = {name: kwargs[name] for name in PRIVILEGED if name in kwargs and name not in names}
    inputs = {name: kwargs[name] for name in kwargs if name not in overrides} if overrides else kwargs
    predicted = inputs.get("prediction")
    if predicted is not None and "prediction" not in names and _predicted(predicted):
        inputs = {name: value for name, value in inputs.items() if name != "prediction"}
        overrides["config"] = {**(overrides.get("config") or {}), "prediction": predicted}
    asked: Any = overrides.get("signature") or signature
    if ROW.get() is None and isinstance(asked, type) and issubclass(asked, Signature):
        _look(asked, inputs)
    return Given(inputs, overrides or None)


def _predicted(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") == "content" and "content" in value


def _look(signature: type[Signature], inputs: Mapping[str, Any]) -> None:
    known, _ = inputs_of(signature)
    if extra := [name for name in inputs if name not in known]:
        _log.warning(
            "Input contains fields not in signature, which are ignored: %s. Expected fields: %s",
            extra,
            list(known),
        )
    if not settings.warn_on_type_mismatch:
        return
    for name, annotation in _typed(signature):
        value = inputs.get(name)
        if value is None or type(value) is annotation or _fits(_validator(signature, name), value):
            continue
        if annotation is str and isinstance(value, list) and all(isinstance(item, str) for item in value):
            continue  # several texts where one is expected are shown as a numbered list
        _log.warning(
            "Type mismatch for field '%s': expected %s, but the value is %s that does not fit it",
            name,
            type_name(annotation),
            type(value).__name__,
        )


def _fits(validate: Callable[[Any], Any] | None, value: Any) -> bool:
    if validate is None:
        return True
    try:
        validate(value)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1024)
def _validator(signature: type[Signature], name: str) -> Callable[[Any], Any] | None:
    """What checks a value of a field; None for a type that nothing can be checked against."""
    try:
        return signature.validator(name).validate_python
    except SignatureError:
        return None


@lru_cache(maxsize=1024)
def _typed(signature: type[Signature]) -> tuple[tuple[str, Any], ...]:
    fields = signature.input_fields
    return tuple((name, field.annotation) for name, field in fields.items() if signature.is_typed(name))


@lru_cache(maxsize=1024)
def inputs_of(signature: type[Signature]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The inputs of a signature, and those that must be given; a program of parts asks for every row."""
    fields = signature.input_fields
    needed = [
        name
        for name, field in fields.items()
        if not signature.may_omit(name) and field.annotation is not History
    ]
    return tuple(fields), tuple(needed)
