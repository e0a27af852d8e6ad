"""What happens while programs run, as one stream of events that anybody may hear.

Modules, models, adapters and tools publish an event when a call of theirs begins and one when it
ends; a changed setting is an event as well. Callbacks and the history of model calls are
subscribers like any other. Where nobody listens a call costs one look at :data:`active`.

A listener is called at once, in the thread and the context of the call. It must not wait. What it
raises is logged and goes no further.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Final, Literal, Protocol, SupportsIndex, TypeVar

from dspy_stream.types import Request, Response

__all__ = [
    "ACTIVE_CALL_ID",
    "Called",
    "Callbacks",
    "Ended",
    "Event",
    "Ignored",
    "Kind",
    "Listener",
    "Restarted",
    "SettingsChanged",
    "Started",
    "WorkerEnded",
    "calling",
    "ignored",
    "publish",
    "subscribe",
    "unsubscribe",
]

_log = logging.getLogger("dspy_stream")

T = TypeVar("T")

_Call = Literal["module", "lm", "adapter_format", "adapter_parse", "tool", "evaluate", "compile"]
_InterpreterCall = Literal[
    "interpreter_startup", "interpreter_execute", "interpreter_tool_call", "interpreter_shutdown"
]
Kind = Literal[_Call, _InterpreterCall, "settings", "part", "ignored"]
"""Whose call it is; ``settings``, ``part`` and ``ignored`` are no calls."""

active = False
"""True while somebody listens to more than the model calls that are made outside flows."""


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """Something that happened.

    Attributes:
        kind: whose call it is.
        id: 32 hex digits that name the call; its start and its end have the same.
        parent: the call within which it was made; None where there is none.
        time: seconds since the epoch.
    """

    kind: Kind
    id: str
    parent: str | None
    time: float


@dataclass(frozen=True, slots=True, eq=False)
class Started(Event):
    """A call begins.

    ``inputs`` are its arguments by name. ``step`` and ``row`` say where in a flow; None outside.
    """

    instance: Any
    inputs: Mapping[str, Any]
    step: str | None = None
    row: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ended(Event):
    """A call has returned, or raised ``exception``; it took ``seconds``."""

    instance: Any
    outputs: Any
    exception: BaseException | None
    seconds: float
    step: str | None = None
    row: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Called(Ended):
    """A model has answered, or failed. ``callers`` are the modules the call was made in, outermost first.

    ``prompt`` is the text where one was given instead of messages.
    """

    request: Request | None = None
    response: Response | None = None
    prompt: str | None = None
    callers: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SettingsChanged(Event):
    """Settings of the whole process have other values: by name, what they were and what they are."""

    changed: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Restarted(Event):
    """``part`` of a program, which holds a resource, has failed, and ``parts`` are started again.

    They are in the order in which they are opened, after ``delay`` seconds.
    """

    part: str
    reason: str
    parts: tuple[str, ...]
    delay: float


@dataclass(frozen=True, slots=True, eq=False)
class WorkerEnded(Event):
    """A worker process of ``part`` ended by itself, or was ended; ``reason`` names exit code or signal.

    ``step`` and ``row`` say what it was working on in a flow; None outside, or where it was idle.
    """

    part: str
    pid: int
    reason: str
    step: str | None = None
    row: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ignored(Event):
    """An answer held fields that nobody had asked for: ``names``, the first of them. ``adapter`` read it.

    ``step`` and ``row`` say where in a flow; None outside.
    """

    adapter: str
    names: tuple[str, ...]
    step: str | None = None
    row: str | None = None


Listener = Callable[[Any], None]
"""Hears an :class:`Event`."""

ACTIVE_CALL_ID: Final[ContextVar[str | None]] = ContextVar("dspy_stream_call", default=None)
"""The call that goes on in this context: the parent of those made in it."""

IGNORED: Final[ContextVar[Callable[[int], None] | None]] = ContextVar("dspy_stream_ignored", default=None)
"""Who counts the fields of answers that nobody had asked for."""

CALLERS: Final[ContextVar[tuple[Any, ...]]] = ContextVar("dspy_stream_callers", default=())
"""The modules that run in this context, outermost first. Not kept inside flows unless somebody listens."""


class Place(Protocol):
    """Which row of which step; both are empty outside a flow."""

    step: str
    row_id: str


ROW: Final[ContextVar[Place | None]] = ContextVar("dspy_stream_ticket", default=None)
"""The row that code in this context works for; None outside flows."""


# ------------------------------------------------------------------------------------ subscribers


@dataclass(frozen=True, slots=True)
class _Subscriber:
    listener: Listener
    kinds: frozenset[Kind] | None
    in_flows: bool

    @property
    def always_told(self) -> bool:
        """True for those whose events are published whether or not anybody listens."""
        return not self.in_flows and self.kinds is not None and self.kinds <= {"lm", "settings"}


_subscribers: tuple[_Subscriber, ...] = ()
_lock = threading.Lock()


def subscribe(
    listener: Listener, *, kinds: Collection[Kind] | None = None, in_flows: bool = True
) -> Callable[[], None]:
    """Hear every event from now on, in all threads; returns a function that ends it.

    ``kinds`` are those to hear, None for all. Without ``in_flows``, calls made for the rows of a
    flow are left out. A listener that is subscribed again is heard once, in the new way.

    >>> heard = []
    >>> stop = subscribe(heard.append, kinds=["tool"])
    >>> with calling("tool", "a clock", {}) as call:
    ...     call.outputs = "12:00"
    >>> [(type(event).__name__, event.kind) for event in heard], heard[1].outputs
    ([('Started', 'tool'), ('Ended', 'tool')], '12:00')
    >>> stop()
    """
    made = _Subscriber(listener, frozenset(kinds) if kinds is not None else None, in_flows)
    with _lock:
        _keep([*(other for other in _subscribers if other.listener != listener), made])
    return lambda: unsubscribe(listener)


def unsubscribe(listener: Listener) -> None:
    """Hear nothing more; does nothing where it is not subscribed."""
    with _lock:
        _keep([other for other in _subscribers if other.listener != listener])


def _keep(subscribers: Collection[_Subscriber]) -> None:
    global _subscribers, active
    _subscribers = tuple(subscribers)
    active = any(not subscriber.always_told for subscriber in _subscribers)


def publish(event: Event) -> None:
    """Tell everybody who wants to hear of it, one after the other."""
    row = getattr(event, "row", None)
    for subscriber in _subscribers:
        if subscriber.kinds is not None and event.kind not in subscriber.kinds:
            continue
        if row is not None and not subscriber.in_flows:
            continue
        try:
            subscriber.listener(event)
        except Exception as error:  # noqa: BLE001 - a listener's fault is not the program's
            _log.warning("a listener failed at the event %r: %s: %s", event.kind, type(error).__name__, error)


def ignored(adapter: str, count: int, names: Iterable[str]) -> None:
    """Count fields that nobody had asked for, and tell of them where somebody listens."""
    counter = IGNORED.get()
    if counter is not None:
        counter(count)
    if active:
        first = tuple(name[:100] for name in islice(names, 20))
        what = (uuid.uuid4().hex, ACTIVE_CALL_ID.get(), time.time())
        publish(Ignored("ignored", *what, adapter, first, *place()))


# -------------------------------------------------------------------------------------- callbacks


class Callbacks(list[Any]):
    """A list of callbacks; from the first one on, calls are published for them to hear."""

    def __init__(self, callbacks: Iterable[Any] | None = None) -> None:
        super().__init__(callbacks or ())
        if self:
            arm()

    def append(self, callback: Any) -> None:
        """Add one."""
        arm()
        super().append(callback)

    def extend(self, callbacks: Iterable[Any]) -> None:
        """Add several."""
        arm()
        super().extend(callbacks)

    def insert(self, index: SupportsIndex, callback: Any) -> None:
        """Add one before others."""
        arm()
        super().insert(index, callback)

    def __iadd__(self, callbacks: Iterable[Any]) -> Callbacks:  # type: ignore[misc]
        self.extend(callbacks)
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        arm()
        super().__setitem__(index, value)


_teller: Listener | None = None  # who tells callbacks
_armed = False


def arm() -> None:
    """Publish calls from now on, for callbacks to hear."""
    global _armed
    _armed = True
    if _teller is not None:
        subscribe(_teller)


def tell_with(teller: Listener) -> None:
    """Name who tells callbacks of events."""
    global _teller
    _teller = teller
    if _armed:
        arm()


# ------------------------------------------------------------------------------------- publishing


def new_id() -> str:
    """A new name for a call."""
    return os.urandom(16).hex()


def place() -> tuple[str | None, str | None]:
    """The step and the row that code runs for; None and None outside flows."""
    ticket = ROW.get()
    return (ticket.step, ticket.row_id) if ticket is not None and ticket.step else (None, None)


class calling:
    """Around a call: tells its start and its end. Set ``outputs`` inside.

    >>> with calling("evaluate", object(), {"devset": []}) as call:
    ...     call.outputs = 0.5
    """

    __slots__ = (
        *("_around", "_began", "_inputs", "_instance", "_kind", "_outer", "_place"),
        *("caller", "id", "outputs"),
    )

    def __init__(self, kind: Kind, instance: Any, inputs: Mapping[str, Any], *, caller: bool = False) -> None:
        self._kind = kind
        self._instance = instance
        self._inputs = inputs
        self.caller = caller
        self.id: str | None = None
        self.outputs: Any = None

    def begin(self) -> None:
        """Tell that it begins."""
        if not active:
            return
        self.id = new_id()
        self._outer = ACTIVE_CALL_ID.get()
        self._place = place()
        self._began = time.perf_counter()
        what = (self._kind, self.id, self._outer, time.time(), self._instance, self._inputs)
        publish(Started(*what, *self._place))

    def resume(self) -> None:
        """What runs now is part of it."""
        callers = CALLERS.get()
        self._around = (ACTIVE_CALL_ID.get(), callers)
        if self.id is not None:
            ACTIVE_CALL_ID.set(self.id)
        if self.caller:
            CALLERS.set((*callers, self._instance))

    def suspend(self) -> None:
        """What runs now is not."""
        call_id, callers = self._around
        if self.id is not None:
            ACTIVE_CALL_ID.set(call_id)
        if self.caller:
            CALLERS.set(callers)

    def end(self, error: BaseException | None) -> None:
        """Tell that it has ended."""
        if self.id is None:
            return
        seconds = time.perf_counter() - self._began
        outcome = (self._instance, None if error is not None else self.outputs, error, seconds)
        publish(Ended(self._kind, self.id, self._outer, time.time(), *outcome, *self._place))

    def __enter__(self) -> calling:
        self.begin()
        self.resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.suspend()
        self.end(error)


def within(work: Awaitable[T]) -> Awaitable[T]:
    """The same work as a part of the call that goes on here, in whatever context it is awaited."""
    if not active and ROW.get() is not None:
        return work
    return _within(work, ACTIVE_CALL_ID.get(), CALLERS.get())


async def _within(work: Awaitable[T], call_id: str | None, callers: tuple[Any, ...]) -> T:
    before = ACTIVE_CALL_ID.get(), CALLERS.get()
    ACTIVE_CALL_ID.set(call_id)
    CALLERS.set(callers)
    try:
        return await work
    finally:
        ACTIVE_CALL_ID.set(before[0])
        CALLERS.set(before[1])
