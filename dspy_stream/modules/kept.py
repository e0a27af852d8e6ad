"""What a module's lists, dicts and sets hold, kept while its ``forward`` is tried out."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from dspy_stream.modules.module import Module

__all__ = ["Kept"]

# Exactly these: what a class of somebody's own does when it is copied or filled is not known.
_DICTS: Final = (dict, defaultdict, OrderedDict, Counter)
_CONTAINERS: Final = (*_DICTS, list, set, deque)
_DEEPEST: Final = 8
_OF_CALLS: Final = ("_callbacks", "_history")  # what calls elsewhere may fill meanwhile


class Kept:
    """The containers that can be reached from a module's attributes, with what they hold now.

    What they hold is compared by identity, so that no object in them is asked. ``private`` says of
    which modules the attributes that begin with ``_`` are looked at as well.

    >>> class Notes(Module):
    ...     def __init__(self): self.seen = [1]
    >>> notes = Notes()
    >>> kept = Kept(notes)
    >>> notes.seen.append(2)
    >>> kept.taken_back(), notes.seen, kept.taken_back()
    ('seen', [1], None)
    """

    def __init__(self, module: Module, private: Callable[[Module], bool] = lambda _module: True) -> None:
        self._private = private
        self._found: dict[int, tuple[str, Any, list[Any]]] = {}
        self._seen: set[int] = set()
        self._go_into("", module, 0)

    def taken_back(self) -> str | None:
        """Give every container what it held; the name of the first that had changed, None where none had."""
        first: str | None = None
        for path, value, before in self._found.values():
            if _identities(_content(value)) == _identities(before):
                continue
            first = first if first is not None else path
            value.clear()
            if type(value) in _DICTS:
                for key, held in before:
                    value[key] = held
            else:
                (value.update if type(value) is set else value.extend)(before)
        return first

    def _go_into(self, path: str, value: Any, depth: int) -> None:
        if depth > _DEEPEST or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if type(value) in _CONTAINERS:
            self._found[id(value)] = (path, value, _content(value))
        for inner, held in self._inside(path, value):
            self._go_into(inner, held, depth + 1)

    def _inside(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Module):
            private = self._private(value)
            for name, held in list(value.__dict__.items()):
                if _may_hold(held) and name not in _OF_CALLS and (private or not name.startswith("_")):
                    yield f"{path}.{name}" if path else name, held
        elif type(value) in _DICTS:
            for key, held in list(value.items()):
                if _may_hold(held):
                    yield f"{path}[{key!r}]", held
        elif type(value) is not set:
            for number, held in enumerate(list(value)):
                if _may_hold(held):
                    yield f"{path}[{number}]", held


def _may_hold(value: Any) -> bool:
    return type(value) is tuple or type(value) in _CONTAINERS or isinstance(value, Module)


def _content(value: Any) -> list[Any]:
    return list(value.items()) if type(value) in _DICTS else list(value)


def _identities(content: list[Any]) -> list[Any]:
    """What tells two contents apart; the pairs of a dict are made anew each time."""
    return [(id(one[0]), id(one[1])) if type(one) is tuple and len(one) == 2 else id(one) for one in content]
