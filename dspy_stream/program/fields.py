"""The fields of a signature: how they are declared, and what is kept about each."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dspy_stream.errors import SignatureError

__all__ = ["Direction", "InputField", "OutputField", "infer_prefix"]

Direction = Literal["input", "output"]

DIRECTION: Final = "__dspy_field_type"
UNTYPED: Final = "__dspy_untyped"

# Aliases would give one field two names, and the rest describe attributes of instances.
_REFUSED: Final = {
    *("alias", "alias_priority", "validation_alias", "serialization_alias", "field_title_generator"),
    *("exclude", "exclude_if", "extra", "frozen", "init", "init_var", "kw_only", "repr"),
    *("default", "default_factory"),
}
_OPTIONS: Final = frozenset(inspect.signature(pydantic.Field).parameters) - _REFUSED


def InputField(
    *,
    desc: str | None = None,
    default: Any = PydanticUndefined,
    default_factory: Callable[[], Any] | None = None,
    prefix: str | None = None,
    format: Any = None,
    parser: Any = None,
    **options: Any,
) -> Any:
    """Declare a field that the caller gives.

    ``options`` are those of ``pydantic.Field``: ``gt ge lt le multiple_of min_length max_length
    pattern allow_inf_nan strict`` and so on. ``prefix`` is stored and saved; ``format`` and
    ``parser`` are accepted for programs written for DSPy, and do nothing there or here.

    A default is written into prompts as it is, and need not fit the type, as in DSPy.

    Raises:
        SignatureError: an option has another name, or does not fit the others.

    >>> InputField(desc="the customer's words", max_length=500).json_schema_extra["constraints"]
    'length at most 500'
    """
    del format, parser
    return _field("input", _given(desc, prefix), default, default_factory, options)


def OutputField(
    *,
    desc: str | None = None,
    default: Any = PydanticUndefined,
    default_factory: Callable[[], Any] | None = None,
    prefix: str | None = None,
    format: Any = None,
    parser: Any = None,
    **options: Any,
) -> Any:
    """Declare a field that the model gives; otherwise as :func:`InputField`.

    Constraints are shown to the model, and an answer that breaks one is refused. A field with a
    default may be missing from the answer; the default is None, or a value of the type within its
    constraints, which is checked when the signature is made.

    Raises:
        SignatureError: an option has another name, or does not fit the others.

    >>> OutputField(ge=1, le=5).json_schema_extra["constraints"]
    'from 1 to 5'
    """
    del format, parser
    return _field("output", _given(desc, prefix), default, default_factory, options)


def _given(desc: str | None, prefix: str | None) -> dict[str, Any]:
    return {key: value for key, value in (("desc", desc), ("prefix", prefix)) if value is not None}


def _field(
    direction: Direction,
    extra: dict[str, Any],
    default: Any,
    default_factory: Callable[[], Any] | None,
    options: dict[str, Any],
) -> Any:
    title = "InputField" if direction == "input" else "OutputField"
    for option in options:
        if option not in _OPTIONS:
            raise SignatureError(f"{title} has no option {option!r}{nearest(option, _OPTIONS | {'desc'})}")
    if "description" in options:
        extra.setdefault("desc", options["description"])
    given = options.pop("json_schema_extra", None)
    merged = {**(given if isinstance(given, dict) else {}), **extra, DIRECTION: direction}
    if default_factory is not None:
        options["default_factory"] = default_factory
    if default is not PydanticUndefined:
        options["default"] = default
    try:
        field: FieldInfo = pydantic.Field(**options)
    except (TypeError, ValueError) as error:
        raise SignatureError(f"{title}: {error}") from error
    prose = constraints_of(field)
    if prose:
        merged.setdefault("constraints", prose)
    field.json_schema_extra = merged
    return field


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """What the field carries beside its type; empty for a field made by something else."""
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def direction_of(field: FieldInfo) -> Direction | None:
    """``"input"``, ``"output"``, or None where neither function made the field."""
    direction = extra_of(field).get(DIRECTION)
    return direction if direction in ("input", "output") else None


def complete(name: str, field: FieldInfo) -> None:
    """Fill in ``desc``, ``prefix`` and ``constraints`` where the declaration left them out.

    The dictionary is replaced, not changed: classes may share one declaration.
    """
    extra = dict(extra_of(field))
    extra.setdefault("desc", f"${{{name}}}")
    extra.setdefault("prefix", infer_prefix(name) + ":")
    prose = constraints_of(field)
    if prose:
        extra.setdefault("constraints", prose)
    field.json_schema_extra = extra


def infer_prefix(attribute_name: str) -> str:
    """A field's name as a heading.

    Words are found at underscores, at changes of case and at digits; all-capital words stay.

    >>> infer_prefix("camelCaseText"), infer_prefix("text2number"), infer_prefix("HTMLParser")
    ('Camel Case Text', 'Text 2 Number', 'HTML Parser')
    """
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", attribute_name)
    text = re.sub(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", "_", text)
    words = (word for word in text.split("_") if word)
    return " ".join(word if word.isupper() else word.capitalize() for word in words)


def constraints_of(field: FieldInfo) -> str:
    """The pydantic constraints of a field in words, for the prompt; empty if there are none.

    >>> constraints_of(pydantic.Field(gt=0, multiple_of=5))
    'greater than 0, a multiple of 5'
    """
    bounds = limits_of(field)
    parts = _range(bounds, "ge", "le", "")
    parts += [f"greater than {bounds['gt']}"] if "gt" in bounds else []
    parts += [f"less than {bounds['lt']}"] if "lt" in bounds else []
    parts += _range(bounds, "min_length", "max_length", "length ")
    for key, words in _PHRASES.items():
        if key in bounds:
            parts.append(words.replace("$", str(bounds[key])))
    if "allow_inf_nan" in bounds:
        parts.append("inf and nan are allowed" if bounds["allow_inf_nan"] else "a finite number")
    return ", ".join(parts)


_PHRASES: Final[Mapping[str, str]] = {
    "multiple_of": "a multiple of $",
    "pattern": "matching the regular expression $",
    "max_digits": "at most $ digits",
    "decimal_places": "at most $ decimal places",
}
LIMITS: Final = ("gt", "ge", "lt", "le", "min_length", "max_length", *_PHRASES, "allow_inf_nan")


def limits_of(field: FieldInfo) -> dict[str, Any]:
    """The constraints by pydantic's names, whether given as options or through ``Annotated``."""
    found: dict[str, Any] = {}
    for item in field.metadata:
        for key in LIMITS:
            value = getattr(item, key, None)
            if value is not None:
                found[key] = value
    return found


def impossible(field: FieldInfo) -> str:
    """Two limits that leave no value between them, in words; empty where there are none.

    >>> impossible(pydantic.Field(ge=5, le=1))
    'ge=5 and le=1 leave no value'
    """
    bounds = limits_of(field)
    for low, high in _ENDS:
        if low in bounds and high in bounds:
            try:
                crossed = bounds[low] > bounds[high] or (
                    bounds[low] == bounds[high] and (low, high) not in _INCLUSIVE
                )
            except TypeError:  # of two types, of which one does not fit the field's
                continue
            if crossed:
                return f"{low}={bounds[low]!r} and {high}={bounds[high]!r} leave no value"
    return ""


_INCLUSIVE: Final = (("ge", "le"), ("min_length", "max_length"))
_ENDS: Final = (*_INCLUSIVE, ("ge", "lt"), ("gt", "le"), ("gt", "lt"))


def relimited(metadata: list[Any], limits: Mapping[str, Any]) -> list[Any]:
    """What pydantic keeps of a field's constraints, with these in place of those of the same names.

    Raises:
        SignatureError: a limit is none that pydantic knows what to do with.
    """
    options = dict(limits)
    kept = []
    for item in metadata:
        if all(getattr(item, name, None) is None for name in limits):
            kept.append(item)
            continue
        for name in (*LIMITS, "union_mode", "coerce_numbers_to_str"):  # one item may hold several
            value = getattr(item, name, None)
            if value is not None:
                options.setdefault(name, value)
    try:
        made: FieldInfo = pydantic.Field(**options)
    except (TypeError, ValueError) as error:
        raise SignatureError(str(error)) from error
    return [*kept, *made.metadata]


def _range(bounds: Mapping[str, Any], low: str, high: str, what: str) -> list[str]:
    if low in bounds and high in bounds:
        if bounds[low] == bounds[high]:
            return [f"{what}exactly {bounds[low]}"]
        return [f"{what}from {bounds[low]} to {bounds[high]}"]
    if low in bounds:
        return [f"{what}at least {bounds[low]}"]
    return [f"{what}at most {bounds[high]}"] if high in bounds else []


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest known name, or nothing.

    >>> nearest("txt", ["id", "text"])
    "; did you mean 'text'?"
    """
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
