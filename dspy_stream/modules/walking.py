"""The parts of a program: finding them by name, and replacing one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TypeGuard

from dspy_stream.errors import ConfigurationError

if TYPE_CHECKING:
    from dspy_stream.modules.module import Module

__all__ = ["asked_by", "failed_part", "is_module", "learnable", "named_parts", "named_sub_modules", "replace"]


def is_module(item: Any) -> TypeGuard[Module]:
    """Whether something is a module."""
    from dspy_stream.modules.module import Module

    return isinstance(item, Module)


def learnable(root: Module, kind: type[Any]) -> list[tuple[str, Any]]:
    """Every part of ``kind``, by the name that DSPy gives it; those in frozen parts are left out.

    Lists, tuples and dicts are searched: ``parts[0]``, ``parts['key']``. ``root`` itself is ``self``.
    """
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()

    def visit(name: str, item: Any) -> None:
        if id(item) in seen:
            return
        seen.add(id(item))
        if isinstance(item, kind):
            found.append((name, item))
            return
        if is_module(item) and item is not root and item._compiled:
            return
        for child_name, child in _children(name, item):
            visit(child_name, child)

    visit("self", root)
    return found


def named_parts(root: Module, kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Every part of ``kind``, frozen ones too, named as :func:`learnable` names them."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("self", root)]
    while waiting:
        name, item = waiting.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, kind):
            yield name, item
        waiting[:0] = _children(name, item)


def named_sub_modules(
    root: Module, kind: type[Any], *, skip_compiled: bool = False
) -> Iterator[tuple[str, Any]]:
    """Everything of ``kind`` below ``root``, and itself, the nearest first, each under one name.

    Names begin with ``self``, and keys of dicts have no quotes in them: ``self.parts[key].predict``.
    """
    seen = {id(root)}
    waiting: deque[tuple[str, Any]] = deque([("self", root)])
    while waiting:
        name, item = waiting.popleft()
        if isinstance(item, kind):
            yield name, item
        if is_module(item):
            if skip_compiled and item._compiled:
                continue
            children = [(f"{name}.{key}", value) for key, value in item.__dict__.items()]
        elif isinstance(item, (list, tuple)):
            children = [(f"{name}[{index}]", value) for index, value in enumerate(item)]
        elif isinstance(item, dict):
            children = [(f"{name}[{key}]", value) for key, value in item.items()]
        else:
            continue
        for child in children:
            if id(child[1]) not in seen:
                seen.add(id(child[1]))
                waiting.append(child)


def asked_by(error: BaseException) -> Any:
    """The predictor in whose call an error was raised, the innermost of several; None where in none."""
    from dspy_stream.modules.predict import Predict

    found: Any = None
    for frame, _ in walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self") if frame.f_code is Predict._answer.__code__ else None
        found = owner if owner is not None else found
    return found


def failed_part(root: Module, error: BaseException, found: Any = None) -> str | None:
    """The name of the predictor in whose call an error was raised: ``found``, where that is known already.

    None where it was raised elsewhere, or where the program is one predictor.
    """
    from dspy_stream.modules.predict import Predict

    found = found if found is not None else asked_by(error)
    known = (*named_parts(root, Predict), *root.named_predictors())  # frozen ones are not among the latter
    names = {id(part): name for name, part in known}
    return names.get(id(found)) if found is not None and found is not root else None


def replace(root: Module, target: Any, new: Any) -> None:
    """Put ``new`` where ``target`` is, in whatever attribute, list, tuple or dict holds it.

    Raises:
        ConfigurationError: the target is the root, which nothing holds.
    """
    if target is root:
        raise ConfigurationError("a predictor cannot replace itself; wrap it in a module")
    _put(root, target, new, set())


def _put(item: Any, target: Any, new: Any, seen: set[int]) -> bool:
    if id(item) in seen:
        return False
    seen.add(id(item))
    for value, put in _slots(item):
        if value is target:
            put(new)
            return True
        if isinstance(value, tuple) and any(part is target for part in value):
            put(tuple(new if part is target else part for part in value))
            return True
        if _put(value, target, new, seen):
            return True
    return False


def _slots(item: Any) -> list[tuple[Any, Callable[[Any], None]]]:
    """What something holds, each with a way to put another in its place."""
    if is_module(item):
        return [(value, partial(setattr, item, key)) for key, value in item.__dict__.items()]
    if isinstance(item, dict):
        return [(value, partial(item.__setitem__, key)) for key, value in item.items()]
    if isinstance(item, list):
        return [(value, partial(item.__setitem__, index)) for index, value in enumerate(item)]
    return []


def _children(name: str, item: Any) -> list[tuple[str, Any]]:
    prefix = "" if name == "self" else f"{name}."
    if is_module(item):
        return [(f"{prefix}{key}", value) for key, value in item.__dict__.items() if _holds_modules(value)]
    if isinstance(item, (list, tuple)):
        return [(f"{name}[{index}]", value) for index, value in enumerate(item)]
    if isinstance(item, dict):
        return [(f"{name}['{key}']", value) for key, value in item.items()]
    return []


def _holds_modules(value: Any) -> bool:
    if is_module(value):
        return True
    if isinstance(value, (list, tuple)):
        return any(is_module(part) for part in value)
    return isinstance(value, dict) and any(is_module(part) for part in value.values())
