"""Defaults a program runs under: the model, the adapter, the state folder.

``configure`` sets them for the whole process, from any thread; ``context`` overrides them for the
code inside a ``with`` block, in the current thread or task only. The same names as in DSPy, without
its rule that one thread owns the configuration.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final

from dspy_stream.errors import ConfigurationError

__all__ = ["configure", "context", "settings"]

_DEFAULTS: Final[Mapping[str, Any]] = {
    "lm": None,  # an LM, or a model's name
    "adapter": None,  # an Adapter; None is ChatAdapter
    "journal": None,  # where finished calls are kept; None is memory only
    "track_usage": False,  # put token counts on every Prediction
}

_lock = threading.Lock()
_global: dict[str, Any] = dict(_DEFAULTS)
_overrides: ContextVar[Mapping[str, Any]] = ContextVar("dspy_stream_settings", default=MappingProxyType({}))


def _check(values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in _DEFAULTS:
            near = get_close_matches(name, _DEFAULTS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"there is no setting {name!r}{hint} Settings: {', '.join(_DEFAULTS)}")


def configure(**values: Any) -> None:
    """Set defaults for the whole process, at once for every thread.

    Raises:
        ConfigurationError: a setting of that name does not exist.

    >>> configure(track_usage=True)
    >>> settings.track_usage
    True
    >>> configure(track_usage=False)
    """
    _check(values)
    with _lock:
        _global.update(values)


@contextmanager
def context(**values: Any) -> Iterator[None]:
    """Override settings inside a ``with`` block, for the current thread or task and what it starts.

    A later ``configure`` is visible inside for every setting that the block does not name.

    >>> with context(track_usage=True):
    ...     settings.track_usage
    True
    >>> settings.track_usage
    False
    """
    _check(values)
    token = _overrides.set({**_overrides.get(), **values})
    try:
        yield
    finally:
        _overrides.reset(token)


class _Settings:
    """Read access to the settings in force here and now."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        overrides = _overrides.get()
        if name in overrides:
            return overrides[name]
        try:
            return _global[name]
        except KeyError:
            raise AttributeError(f"there is no setting {name!r}") from None

    def configure(self, **values: Any) -> None:
        """The same as :func:`configure`."""
        configure(**values)

    def context(self, **values: Any) -> Any:
        """The same as :func:`context`."""
        return context(**values)

    def __repr__(self) -> str:
        return f"settings({', '.join(f'{name}={getattr(self, name)!r}' for name in _DEFAULTS)})"


settings: Final = _Settings()
