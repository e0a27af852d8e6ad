"""Digests of the user's functions and programs: other after an edit, the same in every process.

What counts is code and plain public state. What calls change by themselves does not, as far as it can be
seen in the code: an attribute that ``forward`` sets, a captured list that it appends to. Names with an
underscore never count, nor do positions, addresses and file names; an object whose state cannot be read
counts by its type. The values of a file's globals do not count, its functions that are called do.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

import orjson

from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.program.types import Tool
from dspy_stream.stream.written import (
    CHANGING,
    called_names,
    changed_names,
    functions_of,
    is_library,
    methods_changing,
)

__all__ = ["class_digest", "code_digest", "composed", "module_digest", "value_digest"]

_DEPTH: Final = 16
_PLAIN: Final = (str, int, float, bool, bytes, complex, type(None))
_GETTERS: Final = (operator.itemgetter, operator.attrgetter, operator.methodcaller)
_LEAVES: Final = (*_PLAIN, enum.Enum)
_CONTAINERS: Final = (list, tuple, dict, set, frozenset)
# Counted as parameters of predictors, or kept about calls.
_ELSEWHERE: Final = frozenset({"signature", "config", "stage", "lm", "demos", "traces", "train", "history"})
# Of modules of this package and of DSPy: how they work, which decides no answer.
_MANNER: Final = frozenset(
    {"callbacks", "caching", "batch_size", "isolation", "threads", "num_threads", "verbose", "program"}
)


def code_digest(fn: Any) -> str:
    """A digest of what a callable does: its code, its defaults, what it has captured, its public state.

    Functions of its own file that it calls count with it.
    """
    return _Reader().called(fn)


def class_digest(kind: type) -> str | None:
    """A digest of a class's own code and plain settings; None where it is all of a library's."""
    made = _Reader().own(kind)
    return _hashed(made) if made else None


def value_digest(value: Any) -> str:
    """A digest of any value: plain ones and what holds them as they are, others by their type."""
    return _hashed(_Reader().value(value))


def module_digest(module: Module) -> str:
    """A digest of a program: predictors and their parameters, settings, and the code that joins them.

    Calling the program does not change it.
    """
    return _Reader().module(module)


class _Reader:
    """Reads one callable or program; remembers what it has read, so that it ends and reads nothing twice."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[Any, str]] = {}  # with the object, so that its id stays its own
        self._depth = 0

    def _once(self, value: Any, read: Any) -> str:
        known = self._read.get(id(value))
        if known is not None:
            return known[1]
        if self._depth >= _DEPTH:
            return _type(value)
        self._read[id(value)] = (value, _type(value))  # for whoever comes back to it
        self._depth += 1
        try:
            made = _hashed(read(value))
        finally:
            self._depth -= 1
        self._read[id(value)] = (value, made)
        return made

    # -------------------------------------------------------------------------------- callables

    def called(self, fn: Any) -> str:
        """Any callable."""
        if isinstance(fn, Module):
            return self.module(fn)
        if isinstance(fn, MethodType):  # made anew at each look, and so never one to be remembered
            return _hashed(["method", self.called(fn.__func__), self.value(fn.__self__)])
        return self._once(fn, self._called)

    def _called(self, fn: Any) -> Any:
        if isinstance(fn, FunctionType):
            return self._function(fn)
        if isinstance(fn, functools.partial):
            return ["partial", self.called(fn.func), self.value(fn.args), self.value(fn.keywords)]
        if isinstance(fn, type):
            return [_named(fn), self.own(fn)]
        if isinstance(fn, _GETTERS):
            return [_type(fn), self.value(fn.__reduce__()[1])]
        name = _own_name(fn)
        inner = _attributes(fn).get("__wrapped__")  # such as what functools.cache has
        made = [_type(fn), name]
        made.append(self.called(inner) if callable(inner) else None)
        if is_library(type(fn).__module__) and name is not None:  # built in, or a method of such a thing
            changing = name.rpartition(".")[2] in CHANGING
            return [*made, None if changing else self.value(getattr(fn, "__self__", None))]
        return [*made, self.own(type(fn)), self.state(fn)]

    def _function(self, fn: FunctionType) -> Any:
        code = fn.__code__
        changed = changed_names(code)
        takes = code.co_varnames[: code.co_argcount]
        defaults = fn.__defaults__ or ()
        given = dict(zip(takes[len(takes) - len(defaults) :], defaults, strict=False))
        given.update(fn.__kwdefaults__ or {})
        captured = dict(zip(code.co_freevars, map(_content, fn.__closure__ or ()), strict=True))
        helpers = {} if is_library(fn.__module__) else _helpers(fn)
        return [
            fn.__qualname__,
            _code(code),
            self._settings(given, changed),
            self._settings(captured, changed),
            {name: self.called(helper) for name, helper in helpers.items()},
        ]

    def own(self, kind: type) -> dict[str, Any]:
        """The code and the plain settings of a class and of those above it that are no library's."""
        changed = methods_changing(kind)
        made: dict[str, Any] = {}
        for base in kind.__mro__:
            if is_library(base.__module__):
                continue
            code = {
                name: [self.called(fn) for fn in functions_of(value)]
                for name, value in vars(base).items()
                if functions_of(value)
            }
            rest = {name: value for name, value in vars(base).items() if _is_setting(name, value)}
            made[_named(base)] = [code, self._settings(rest, changed)]
        return made

    # ----------------------------------------------------------------------------------- values

    def state(self, thing: Any, skipped: Iterable[str] = ()) -> dict[str, Any]:
        """Public attributes of an object."""
        changed = methods_changing(type(thing))
        found = {
            name: value
            for name, value in _attributes(thing).items()
            if not name.startswith("_") and name not in skipped
        }
        return self._settings(found, changed)

    def _settings(self, values: Mapping[str, Any], changed: Iterable[str]) -> dict[str, Any]:
        return {name: "changes" if name in changed else self.value(value) for name, value in values.items()}

    def value(self, value: Any) -> Any:
        """Any value, as JSON."""
        if isinstance(value, enum.Enum):
            return [_type(value), value.name]
        if isinstance(value, int):  # in hexadecimal, which is written whatever its size
            return [_type(value), f"{value:x}"]
        if isinstance(value, _PLAIN):
            return [_type(value), repr(value)]
        if isinstance(value, _CONTAINERS):
            return self._once(value, self._container)
        if isinstance(value, Module):
            return self.module(value)
        if isinstance(value, re.Pattern):
            return ["pattern", self.value(value.pattern), value.flags]
        if _is_model(value):
            return [_type(value), value.identity()]
        if isinstance(value, type):
            return ["type", _named(value)]
        if isinstance(value, Tool) or (callable(value) and not _is_annotation(value)):
            return self.called(value)
        if not is_library(type(value).__module__) and _is_record(value):
            return self._once(value, lambda record: [_type(record), self.state(record)])
        return _type(value)

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict):
            pairs = [
                [self.value(key), self.value(item)] for key, item in value.items() if not _is_opaque(item)
            ]
            return [_type(value), sorted(pairs, key=_json)]
        items = [item for item in value if not _is_opaque(item)]
        if isinstance(value, (set, frozenset)):  # in an order of each process's own
            read = [self.value(item) if isinstance(item, _LEAVES) else _type(item) for item in items]
            return [_type(value), sorted(read, key=_json)]
        return [_type(value), [self.value(item) for item in items]]

    # --------------------------------------------------------------------------------- programs

    def module(self, module: Module) -> str:
        """A program."""
        return self._once(module, self._module)

    def _module(self, module: Module) -> Any:
        made: list[Any] = [type(module).__qualname__]
        parts = list(module.named_sub_modules())
        predictors = {name: part for name, part in parts if isinstance(part, Predict)}
        for name, predictor in {**predictors, **dict(module.named_predictors())}.items():
            parameters = predictor.current_parameters()
            lm = predictor.lm.identity() if predictor.lm is not None else None
            made.append([name, predictor.signature.digest(), parameters.digest(), lm])
        for name, part in parts:
            made.append([name, *self._part(part)])
            composition = getattr(part, "composition", None)
            if composition is not None:
                made.append(self.composed(composition()))
        return made

    def _part(self, part: Any) -> Any:
        kind = type(part)
        joins = [getattr(kind, name, None) for name in ("forward", "aforward")]
        code = [self.called(fn) for fn in joins if callable(fn)]
        skipped = _ELSEWHERE | _MANNER if is_library(kind.__module__) else _ELSEWHERE | {"callbacks"}
        return [code, self.own(kind), self.state(part, skipped)]

    def composed(self, value: Any) -> Any:
        """How parts are put together, with the digests of the functions that decide."""
        if isinstance(value, (list, tuple)):
            return [self.composed(item) for item in value]
        if isinstance(value, Mapping):
            return {str(key): self.composed(item) for key, item in value.items()}
        return self.called(value) if callable(value) else value


def composed(value: Any) -> Any:
    """What a module's ``composition`` says, as JSON."""
    return _Reader().composed(value)


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=_type)


def _hashed(value: Any) -> str:
    return hashlib.sha256(_json(value)).hexdigest()


def _code(code: CodeType) -> str:
    state = hashlib.sha256()
    _mix(state, code)
    return state.hexdigest()


def _mix(state: Any, code: CodeType) -> None:
    state.update(code.co_code)
    state.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _mix(state, constant)
        elif isinstance(constant, frozenset):
            state.update(repr(sorted(map(repr, constant))).encode())
        else:
            state.update(repr(constant).encode())


def _helpers(fn: FunctionType) -> dict[str, FunctionType]:
    found = {name: fn.__globals__.get(name) for name in sorted(called_names(fn.__code__))}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, FunctionType) and value.__module__ == fn.__module__
    }


def _own_name(fn: Any) -> str | None:
    try:
        name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None)
    except Exception:  # noqa: BLE001 - whatever a user's __getattr__ raises
        return None
    return name if isinstance(name, str) else None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _attributes(thing: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _slots(type(thing)):
        try:
            found[name] = object.__getattribute__(thing, name)
        except AttributeError:  # noqa: PERF203 - not set
            continue
    try:
        found.update(vars(thing))
    except TypeError:  # it has slots only, or is built in
        pass
    return {name: value for name, value in found.items() if isinstance(name, str)}


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else tuple(slots)


def _is_setting(name: str, value: Any) -> bool:
    return not name.startswith("_") and isinstance(value, (*_PLAIN, *_CONTAINERS))


def _is_opaque(value: Any) -> bool:
    """True for a library's object that nothing can be read of, such as a lock or a running job."""
    readable = (*_LEAVES, *_CONTAINERS, re.Pattern)
    return not isinstance(value, readable) and not callable(value) and is_library(type(value).__module__)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or hasattr(type(value), "model_fields")


def _is_model(value: Any) -> bool:
    return not isinstance(value, type) and all(
        callable(getattr(type(value), name, None)) for name in ("connect", "identity")
    )


def _is_annotation(value: Any) -> bool:
    return type(value).__module__ in ("types", "typing")  # such as list[str], which can be called


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _type(value: Any) -> str:
    return _named(type(value))
