"""Ask the predictors of a straight-line ``forward`` as soon as what they are given is known.

For a flow's row the calls that :mod:`~dspy_stream.modules.straight` has read are made first, at the
same time where they do not need each other. Then ``forward`` itself runs, and each of its calls gets
what was found for it, or raises what was raised. So values, errors and the trace are those of
``forward`` alone; a call that is given something else than was foreseen is simply made. Whoever listens
hears of the calls when they are made, as parts of the module's call.

A row that fails may cost calls to which ``forward`` would not have come. Once a call has failed, none
that comes after it is begun, and further attempts at the row make one call after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from dspy_stream import events
from dspy_stream.configuration import settings
from dspy_stream.engine import Ticket
from dspy_stream.modules.calls import counted, heard_steps, told_steps
from dspy_stream.modules.hosts import Call
from dspy_stream.modules.module import Module
from dspy_stream.modules.scope import TICKET, TRACE, trace_in_force
from dspy_stream.modules.straight import Planned, read, value_of
from dspy_stream.modules.together import Baton, Branch, ended
from dspy_stream.program.watch import WATCHER
from dspy_stream.runtime import LISTENER, Steps, bridge
from dspy_stream.usage import TRACKER, UsageTracker

__all__ = ["call_of", "described"]


def call_of(module: Module) -> Call:
    """How a step calls a module for a row: ``heard_steps`` where nothing is gained by another way."""
    reading = read(module)
    if reading is None or not any(len(names) > 1 for names in reading.groups()):
        return heard_steps
    return _Ahead(module, reading.calls)


def described(module: Module, otherwise: str = "") -> str:
    """What is asked at the same time, or what is in the way; empty where there is nothing to say.

    ``otherwise`` says why the module is called in another way, and so one after the other.
    """
    reading = read(module)
    if reading is None:
        return ""
    together = [names for names in reading.groups() if len(names) > 1]
    why = reading.why or (otherwise if together else "")
    if why:
        return f"asks its predictors one after the other: {why}"
    return "; ".join(f"asks {', '.join(names)} at the same time" for names in together)


class _Ahead:
    """How one module is called; used in the place of ``heard_steps``."""

    def __init__(self, module: Module, calls: tuple[Planned, ...]) -> None:
        self._calls = calls
        self._needs = [call.needs() for call in calls]
        parameters = inspect.signature(module.forward).parameters.values()
        self._defaults = {one.name: one.default for one in parameters if one.default is not one.empty}

    def __call__(self, module: Module, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The steps of one row."""
        ticket = TICKET.get()
        if ticket is None or ticket.attempt > 1 or _streamed() or not self._as_read(module):
            return heard_steps(module, inputs)
        begin = partial(self._steps, module, ticket)
        return told_steps(module, inputs, begin) if events.active else begin(inputs)

    def _as_read(self, module: Module) -> bool:
        held = module.__dict__
        return all(held.get(call.name) is call.part for call in self._calls)

    def _steps(self, module: Module, outer: Ticket, inputs: Mapping[str, Any]) -> Steps[Any]:
        run = _Run(self._calls, {**self._defaults, **inputs})
        branches, first = [], outer.calls
        for number, needs in enumerate(self._needs):
            # Calls are numbered as they are one after the other, so that each finds its own answer again.
            ticket = outer.beside("")
            ticket.calls = first + number
            run.tickets.append(ticket)
            context = copy_context()
            context.run(TICKET.set, ticket)
            if trace_in_force() is not None:
                context.run(TRACE.set, run.traces.setdefault(number, []))
            if settings.track_usage:
                tracker = run.trackers[number] = UsageTracker(TRACKER.get())
                context.run(TRACKER.set, tracker)
            branches.append(Branch(context, run.one(number, needs)))
        run.branches = branches
        try:
            yield from ended(branches)
        finally:
            for number, ticket in enumerate(run.tickets):
                ticket.calls -= first + number
                outer.add(ticket)
        standing = object.__new__(type(module))
        standing.__dict__.update(module.__dict__)
        for call in self._calls:
            standing.__dict__[call.name] = _StandIn(run, call.part)
        return (yield from bridge(standing.forward, **inputs))


def _streamed() -> bool:
    """True where somebody waits for tokens and messages about them, which come in the program's own order."""
    return WATCHER.get() is not None or LISTENER.get() is not None


class _NotReached(Exception):
    """A call before this one has failed; ``forward`` will not come to it."""


class _Run:
    """The calls of one row."""

    def __init__(self, calls: tuple[Planned, ...], inputs: Mapping[str, Any]) -> None:
        self._calls = calls
        self._inputs = inputs
        self._given: list[Mapping[str, Any] | None] = [None] * len(calls)
        self._batons = [Baton() for _ in calls]
        self._outputs: dict[int, Any] = {}
        self._next = 0
        self.tickets: list[Ticket] = []
        self.traces: dict[int, list[Any]] = {}
        self.trackers: dict[int, UsageTracker] = {}
        self._failed = len(calls)  # the first that has
        self.branches: list[Branch] = []

    def one(self, number: int, needs: frozenset[int]) -> Steps[Any]:
        """One call, when those that it needs have returned."""
        try:
            for needed in needs:
                if not self._batons[needed].passed:
                    yield self._batons[needed]
            if self._failed < number:
                raise _NotReached
            call, look = self._calls[number], (self._inputs, self._outputs)
            given = {name: value_of(made, *look) for name, made in call.arguments.items()}
            self._given[number] = given
            found = yield from heard_steps(call.part, given)
            if number in self.trackers:
                counted(found, self.trackers[number])
            self._outputs[number] = found
        except Exception:
            self._failed = min(self._failed, number)
            raise
        finally:
            self._batons[number].hand_over()
        return found

    def called(self, part: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What ``forward`` gets for its next call."""
        number = self._next
        self._next += 1
        given = self._given[number] if number < len(self._calls) else None
        if given is None or args or self._calls[number].part is not part or not _same(given, dict(kwargs)):
            return part(*args, **kwargs)
        trace = trace_in_force()
        for entry in self.traces.get(number, ()):
            assert trace is not None
            trace.append(entry)
            if len(trace) > settings.max_trace_size:
                del trace[0]
        return self.branches[number].result()


class _StandIn:
    """In the place of a predictor while ``forward`` runs."""

    __slots__ = ("_part", "_run")

    def __init__(self, run: _Run, part: Module) -> None:
        self._run = run
        self._part = part

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run.called(self._part, args, kwargs)


_COMPARED: Final = (str, int, float, bool, bytes)


def _same(one: Any, other: Any) -> bool:
    """True for what is one thing, or was made alike from the same things."""
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        return list(one) == list(other) and all(_same(value, other[name]) for name, value in one.items())
    if kind in (list, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return kind in _COMPARED and bool(one == other)
