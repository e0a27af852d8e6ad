"""The classes that a running program names: in its signatures, its annotations, the files of its modules.

Rows that come back from a worker process or a snapshot name the classes of their values. A name is
looked up here and nowhere else: what is found was put here by the program that runs, never by data.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import threading
import typing
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from pydantic import BaseModel

from dspy_stream.program.types.base import Text

__all__ = ["kind_named", "learn", "learn_code", "name_of"]

_known: Final[WeakValueDictionary[str, type]] = WeakValueDictionary()
_files: Final[set[str]] = set()
_lock: Final = threading.Lock()


def name_of(kind: type) -> str:
    """The name under which a class is told: the same in a script, in its workers, and run by the command.

    >>> class Place: ...
    >>> name_of(Place).endswith(":Place")
    True
    """
    home = kind.__module__
    return f"{_script() if home == '__main__' else home}:{kind.__qualname__}"


def _script() -> str:
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:  # it was started by `python -m`
        return str(spec.name)
    return f"flow_{Path(file).stem}" if file is not None else "__main__"  # as files of flows are called


def kind_named(name: str) -> Any:
    """The class of this name that the program has named; None where it has named none."""
    return _known.get(name)


def learn(annotations: Iterable[Any]) -> None:
    """Note the classes that annotations name, and those that their fields name in turn."""
    waiting, seen = list(annotations), set()
    while waiting:
        annotation = waiting.pop()
        if id(annotation) in seen:
            continue
        seen.add(id(annotation))
        waiting += typing.get_args(annotation)
        if isinstance(annotation, type) and _is_kind(annotation):
            _note(annotation)
            waiting += _inside(annotation)
        elif isinstance(annotation, type):
            waiting += list(vars(annotation).get("__annotations__", {}).values())  # such as a TypedDict's


def learn_code(fn: Callable[..., Any]) -> None:
    """Note the classes that a function names in its annotations, and those at the top of its file."""
    fn = inspect.unwrap(fn)
    home = sys.modules.get(getattr(fn, "__module__", None) or "")
    learn(_hints(fn))
    if home is None or home.__name__.partition(".")[0] == "dspy_stream" or home.__name__ in _files:
        return
    if home.__name__ != "__main__":  # which grows, where somebody types
        _files.add(home.__name__)
    learn([value for value in list(vars(home).values()) if isinstance(value, type) and _is_kind(value)])


def _hints(target: Any) -> list[Any]:
    try:
        return list(typing.get_type_hints(target).values())
    except Exception:  # noqa: BLE001 - annotations are the user's, and may name what is not there
        return list(getattr(target, "__annotations__", {}).values())


def _is_kind(kind: type) -> bool:
    if typing.get_origin(kind) is not None:
        return False
    named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return named_tuple or dataclasses.is_dataclass(kind) or issubclass(kind, (BaseModel, Enum, Text))


def _inside(kind: Any) -> list[Any]:
    if kind is BaseModel or issubclass(kind, Enum):
        return []
    if issubclass(kind, BaseModel):
        return [field.annotation for field in kind.model_fields.values()] + list(kind.__subclasses__())
    return _hints(kind) + list(kind.__subclasses__())


def _note(kind: type) -> None:
    with _lock:
        _known[name_of(kind)] = kind
