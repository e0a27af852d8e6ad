"""The text of one field: how its value is written, and how it is read back.

A :class:`Codec` is compiled once per field, so that per row only the work that depends on the
value is left. How a text is read, by type:

- ``str``: as it is. In marker form the outer blanks were stripped before.
- ``bool``: true, false, yes, no, on, off, in any case. ``int``: digits, thousands separated by commas.
  ``float``: a finite number. Quotes, backticks, bold and a final full stop around them are ignored.
- ``Literal``, ``Enum``: see :class:`~dspy_stream.adapters.choices.Choices`.
- types whose JSON form is a string (dates, UUID, ``bytes``, constrained strings): the text.
- everything else: tolerant JSON (:mod:`dspy_stream.adapters.parse`), then pydantic; the bare text
  where it is no JSON.
- ``X | None``: ``null``, ``None`` and the empty text are None; otherwise as X. A string that would
  be read as something else stands in double quotes.

Whatever is read is validated with the field's constraints. NaN and infinities are never accepted.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from dspy_stream.adapters.blocks import Pieces
from dspy_stream.adapters.choices import Choices, text_of
from dspy_stream.adapters.inputs import input_writer
from dspy_stream.adapters.parse import MAX_DIGITS, NotJSON, loads
from dspy_stream.adapters.problem import ValueProblem, excerpt, unwrapped, why_invalid
from dspy_stream.adapters.shape import (
    bare,
    choices_of,
    is_custom,
    is_plain,
    mentions_types,
    union_arms,
    without_none,
)
from dspy_stream.adapters.write import Plain, json_text, numbered, plainer, refuse_unfinite
from dspy_stream.program.annotations import admits_none, schema_of

__all__ = ["Codec", "codec_for"]

Parse = Callable[[str], Any]
Check = Callable[[Any], Any]

_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_THOUSANDS: Final = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TRUTH: Final = {
    **dict.fromkeys(("true", "yes", "y", "1", "t", "on"), True),
    **dict.fromkeys(("false", "no", "n", "0", "f", "off"), False),
}


@dataclass(frozen=True, eq=False, slots=True)
class Codec:
    """How values of one field travel.

    Attributes:
        annotation: the field's type.
        schema: its JSON schema; None where it has none, or none is needed.
        choices: the allowed values of a Literal or Enum; else None.
        nullable: whether None is a value of the type.
        textual: whether a value is a string in JSON, and is written without quotes elsewhere.
        write: value to text, or to pieces where it holds content blocks, for an input; a string is
            written as it is.
        typed: for an input whose type says itself how it is written: plain data to value; raises
            ValueProblem. None for every other.
        show: value to text, for an output; ``read`` gives the value back.
        read: stripped text to value; raises ValueProblem.
        plain: value to plain data, for an answer in JSON.
        accept: plain data to value; raises ValueProblem.
    """

    annotation: Any
    schema: dict[str, Any] | None
    choices: Choices | None
    nullable: bool
    textual: bool
    write: Callable[[Any], str | Pieces]
    typed: Check | None
    show: Callable[[Any], str]
    read: Parse
    plain: Check
    accept: Check


def codec_for(annotation: Any, validator: TypeAdapter[Any], *, constrained: bool = False) -> Codec:
    """Compile the reading and writing of one field.

    Args:
        annotation: the field's type.
        validator: validates the type and the field's constraints.
        constrained: whether there are constraints beside the type.

    >>> codec = codec_for(list[int], TypeAdapter(list[int]))
    >>> codec.write([1, 2]), codec.read("Here you are: [1, 2,]")
    ('[1,2]', [1, 2])
    """
    arm, optional = without_none(bare(annotation))
    inner = bare(arm)
    constrained = constrained or inner is not arm or bare(annotation) is not annotation
    members = choices_of(inner)
    # The schema of a type that needs none costs more than everything else here.
    simple = members is not None or inner in _SIMPLE
    schema = None if simple else schema_of(validator, annotation)
    text = str(schema)
    plain = plainer(validator, has_sets="uniqueItems" in text)
    check = _checker(validator, finite="'number'" in text)
    if inner is str and not constrained:
        check = _same
    choices = None if members is None else Choices(members)
    read, accept = _reader(inner, choices, schema, check if constrained or choices is None else _same)
    if optional:
        read, accept = _nullable_reader(read), _nullable_accept(accept)
    textual = inner is str or _json_type(schema) == "string"
    write = _writer(plain, lists=inner is str, textual=textual)
    typed = check if mentions_types(annotation) else None
    shown = write if is_plain(annotation) else input_writer(plain, typed, lists=inner is str, textual=textual)
    return Codec(
        annotation=annotation,
        schema=schema if isinstance(schema, dict) else None,
        choices=choices,
        nullable=annotation in (Any, object) or admits_none(bare(annotation)),
        textual=textual,
        write=shown,
        typed=typed,
        show=_shower(write, read, check),
        read=read,
        plain=lambda value: value if type(value) is str else plain(value),
        accept=accept,
    )


def _same(value: Any) -> Any:
    return value


def _checker(validator: TypeAdapter[Any], *, finite: bool) -> Check:
    validate = validator.validator.validate_python
    from_json = validator.validator.validate_json
    serializer = validator.serializer

    def check(value: Any) -> Any:
        try:
            made = validate(value)
        except ValidationError as error:
            try:
                # A strict model takes dates, enums and tuples from JSON only.
                made = from_json(json_text(value))
            except Exception:  # noqa: BLE001 - as below; the first finding is the one that helps
                raise ValueProblem(why_invalid(error)) from None
        except Exception as error:  # a validator of the user's, which may raise anything
            raise ValueProblem(f"the type's own check failed: {type(error).__name__}: {error}") from error
        if finite:
            refuse_unfinite(serializer.to_python(made, mode="json", warnings=False))
        return made

    return check


def _reader(inner: Any, choices: Choices | None, schema: Any, check: Check) -> tuple[Parse, Check]:
    """How a text is read, and how a value of a JSON answer is."""
    if choices is not None:
        return _choice_reader(choices, check)
    if inner is str:
        return _text_reader(check)
    if inner in (bool, int, float):
        return _scalar_reader(_SCALARS[inner], check)
    kind = _json_type(schema)
    if kind == "string":
        return _string_reader(check)
    if inner in (Any, object) or str in union_arms(inner):
        return _json_reader(check, "")  # prose is text here, whatever it contains
    if is_custom(inner):
        return _type_reader(check)
    return _json_reader(check, {"array": "[", "object": "{"}.get(kind, "{["))


def _json_type(schema: Any) -> str:
    """The ``type`` of a JSON schema, that of ``X`` for ``X | None``; empty where it has none."""
    arms = schema.get("anyOf", [schema]) if isinstance(schema, dict) else []
    kinds = [arm.get("type", "") for arm in arms if arm.get("type") != "null"]
    return kinds[0] if len(kinds) == 1 else ""


def _choice_reader(choices: Choices, check: Check) -> tuple[Parse, Check]:
    def read(text: str) -> Any:
        return check(choices.parse(text))

    def accept(value: Any) -> Any:
        return check(choices.parse(value if isinstance(value, str) else json_text(value)))

    return (choices.parse if check is _same else read), accept


def _text_reader(check: Check) -> tuple[Parse, Check]:
    def accept(value: Any) -> Any:
        # Models leave out the quotes around a number even where text was asked for.
        return check(value if isinstance(value, str) else json_text(value))

    return check, accept


def _scalar_reader(scalar: Parse, check: Check) -> tuple[Parse, Check]:
    def read(text: str) -> Any:
        return check(scalar(text))

    def accept(value: Any) -> Any:
        return read(value) if isinstance(value, str) else check(value)

    return read, accept


def _boolean(text: str) -> bool:
    value = _TRUTH.get(unwrapped(text).casefold())
    if value is None:
        raise ValueProblem(f"{excerpt(text)} is neither true nor false")
    return value


def _integer(text: str) -> Any:
    if not _INTEGER.fullmatch(text):
        plain = unwrapped(text)
        if _THOUSANDS.fullmatch(plain):
            plain = plain.replace(",", "")
        if not _INTEGER.fullmatch(plain):
            # 4.0 is a whole number too; whether it is one is for the validator to say.
            return _float(text, "a whole number")
        text = plain
    if len(text) > MAX_DIGITS and len(text.lstrip("+-")) > MAX_DIGITS:
        raise ValueProblem(f"a whole number of {len(text)} digits is too long")
    return int(text)


def _float(text: str, expected: str = "a finite number") -> float:
    plain = unwrapped(text)
    if len(plain) > MAX_DIGITS * 2 or not _NUMBER.fullmatch(plain):
        raise ValueProblem(f"{excerpt(text)} is not {expected}")
    value = float(plain)
    if not math.isfinite(value):
        raise ValueProblem(f"{excerpt(text)} is too large for a number")
    return value


_SCALARS: Final[dict[Any, Parse]] = {bool: _boolean, int: _integer, float: _float}
_SIMPLE: Final = (str, *_SCALARS)


def _string_reader(check: Check) -> tuple[Parse, Check]:
    """For types that are strings in JSON: the text itself, or the text within quotes."""

    def read(text: str) -> Any:
        try:
            return check(text)
        except ValueProblem:
            plain = unwrapped(text)
            if plain == text:
                raise
            return check(plain)

    def accept(value: Any) -> Any:
        return read(value) if isinstance(value, str) else check(value)

    return read, accept


def _json_reader(check: Check, openers: str) -> tuple[Parse, Check]:
    def read(text: str) -> Any:
        try:
            value = loads(text, openers)
        except NotJSON as problem:
            if problem.refused:
                raise ValueProblem(problem.reason) from None
            reason = f"{problem.reason}; JSON was expected"
        else:
            try:
                return check(value)
            except ValueProblem as problem:
                reason = str(problem)
        try:
            return check(text)  # a type that takes text, or reads its own
        except ValueProblem:
            raise ValueProblem(reason) from None

    def accept(value: Any) -> Any:
        try:
            return check(value)
        except ValueProblem:
            if not isinstance(value, str):
                raise
        return read(value)

    return read, accept


def _type_reader(check: Check) -> tuple[Parse, Check]:
    """For types that say themselves what they are: JSON, else the text, as of an address."""

    def read(text: str) -> Any:
        try:
            value = loads(text)  # several calls may come as a bare list
        except NotJSON as problem:
            if problem.refused:
                raise ValueProblem(problem.reason) from None
            return check(text)
        return check(value)

    def accept(value: Any) -> Any:
        return read(value) if isinstance(value, str) else check(value)

    return read, accept


def _nullable_reader(read: Parse) -> Parse:
    def nullable(text: str) -> Any:
        if len(text) <= 4 and text.casefold() in ("", "null", "none"):
            return None
        if text[:1] == '"' == text[-1:]:
            inner = _quoted(text)
            if inner is not None and not _reads_as_itself(nullable, inner):
                return read(inner)
        return read(text)

    return nullable


def _quoted(text: str) -> str | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, str) else None


def _reads_as_itself(read: Parse, text: str) -> bool:
    try:
        return bool(read(text) == text)
    except ValueProblem:
        return False


def _nullable_accept(accept: Check) -> Check:
    def nullable(value: Any) -> Any:
        return None if value is None else accept(value)

    return nullable


def _writer(plain: Plain, *, lists: bool, textual: bool) -> Callable[[Any], str]:
    def write(value: Any) -> str:
        if isinstance(value, enum.Enum):
            return text_of(value)
        if isinstance(value, str):
            return value
        if lists and isinstance(value, (list, tuple)):
            return numbered(value, write)
        data = plain(value)
        return data if textual and isinstance(data, str) else json_text(data)

    return write


def _shower(write: Callable[[Any], str], read: Parse, check: Check) -> Callable[[Any], str]:
    def show(value: Any) -> str:
        if not isinstance(value, str) or isinstance(value, enum.Enum):
            return write(value)
        text = value.strip()
        # A string that would be read as another value of the type goes in quotes.
        if not _reads_as_itself(read, text) and _reads_as_itself(check, text):
            return json_text(text)
        return value

    return show
