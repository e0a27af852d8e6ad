"""Defaults a program runs under: the model, the adapter, the state folder.

``configure`` sets them for the whole process, from any thread; ``context`` overrides them for the
code inside a ``with`` block, in the current thread or task only. The same names as in DSPy, without
its rule that one thread owns the configuration.

A setting that is a text, a number or a flag may also come from outside. What is said last here goes
first: a default, ``pyproject.toml`` (the table ``[tool.dspy_stream]`` of the nearest one, from the
working folder upwards), an environment variable (``DSPY_STREAM_`` and the name in capitals),
``configure``, ``context``. The file and the variables are read once, when a setting is first asked
for, and again by :func:`reload`.

Settings may change while programs run, and a :class:`~dspy_stream.events.SettingsChanged` says so.
Calls see at once what concerns watching and counting: ``callbacks``, ``track_usage``, ``trace`` and
the settings of the history. In a flow that ``run`` has started, rows that have not begun, and further
attempts at rows that have failed, follow ``lm`` and ``adapter``, unless the predictor, the run or the
block in which it was started names its own; a row at work ends as it began, and the change is in
the run's record. Journal and prices stay those that were in force when the flow was started: what is
finished must be found again, and one run is counted by one list.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dspy_stream import events
from dspy_stream.dotted import Dotted
from dspy_stream.environment import Reader, count, flag, read_environment, read_project, text
from dspy_stream.errors import ConfigurationError

__all__ = ["configure", "context", "reload", "settings"]

_DEFAULTS: Final[Mapping[str, Any]] = {
    "lm": None,  # an LM, or a model's name
    "adapter": None,  # an Adapter, or chat, json, xml or baml; None is ChatAdapter
    "journal": None,  # where finished calls are kept; None is memory only
    "track_usage": False,  # put token counts on every Prediction
    "prices": None,  # a mapping from model names to Price, or a function of a name; before the package's own
    "rm": None,  # a retriever: a function of a query and k=... for Retrieve
    "num_threads": 8,  # rows that Parallel has in flight
    "max_errors": 10,  # failed rows after which Parallel gives up
    "provide_traceback": False,  # whether Parallel logs where a row failed
    "callbacks": events.Callbacks(),  # who hears of calls: a list of BaseCallback
    "disable_history": False,  # keep no model calls for inspect_history
    "max_history_size": 10_000,  # calls that a history keeps
    "history_in_flows": False,  # keep those of a flow's rows too, which takes memory
    "trace": None,  # a list that takes (predictor, inputs, prediction) of every call
    "max_trace_size": 10_000,  # entries that such a list keeps
    "async_max_workers": 8,  # threads for asyncify
    "allow_tool_async_sync_conversion": False,  # call coroutine functions from tools used synchronously
    "interpreter_factory": None,  # what runs the code that a model writes
    # Known to DSPy, and taken from its programs; here they have no effect. Types are always checked.
    "warn_on_type_mismatch": True,
    **dict.fromkeys(("branch_idx", "caller_modules", "caller_predict", "experimental")),
    **dict.fromkeys(("send_stream", "usage_tracker")),
    "stream_listeners": (),
}

_OUTSIDE: Final[Mapping[str, Reader]] = {
    **{name: flag for name, value in _DEFAULTS.items() if isinstance(value, bool)},
    **{name: count for name, value in _DEFAULTS.items() if type(value) is int},
    "lm": text,
    "adapter": text,
}

_MISSPELT: Final = 0.8  # a name so like a setting's is one misspelt; any other is the program's own

_lock = threading.RLock()
_given: dict[str, Any] = {}  # by configure
_found: Mapping[str, Any] | None = None  # outside; None until it is looked for
_overrides: ContextVar[Mapping[str, Any]] = ContextVar("dspy_stream_settings", default=MappingProxyType({}))
_whenever: Final[dict[str, list[Callable[[], None]]]] = {}
_checks: Final[dict[str, Callable[[Any], object]]] = {}
_inside: Final[list[Callable[[Mapping[str, Any]], Callable[[], None] | None]]] = []

TRACE: Final[ContextVar[list[Any] | None]] = ContextVar("dspy_stream_trace", default=None)
"""The calls of predictors in this context: (predictor, inputs, prediction), in the order of the answers."""

shared_trace: list[Any] | None = None
"""The same for the whole process, where ``configure(trace=[])`` asks for it."""


@lru_cache(maxsize=256)
def _near(name: str) -> str | None:
    return next(iter(get_close_matches(name, _DEFAULTS, n=1, cutoff=_MISSPELT)), None)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    for name in values:
        near = None if name in _DEFAULTS else _near(name)
        if near is not None:
            raise ConfigurationError(
                f"there is no setting {name!r}; did you mean {near!r}? Settings: {', '.join(_DEFAULTS)}"
            )
    lm = values.get("lm")
    if lm is not None and not isinstance(lm, str) and not hasattr(lm, "connect"):
        raise ConfigurationError(f"lm={lm!r} is no model: give a name such as 'openai/gpt-4o-mini', or an LM")
    for name, check in _checks.items():
        if values.get(name):
            check(values[name])
    if "callbacks" in values:
        values["callbacks"] = events.Callbacks(values["callbacks"])
    return values


def configure(**values: Any) -> None:
    """Set defaults for the whole process, at once for every thread.

    A name that is no setting is kept for the program, which reads it from ``settings``.

    Raises:
        ConfigurationError: a name is that of a setting, misspelt; or ``lm`` is no model, or of no provider
            that is known by now.

    >>> configure(track_usage=True)
    >>> settings.track_usage
    True
    >>> configure(track_usage=False)
    """
    global shared_trace
    values = _checked(values)
    with _lock:
        before = {name: _common(name) for name in values}
        _given.update(values)
        shared_trace = values.get("trace", shared_trace)
    _used(values)
    _tell(before)


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
    values = _checked(values)
    _used(values)
    ends = [end for act in _inside if (end := act(values)) is not None]
    token = _overrides.set({**_overrides.get(), **values})
    traced = TRACE.set(values["trace"]) if "trace" in values else None
    try:
        yield
    finally:
        for end in ends:
            end()
        _overrides.reset(token)
        if traced is not None:
            TRACE.reset(traced)


def reload() -> None:
    """Read ``pyproject.toml`` and the environment again; what ``configure`` has set stays.

    Raises:
        ConfigurationError: one of them is wrong; nothing was changed.
    """
    global _found
    found = _look()
    with _lock:
        before = {name: _common(name) for name in _OUTSIDE}
        _found = found
    _used(found)
    _tell(before)


def whenever(name: str, act: Callable[[], None]) -> None:
    """Call ``act`` each time a value that is not empty is given to a setting, and now if it has one."""
    _whenever.setdefault(name, []).append(act)
    if _given.get(name) or _overrides.get().get(name) or (_found or {}).get(name):
        act()


def checking(name: str, check: Callable[[Any], object]) -> None:
    """Call ``check`` with each value that is given to a setting; what it raises refuses the value."""
    _checks[name] = check


def inside(act: Callable[[Mapping[str, Any]], Callable[[], None] | None]) -> None:
    """Call ``act`` with the values of each ``context`` block, and what it returns at the block's end."""
    _inside.append(act)


def _used(values: Mapping[str, Any]) -> None:
    for name, acts in _whenever.items():
        if values.get(name):
            for act in acts:
                act()


def _tell(before: Mapping[str, Any]) -> None:
    changed = {name: (old, new) for name, old in before.items() if (new := _common(name)) is not old}
    if changed:
        events.publish(
            events.SettingsChanged(
                "settings", events.new_id(), events.ACTIVE_CALL_ID.get(), time.time(), changed
            )
        )


def _look() -> dict[str, Any]:
    return {**read_project(Path.cwd(), _OUTSIDE), **read_environment(os.environ, _OUTSIDE)}


def _common(name: str) -> Any:
    """The value for the whole process."""
    global _found
    if name in _given:
        return _given[name]
    if _found is None:
        with _lock:
            if _found is None:
                _found = _look()
        _used(_found)
    return _found[name] if name in _found else _DEFAULTS.get(name)


def of_program() -> dict[str, Any]:
    """The settings in force here that are none of ours, but those of the program."""
    return {name: value for name, value in {**_given, **_overrides.get()}.items() if name not in _DEFAULTS}


def _names() -> dict[str, Any]:
    return {**_DEFAULTS, **_given, **_overrides.get()}


class _Setting:
    """One setting as an attribute: found at once, where ``__getattr__`` would come last."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        overrides = _overrides.get()
        return overrides[self._name] if self._name in overrides else _common(self._name)


class _NoSetting(AttributeError, KeyError):
    """Neither a setting nor a name that the program has set."""

    __str__ = Exception.__str__


class _Settings:
    """The settings in force here and now, by attribute or by item; setting one is ``configure``."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name in _names():
            return _overrides.get().get(name, _given.get(name))
        raise _NoSetting(f"there is no setting {name!r} ('Settings' object has no attribute {name!r})")

    def __setattr__(self, name: str, value: Any) -> None:
        configure(**{name: value})

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        configure(**{name: value})

    def __contains__(self, name: object) -> bool:
        return name in _names()

    def get(self, name: str, default: Any = None) -> Any:
        """A setting's value; ``default`` where there is no such setting."""
        return getattr(self, name) if name in self else default

    def keys(self) -> list[str]:
        """The names of all settings, and those that the program has set."""
        return list(_names())

    def copy(self) -> Dotted:
        """All settings in force here and now, as a dict whose keys are attributes too."""
        return Dotted({name: getattr(self, name) for name in _names()})

    @property
    def config(self) -> Dotted:
        """The same as :meth:`copy`."""
        return self.copy()

    def configure(self, **values: Any) -> None:
        """The same as :func:`configure`."""
        configure(**values)

    def context(self, **values: Any) -> Any:
        """The same as :func:`context`."""
        return context(**values)

    def __repr__(self) -> str:
        return f"settings({', '.join(f'{name}={value!r}' for name, value in self.copy().items())})"


for _name in _DEFAULTS:
    setattr(_Settings, _name, _Setting(_name))

settings: Final = _Settings()
