"""The text of one field: how its value is written, and how it is read back.

A :class:`Codec` is compiled once per field, so that per row only the work that depends on the
value is left. How a text is read, by type:

- ``str``: as it is. In marker form the outer blanks were stripped before.
- ``bool``: true, false, yes, no, on, off, in any case. ``int``: digits. ``float``: a finite number.
  ``Decimal``: the same with every digit, wherever in a type it stands. Commas may separate thousands.
  Quotes, backticks, bold and a final full stop around them are ignored.
- ``Literal``, ``Enum``: see :class:`~dspy_stream.adapters.choices.Choices`; within other types as well.
- types whose JSON form is a string (dates, UUID, ``bytes``, constrained strings): the text.
- everything else: tolerant JSON (:mod:`dspy_stream.adapters.parse`), then pydantic; the bare text
  where it is no JSON. Where a set is meant, it may be written as ``{1, 2}``.
- ``X | None``: ``null``, ``None`` and the empty text are None; otherwise as X. A string that would
  be read as something else stands in double quotes.

Whatever is read is validated with the field's constraints. NaN and infinities are never accepted.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from dspy_stream.adapters.blocks import Pieces
from dspy_stream.adapters.choices import Choices, mended, text_of
from dspy_stream.adapters.inputs import input_writer
from dspy_stream.adapters.parse import NotJSON, items, loads
from dspy_stream.adapters.problem import ValueProblem, unwrapped, why_invalid
from dspy_stream.adapters.scalars import SCALARS, SIMPLE
from dspy_stream.adapters.shape import (
    bare,
    choices_of,
    is_custom,
    is_plain,
    mentions_types,
    parts_of,
    union_arms,
    without_none,
)
from dspy_stream.adapters.write import Plain, exact_json, json_text, numbered, plainer, refuse_unfinite
from dspy_stream.program.annotations import admits_none, schema_of

__all__ = ["Codec", "codec_for"]

Parse = Callable[[str], Any]
Check = Callable[[Any], Any]

_ITEM: Final = frozenset("{\"'-0123456789")  # what an item may begin with

# As Python writes a set: {1, 2}, set(), frozenset({1}).
_SET: Final = re.compile(r"\s*(?:\{([^:]*)\}|(?:frozen)?set\(\s*(?:\{(.*)\})?\s*\))\s*", re.DOTALL)


@dataclass(frozen=True, eq=False, slots=True)
class Codec:
    """How values of one field travel.

    Attributes:
        annotation: the field's type.
        schema: its JSON schema; None where it has none, or none is needed.
        choices: the allowed values of a Literal or Enum; else None.
        nullable: whether None is a value of the type.
        exact: whether numbers within it have to keep their digits, as Decimals.
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
    exact: bool
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
    simple = members is not None or inner in SIMPLE
    schema = None if simple else schema_of(validator, annotation)
    text = str(schema)
    parts = () if simple else tuple(parts_of(inner))
    exact = Decimal in parts
    plain = plainer(validator, has_sets="uniqueItems" in text)
    inside = [Choices(values) for part in parts if (values := choices_of(part)) is not None]
    check = _checker(validator, inside, finite="'number'" in text)
    if inner is str and not constrained:
        check = _same
    choices = None if members is None else Choices(members)
    read, accept = _reader(inner, choices, schema, check if constrained or choices is None else _same, exact)
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
        exact=exact,
        textual=textual,
        write=shown,
        typed=typed,
        show=_shower(write, read, check, textual=textual),
        read=read,
        plain=lambda value: value if type(value) is str else plain(value),
        accept=accept,
    )


def _same(value: Any) -> Any:
    return value


def _checker(validator: TypeAdapter[Any], inside: Sequence[Choices], *, finite: bool) -> Check:
    validate = validator.validator.validate_python
    from_json = validator.validator.validate_json
    serializer = validator.serializer

    def second(value: Any, error: ValidationError) -> Any:
        try:
            # A strict model takes dates, enums and tuples from JSON only.
            return from_json(exact_json(value))
        except Exception:  # noqa: BLE001, S110 - as below; the first finding is the one that helps
            pass
        try:
            return validate(mended(value, error, inside))
        except Exception:  # noqa: BLE001 - the same
            raise ValueProblem(why_invalid(error)) from None

    def check(value: Any) -> Any:
        try:
            made = validate(value)
        except ValidationError as error:
            made = second(value, error)
        except Exception as error:  # a validator of the user's, which may raise anything
            raise ValueProblem(f"the type's own check failed: {type(error).__name__}: {error}") from error
        if finite:
            refuse_unfinite(serializer.to_python(made, mode="json", warnings=False))
        return made

    return check


def _reader(
    inner: Any, choices: Choices | None, schema: Any, check: Check, exact: bool
) -> tuple[Parse, Check]:
    """How a text is read, and how a value of a JSON answer is."""
    if choices is not None:
        return _choice_reader(choices, check)
    if inner is str:
        return _text_reader(check)
    if inner in tuple(SCALARS):  # it need not have a hash
        return _scalar_reader(SCALARS[inner], check)
    kind = _json_type(schema)
    if kind == "string":
        return _string_reader(check)
    if inner in (Any, object) or str in union_arms(inner):
        return _json_reader(check, "", exact)  # prose is text here, whatever it contains
    if is_custom(inner):
        return _type_reader(check)
    reader = _json_reader(check, {"array": "[", "object": "{"}.get(kind, "{["), exact)
    if kind == "array":
        reader = _array_reader(*reader, check, exact)
    return _set_reader(*reader) if _is_set(schema) else reader


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
        if isinstance(value, Decimal):
            return check(str(value))
        return check(value if isinstance(value, str) else json_text(value))

    return check, accept


def _scalar_reader(scalar: Parse, check: Check) -> tuple[Parse, Check]:
    def read(text: str) -> Any:
        return check(scalar(text))

    def accept(value: Any) -> Any:
        return read(value) if isinstance(value, str) else check(value)

    return read, accept


def _string_reader(check: Check) -> tuple[Parse, Check]:
    """For types that are strings in JSON: the text itself, or the text within quotes."""

    def read(text: str) -> Any:
        if text[:1] == '"' == text[-1:] and (inner := _quoted(text)) is not None:
            text = inner
        try:
            return check(text)
        except ValueProblem:
            plain = unwrapped(text)
            if plain.isdecimal():
                return check(int(plain))  # seconds, as pydantic reads a number
            if plain == text:
                raise
            return check(plain)

    def accept(value: Any) -> Any:
        return read(value) if isinstance(value, str) else check(value)

    return read, accept


def _json_reader(check: Check, openers: str, exact: bool) -> tuple[Parse, Check]:
    def read(text: str) -> Any:
        try:
            value = loads(text, openers, exact=exact)
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


def _array_reader(read: Parse, accept: Check, check: Check, exact: bool) -> tuple[Parse, Check]:
    """The same, for items without the brackets around them as well."""

    def read_items(text: str) -> Any:
        if text[:1] in _ITEM and "," in text:
            try:
                return check(items(text, exact=exact))
            except (NotJSON, ValueProblem):
                pass  # what is wrong with it is said of the whole text
        return read(text)

    return read_items, lambda value: read_items(value) if isinstance(value, str) else accept(value)


def _is_set(schema: Any) -> bool:
    arms = schema.get("anyOf", [schema]) if isinstance(schema, dict) else []
    return any(arm.get("type") == "array" and arm.get("uniqueItems") for arm in arms)


def _set_reader(read_list: Parse, accept: Check) -> tuple[Parse, Check]:
    """The same, for braces around the items as well."""

    def read(text: str) -> Any:
        braces = _SET.fullmatch(text)
        return read_list(f"[{braces[1] or braces[2] or ''}]" if braces else text)

    return read, lambda value: read(value) if isinstance(value, str) else accept(value)


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


def _shower(write: Callable[[Any], str], read: Parse, check: Check, *, textual: bool) -> Callable[[Any], str]:
    def show(value: Any) -> str:
        if not isinstance(value, str) or isinstance(value, enum.Enum):
            written = write(value)
            # Quotes around a text are taken for JSON's.
            return json_text(written) if textual and _quoted(written) is not None else written
        text = value.strip()
        # A string that would be read as another value of the type goes in quotes.
        if not _reads_as_itself(read, text) and _reads_as_itself(check, text):
            return json_text(text)
        return value

    return show
