"""Values in a form that JSON holds and that says what they were, and back again. Pure.

What JSON gives back as it was stays as it is. Anything else becomes an object with a mark: tuples, sets,
bytes, dates, dicts whose names are no text; pictures and their like by a closed table
(:mod:`dspy_stream.program.types`); models, dataclasses, enums and named tuples by the name of their
class, which is looked up among those that the program itself names
(:mod:`dspy_stream.program.kinds`). They are put together from their fields: no code of theirs runs,
nothing is validated, imported or opened.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson
from pydantic import BaseModel

from dspy_stream.program.example import Example
from dspy_stream.program.kinds import kind_named, name_of
from dspy_stream.program.prediction import Prediction
from dspy_stream.program.types import NAMED, Code
from dspy_stream.program.types.base import Text
from dspy_stream.program.types.code import of_language

__all__ = ["DEEPEST", "MARK", "Marker", "Unmarker", "formless", "is_plain", "json_form"]

DEEPEST: Final = 400
"""Levels to which a value may be nested."""

MARK: Final = "\0type"
_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_SCALARS: Final = frozenset({str, int, bool, type(None)})
_FLOATS: Final = frozenset({float})
_TEXTS: Final = frozenset({str})
_LONGEST: Final = 14_000  # bits of a number that every Python writes in decimal


def is_plain(value: Any) -> bool:
    """True for what JSON gives back as it was: exactly texts, finite numbers, lists, dicts by text.

    >>> [is_plain(value) for value in ([1, {"a": None}], (1,), float("nan"), {1: 2}, {"\\0type": "x"})]
    [True, False, False, False, True]
    """
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is list:
        return _are_plain(value)
    return kind is dict and set(map(type, value)) <= _TEXTS and _are_plain(value.values())


def _are_plain(values: Collection[Any]) -> bool:
    kinds = set(map(type, values))  # at the speed of C: there may be thousands
    if kinds <= _SCALARS:
        return True
    if kinds == _FLOATS:
        return math.isfinite(sum(values)) or all(map(math.isfinite, values))
    return all(map(is_plain, values))


class _Coder(NamedTuple):
    """How values of one class are told, as what can be marked again, and made of it."""

    name: str
    tell: Callable[[Any], Any]
    make: Callable[[Any], Any]


def _latin(data: Any) -> str:
    return bytes(data).decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


_CODERS: Final[Mapping[type, _Coder]] = {
    tuple: _Coder("tuple", list, tuple),
    set: _Coder("set", list, set),
    frozenset: _Coder("frozenset", list, frozenset),
    deque: _Coder("deque", lambda v: [list(v), v.maxlen], lambda v: deque(*v)),
    OrderedDict: _Coder("OrderedDict", lambda v: [list(pair) for pair in v.items()], OrderedDict),
    bytes: _Coder("bytes", _latin, _bytes),
    bytearray: _Coder("bytearray", _latin, lambda v: bytearray(_bytes(v))),
    datetime: _Coder("datetime", datetime.isoformat, datetime.fromisoformat),
    date: _Coder("date", date.isoformat, date.fromisoformat),
    time: _Coder("time", time.isoformat, time.fromisoformat),
    timedelta: _Coder(
        "timedelta", lambda v: [v.days, v.seconds, v.microseconds], lambda v: timedelta(v[0], v[1], v[2])
    ),
    Decimal: _Coder("Decimal", str, Decimal),
    Fraction: _Coder("Fraction", lambda v: [v.numerator, v.denominator], lambda v: Fraction(v[0], v[1])),
    complex: _Coder("complex", lambda v: [v.real, v.imag], lambda v: complex(*v)),
    UUID: _Coder("UUID", str, UUID),
    type(Path()): _Coder("Path", str, Path),
    PurePosixPath: _Coder("PurePosixPath", str, PurePosixPath),
}
_BY_NAME: Final = {coder.name: coder for coder in _CODERS.values()}


def _plain(value: Any) -> Any:
    """What stands for a value of a class that is not known here; for :func:`json_form`."""
    if isinstance(value, BaseModel):
        try:
            return value.model_dump(mode="json")
        except ValueError:  # it holds what pydantic has no JSON for
            return dict(value)
    if isinstance(value, Set):
        return sorted(value, key=str)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    return str(value)


def json_form(value: Any) -> bytes:
    """The value as JSON, by what stands for it.

    Raises:
        TypeError: it has no such form.
    """
    return orjson.dumps(value, default=_plain, option=_OPTIONS)


def formless(value: Any) -> type | None:
    """The class of a value in it for which nothing stands but its address; None where there is none."""
    found: list[type] = []

    def look(inner: Any) -> Any:
        made = _plain(inner)
        if type(made) is str and _ADDRESS.fullmatch(made) and made == str(inner):
            found.append(type(inner))
        return made

    try:
        orjson.dumps(value, default=look, option=_OPTIONS)
    except TypeError:  # such as a number of 70 bits; what was found before it counts
        pass
    return found[0] if found else None


_ADDRESS: Final = re.compile(r"<.* at 0x[0-9a-fA-F]+>", re.DOTALL)


class _Unknown(Exception):
    """A value of a class that cannot be marked."""


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # it holds halves of characters, which JSON may put together
        return False
    return True


def _halves(value: str) -> str:
    return value.encode("utf-8", "surrogatepass").decode("latin-1")


def _text_name(kind: type) -> str:
    if NAMED.get(kind.__name__) is kind:
        return str(kind.__name__)
    if issubclass(kind, Code) and of_language(kind.language) is kind:
        return f"Code {kind.language}"
    return name_of(kind)


class Marker:
    """Tells values. ``lost`` is set where one of a class that is not known is told by its JSON form."""

    __slots__ = ("lost",)

    def __init__(self) -> None:
        self.lost = False

    def told(self, value: Any, depth: int = 0) -> Any:
        """The value as dicts by text, lists, texts and numbers.

        Raises:
            TypeError: it is nested too deep.
        """
        if depth > DEEPEST:
            raise TypeError(f"it is nested beyond {DEEPEST} levels")
        kind = type(value)
        if kind is bool or value is None:
            return value
        if kind is str:
            return value if _is_text(value) else {MARK: "halves", "value": _halves(value)}
        if kind is int:
            return value if value.bit_length() < _LONGEST else {MARK: "int", "value": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {MARK: "float", "value": repr(value)}
        if kind is list:
            return [self.told(item, depth + 1) for item in value]
        if kind is dict:
            return self._dict(value, depth)
        coder = _CODERS.get(kind)
        if coder is not None:
            return {MARK: coder.name, "value": self.told(coder.tell(value), depth + 1)}
        if isinstance(value, Text):
            return {MARK: "text", "of": _text_name(kind), "value": str.__str__(value)}
        if NAMED.get(kind.__name__) is kind:
            return {MARK: kind.__name__, "value": value.model_dump(mode="json")}
        try:
            return self._of_class(value, kind, depth)
        except _Unknown:
            return self._stand_in(value, depth)

    def _dict(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        if set(map(type, value)) <= _TEXTS and MARK not in value and all(map(_is_text, value)):
            return {name: self.told(item, depth + 1) for name, item in value.items()}
        pairs = [[self.told(name, depth + 1), self.told(item, depth + 1)] for name, item in value.items()]
        return {MARK: "dict", "value": pairs}

    def _of_class(self, value: Any, kind: type, depth: int) -> Any:
        if isinstance(value, Enum):
            told = [value.name, self._whole(value.value, depth)]
            return {MARK: "enum", "of": name_of(kind), "value": told}
        if kind in (Example, Prediction):
            inputs = sorted(value._input_keys) if value._input_keys is not None else None
            return {MARK: kind.__name__, "value": [self._whole(value._store, depth), inputs]}
        if isinstance(value, BaseModel):
            return {MARK: "model", "of": name_of(kind), "value": self._whole(_of_model(value), depth)}
        if dataclasses.is_dataclass(kind):
            return {MARK: "dataclass", "of": name_of(kind), "value": self._whole(_of_dataclass(value), depth)}
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return {MARK: "namedtuple", "of": name_of(kind), "value": self._whole(list(value), depth)}
        for base, plain in _BASES:  # such as a text of a class of its own, which is equal to that text
            if isinstance(value, base):
                return self.told(plain(value), depth)
        raise _Unknown

    def _whole(self, value: Any, depth: int) -> Any:
        """What is inside a value that is put together from it, which must be told whole."""
        inner = Marker()
        told = inner.told(value, depth + 1)
        if inner.lost:
            raise _Unknown
        return told

    def _stand_in(self, value: Any, depth: int) -> Any:
        self.lost = True
        try:
            return orjson.loads(json_form(value))
        except TypeError:  # it holds what that does not take
            return self.told(_plain(value), depth + 1)


_BASES: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes),
    (dict, lambda value: dict(value.items())),
    (list, lambda value: list(value)),
    (tuple, lambda value: tuple(value)),
    (set, set),
    (frozenset, frozenset),
)


def _of_model(value: BaseModel) -> list[Any]:
    kept = {name: item for name, item in vars(value).items() if name in type(value).model_fields}
    private = value.__pydantic_private__
    return [kept, value.__pydantic_extra__, value.__pydantic_fields_set__, private]


def _only_fields(kind: Any) -> bool:
    """True for a dataclass whose objects nothing but their fields make."""
    return dataclasses.is_dataclass(kind) and kind.__new__ is object.__new__


def _of_dataclass(value: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(value)]
    kind = type(value)
    if not _only_fields(kind) or set(getattr(value, "__dict__", ())) - set(names):
        raise _Unknown  # there is more to it than its fields
    try:
        return {name: getattr(value, name) for name in names}
    except AttributeError:
        raise _Unknown from None


class Unmarker:
    """Makes values of what a :class:`Marker` told. ``missed``: a class was not found by its name."""

    __slots__ = ("missed",)

    def __init__(self) -> None:
        self.missed = False

    def made(self, told: Any) -> Any:
        """The value again."""
        if isinstance(told, list):
            return [self.made(item) for item in told]
        if not isinstance(told, dict):
            return told
        mark = told.get(MARK)
        if mark is None:
            return {name: self.made(item) for name, item in told.items()}
        value = told["value"]
        if mark == "dict":
            return {self.made(name): self.made(item) for name, item in value}
        if mark in ("float", "int"):
            return float(value) if mark == "float" else int(value, 16)
        if mark == "halves":
            return value.encode("latin-1").decode("utf-8", "surrogatepass")
        coder = _BY_NAME.get(mark)
        if coder is not None:
            return coder.make(self.made(value))
        if mark == "text":
            return self._text(told["of"], value)
        if mark in NAMED:
            return NAMED[mark].model_validate(value)
        if mark in ("Example", "Prediction"):
            return _example(mark, *self.made(value))
        return self._of_class(mark, told["of"], self.made(value))

    def _of_class(self, mark: str, name: str, value: Any) -> Any:
        kind = kind_named(name)
        if kind is None or not issubclass(kind, _CLASSES[mark]):
            self.missed = True
            return _without_class(mark, value)
        if mark == "enum":
            return self._member(kind, *value)
        if mark == "namedtuple":
            return tuple.__new__(kind, value)
        if mark == "dataclass" and not _only_fields(kind):
            self.missed = True
            return value
        made = object.__new__(kind)
        if mark == "model":
            fields, extra, given, private = value
            state = {"__dict__": fields, "__pydantic_extra__": extra, "__pydantic_fields_set__": given}
            BaseModel.__setstate__(made, {**state, "__pydantic_private__": private})
        else:
            for field, item in value.items():
                object.__setattr__(made, field, item)
        return made

    def _text(self, name: str, text: str) -> str:
        own, _, language = name.partition(" ")
        kind: Any = of_language(language) if language else NAMED.get(own) or kind_named(own)
        if kind is None or not issubclass(kind, Text):
            self.missed = True
            return text
        made: str = str.__new__(kind, text)
        return made

    def _member(self, kind: Any, name: str | None, value: Any) -> Any:
        if name in kind.__members__:
            return kind[name]
        if issubclass(kind, Flag):  # several at once have no name of their own
            return kind(value)
        self.missed = True
        return value


_CLASSES: Final[Mapping[str, type]] = {
    "enum": Enum,
    "model": BaseModel,
    "namedtuple": tuple,
    "dataclass": object,
}


def _without_class(mark: str, value: Any) -> Any:
    if mark == "model":
        return {**value[0], **(value[1] or {})}
    return value[1] if mark == "enum" else tuple(value) if mark == "namedtuple" else value


def _example(mark: str, store: dict[str, Any], inputs: list[str] | None) -> Any:
    made: Any = Prediction.of(store) if mark == "Prediction" else Example(store)
    if inputs is not None:
        made._input_keys = frozenset(inputs)
    return made
