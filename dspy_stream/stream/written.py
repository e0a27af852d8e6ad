"""What can be seen in code without running it: what it calls, and what it changes."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, Final

__all__ = ["CHANGING", "called_names", "changed_names", "functions_of", "is_library", "methods_changing"]

_LIBRARIES: Final = frozenset({"dspy_stream", "dspy", "pydantic", *sys.stdlib_module_names}) - {"__main__"}
_STARTS: Final = ("forward", "aforward", "__call__", "acall", "steps")
CHANGING: Final = frozenset(
    {
        *("append", "appendleft", "extend", "insert", "remove", "pop", "popitem", "clear", "sort", "reverse"),
        *("add", "discard", "update", "setdefault", "difference_update", "intersection_update"),
    }
)
_STORES: Final = frozenset({"STORE_ATTR", "DELETE_ATTR", "STORE_DEREF", "STORE_GLOBAL"})


def is_library(module: str | None) -> bool:
    """True for a module of this package, of DSPy or of Python: not one in which a user's code stands."""
    return (module or "").partition(".")[0] in _LIBRARIES


def called_names(code: CodeType) -> set[str]:
    """Names of globals and attributes that the code, and the code within it, looks up."""
    return {name for each in _all(code) for name in each.co_names}


@functools.lru_cache(maxsize=4096)
def changed_names(code: CodeType) -> frozenset[str]:
    """Names of attributes and variables that are set, or whose containers are changed by the code.

    Seen are ``x.a = ...``, ``x.a[k] = ...``, ``x.a.append(...)`` and the like, and the same of variables;
    what a helper does with a container that is given to it is not.
    """
    found: set[str] = set()
    for each in _all(code):
        before: Any = None
        starts: dict[Any, set[str]] = {}
        for step in dis.get_instructions(each):
            name = step.argval if isinstance(step.argval, str) else None
            if step.opname in _STORES and name is not None:
                found.add(name)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
                found |= starts.get(_start(step), set())
            elif step.opname.startswith("LOAD_") and name is not None:
                if name in CHANGING and step.opname in ("LOAD_ATTR", "LOAD_METHOD") and before:
                    found.add(before)
                starts.setdefault(_start(step), set()).add(name)
            before = name
    return frozenset(found)


def _start(step: dis.Instruction) -> tuple[Any, Any] | None:
    """Where the expression begins in its file; None before Python 3.11."""
    place = getattr(step, "positions", None)
    return None if place is None else (place.lineno, place.col_offset)


def _all(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all(constant)


def functions_of(value: Any) -> list[FunctionType]:
    """The functions behind what stands in a class: a method, static or not, or a property."""
    inner = [value, *(getattr(value, name, None) for name in ("__func__", "func", "fget", "fset", "fdel"))]
    kinds = (staticmethod, classmethod, property, functools.cached_property)
    return [fn for fn in (inner if isinstance(value, kinds) else [value]) if isinstance(fn, FunctionType)]


def methods_changing(kind: type) -> frozenset[str]:
    """Names of attributes that a call of such an object changes, as far as its class's own code shows."""
    methods: dict[str, list[FunctionType]] = {}
    for base in kind.__mro__:
        if not is_library(base.__module__):
            for name, value in vars(base).items():
                methods.setdefault(name, []).extend(functions_of(value))
    changed: set[str] = set()
    seen: set[str] = set(_STARTS)
    waiting = sorted(seen & set(methods))
    while waiting:
        for fn in methods[waiting.pop()]:
            changed |= changed_names(fn.__code__)
            further = {name for name in called_names(fn.__code__) if name in methods} - seen
            seen |= further
            waiting += sorted(further)
    return frozenset(changed)
