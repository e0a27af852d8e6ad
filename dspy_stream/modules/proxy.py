"""Stand-ins for values that are not known yet, while a ``forward`` is traced.

A proxy may be passed on to a predictor, or returned. Whatever else Python does with it would
depend on the data of a row, and stops the tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from dspy_stream.modules.module import Module
from dspy_stream.program import Prediction

__all__ = ["Input", "Output", "Value", "Whole", "described", "evaluated", "leaves", "template"]


class Stopped(BaseException):
    """A ``forward`` does something that depends on data.

    No ``Exception``, so that the traced code does not handle it.
    """


@dataclass(frozen=True, slots=True)
class Input:
    """A field of the row; ``default`` is a list of one default, or empty."""

    name: str
    default: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """A field of what a call returned."""

    call: int
    field: str


@dataclass(frozen=True, slots=True)
class Whole:
    """All that a call returned."""

    call: int


_set: Final = object.__setattr__
_get: Final = object.__getattribute__


class Value:
    """Stands for one value of a row: an input, or a field of a prediction."""

    __slots__ = ("_ref",)

    def __init__(self, ref: Input | Output | Whole) -> None:
        _set(self, "_ref", ref)

    def __getattribute__(self, name: str) -> Any:
        _refuse(self, f"reads the attribute {name!r} of")

    def __setattr__(self, name: str, _value: Any) -> NoReturn:
        _refuse(self, f"sets the attribute {name!r} of")


class PredictionValue(Value):
    """Stands for a prediction: its fields are values, by attribute and by item."""

    __slots__ = ("_known",)

    def __init__(self, ref: Whole, known: Sequence[str] | None) -> None:
        super().__init__(ref)
        _set(self, "_known", known)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or hasattr(Prediction, name):
            _refuse(self, f"uses {name!r} of")
        return _field(self, name)

    def __getitem__(self, name: Any) -> Any:
        if type(name) is not str:
            _refuse(self, "looks for an item that is not a field's name in")
        return _field(self, name)


def _field(prediction: PredictionValue, name: str) -> Value:
    known = _get(prediction, "_known")
    if known is not None and name not in known:
        _refuse(prediction, f"reads the field {name!r}, which is not among {', '.join(known)}, of")
    ref = _get(prediction, "_ref")
    return Value(Output(ref.call, name))


def _refuse(value: Value, does: str) -> NoReturn:
    raise Stopped(f"{does} {described(_get(value, '_ref'))}")


def described(ref: Any) -> str:
    """What a proxy stands for, for a reader."""
    if isinstance(ref, Input):
        return f"the input {ref.name!r}"
    return f"the output {ref.field!r} of a call" if isinstance(ref, Output) else "what a call returned"


_DOES: Final = {
    "compares": "eq ne lt le gt ge",
    "computes with": "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow "
    "matmul rmatmul and rand or ror xor rxor lshift rlshift rshift rrshift neg pos abs invert divmod rdivmod "
    "round",
    "makes a number of": "int float complex index",
    "makes text of": "str repr format bytes fspath",
    "decides by": "bool",
    "goes through": "iter next reversed len length_hint contains",
    "takes an item of": "getitem",
    "changes": "setitem delitem iadd isub imul delattr",
    "calls": "call",
    "uses as a key": "hash",
    "enters": "enter exit",
    "awaits": "await aiter",
    "copies": "copy deepcopy reduce reduce_ex",
}


def _refusing(does: str) -> Callable[..., NoReturn]:
    def refuse(self: Value, *_args: Any, **_kwargs: Any) -> NoReturn:
        _refuse(self, does)

    return refuse


for _does, _names in _DOES.items():
    for _name in _names.split():
        for _kind in (Value, PredictionValue):
            if f"__{_name}__" not in _kind.__dict__:
                setattr(_kind, f"__{_name}__", _refusing(_does))


# ------------------------------------------------------------------------ values and their templates


def template(value: Any, *, whole: bool = False) -> Any:
    """A value with what its proxies stand for in their places; lists, tuples and dicts are gone through.

    Raises:
        Stopped: a whole prediction is passed on, unless ``whole`` allows it.
    """
    kind = type(value)
    if kind is PredictionValue:
        if not whole:
            _refuse(value, "passes on the whole of")
        return _get(value, "_ref")
    if kind is Value:
        return _get(value, "_ref")
    if kind in (list, tuple):
        return kind(template(item) for item in value)
    if kind is dict:
        return {key: template(item) for key, item in value.items()}
    if kind in (Prediction, set, frozenset) or isinstance(value, Module):
        for held in value.values() if kind is Prediction else value if kind in (set, frozenset) else ():
            if type(held) in (Value, PredictionValue):
                _refuse(held, f"puts into a {kind.__name__}")
    return value


def leaves(made: Any) -> Iterator[Input | Output | Whole]:
    """What a template stands for, piece by piece."""
    if isinstance(made, (Input, Output, Whole)):
        yield made
    elif type(made) in (list, tuple):
        for item in made:
            yield from leaves(item)
    elif type(made) is dict:
        for item in made.values():
            yield from leaves(item)


def evaluated(made: Any, look: Callable[[Any], Any]) -> Any:
    """A template with values in its places."""
    kind = type(made)
    if kind in (Input, Output, Whole):
        return look(made)
    if kind in (list, tuple):
        return kind(evaluated(item, look) for item in made)
    if kind is dict:
        return {key: evaluated(item, look) for key, item in made.items()}
    return made


def looked_up(ref: Input, record: Mapping[str, Any]) -> Any:
    """An input's value, or its default."""
    if ref.default and ref.name not in record:
        return ref.default[0]
    return record[ref.name]
