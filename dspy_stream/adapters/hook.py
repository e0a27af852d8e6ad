"""Which methods of an adapter a subclass has replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["compiled", "is_compiled"]

_Hook = TypeVar("_Hook", bound=Callable[..., Any])


def compiled(hook: _Hook) -> _Hook:
    """Mark a hook whose work is also done by compiled code, for as long as nobody replaces it."""
    hook.__dict__["compiled"] = True
    return hook


def is_compiled(adapter: Any, name: str) -> bool:
    """False where a subclass has a method of its own in the place of one so marked."""
    return getattr(getattr(type(adapter), name), "compiled", False)
