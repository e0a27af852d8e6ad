"""One part of a program over one record: its inputs by name, its options, its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import copy_context
from functools import lru_cache
from typing import Any, Final

from dspy_stream.errors import DSPyStreamError, LMError, PoisonRow, RecordError
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.defaults import default_outputs
from dspy_stream.modules.hosts import Place, hosts, is_hosted
from dspy_stream.modules.module import Module
from dspy_stream.modules.noted import note
from dspy_stream.modules.part import PartOptions
from dspy_stream.modules.scope import TICKET
from dspy_stream.modules.supervision import Tree, holds_resources
from dspy_stream.modules.together import alone
from dspy_stream.program import Example
from dspy_stream.program.watch import WATCHER
from dspy_stream.runtime import Steps, bridge

__all__ = ["called", "record_of", "renamed", "run_part", "select", "stand_in"]

# Attempts of a part count in steps of their own within an attempt at the row.
_APART: Final = 64


def run_part(
    name: str, part: Module, options: PartOptions, record: Mapping[str, Any], tree: Tree | None = None
) -> Steps[Any]:
    """The outputs of a part for one record, under the names they get there.

    ``tree`` is the program whose part it is, where that says which parts are started again.

    Raises:
        RecordError: the record lacks a field that the part needs.
        TypeError: the part returned neither a Prediction nor a mapping.
    """
    try:
        if options.governs or holds_resources(part):
            made = yield from _governed(name, part, options, record, tree)
        else:
            made = yield from called(part, select(name, part, record))
        return renamed(name, record_of(name, made), options.outputs)
    except Exception as error:
        if options.on_error in ("stop", "skip", "dead_letter"):
            note(error, "on_error", options.on_error)
        raise


def select(name: str, part: Module, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a record that a part reads.

    Raises:
        RecordError: one that it needs is missing.
    """
    names = refuse_lacking(name, part, record)
    if names is None:
        return record
    return {field: record[field] for field in names if field in record}


def refuse_lacking(name: str, part: Module, record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the fields that a part reads; None where it takes all.

    Raises:
        RecordError: the record lacks one that it needs.
    """
    names, required = _reads(part)
    for field in required:
        if field not in record:
            known = ", ".join(map(str, record)) or "no field"
            raise RecordError(f"{name} needs the field {field!r}; the record has: {known}")
    return names


def _reads(part: Module) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    kind: Any = type(part)
    if kind.input_names is Module.input_names and kind.required_names is Module.required_names:
        return _reads_of(kind)  # inspecting a function takes longer than most parts
    return part.input_names(), part.required_names()


@lru_cache(maxsize=256)
def _reads_of(kind: Any) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    part = kind.__new__(kind)
    return part.input_names(), part.required_names()


def called(part: Module, inputs: Mapping[str, Any]) -> Steps[Any]:
    """One call of a part as steps; whoever listens to calls hears of it."""
    if WATCHER.get() is None:
        return heard_steps(part, inputs)
    return bridge(part, **inputs)  # somebody wants to hear of the call


def _governed(
    name: str, part: Module, options: PartOptions, record: Mapping[str, Any], tree: Tree | None
) -> Steps[Any]:
    place = options.place(name, tree)
    if options.on_error != "default":
        return (yield from _attempted(place, part, options, record))
    try:
        made = yield from _attempted(place, part, options, record)
    except Exception as error:
        if not _part_failed(error) or _outage(error):
            raise
        ticket = TICKET.get()
        if ticket is not None:
            ticket.defaulted = error
        return default_outputs(part, options.defaults)
    return made


def _attempted(place: Place, part: Module, options: PartOptions, record: Mapping[str, Any]) -> Steps[Any]:
    name = place.name
    inputs = select(name, part, record)
    hosted = is_hosted(part, place)
    outer = TICKET.get()
    ticket = outer.beside(f"/{name}", outer.attempt * _APART) if outer is not None else None
    for attempt in range((options.retries or 0) + 1):
        context = copy_context()
        if attempt and ticket is not None:
            ticket = ticket.again()
        context.run(TICKET.set, ticket)
        try:
            steps = hosts().steps(part, place, inputs) if hosted else called(part, inputs)
            seconds = None if place.bounds(part) else options.timeout
            made = yield from alone(steps, context=context, seconds=seconds)
            renamed(name, record_of(name, made), options.outputs)  # an answer that is none is a failure too
        except Exception as error:
            if not _part_failed(error):
                raise
            if attempt == (options.retries or 0) or not _worth_trying(error):
                if options.fallback is None:
                    raise
                reason = f"{type(error).__name__}: {error}"
                break
        else:
            return made
        finally:
            if outer is not None and ticket is not None:
                outer.add(ticket)
    assert options.fallback is not None
    try:
        made = yield from stand_in(name, options.fallback, record)
        renamed(name, record_of(name, made), options.outputs)
    except Exception as error:
        note(error, "fallback_of", reason)
        raise
    return made


def stand_in(name: str, fallback: Module, record: Mapping[str, Any]) -> Steps[Any]:
    """The fallback of part ``name`` for one record, inline; supervised alone where it holds a resource.

    Raises:
        RecordError: the record lacks a field that it needs.
    """
    place = Place(name=f"the fallback of {name}")
    inputs = select(place.name, fallback, record)
    if is_hosted(fallback, place):
        return hosts().steps(fallback, place, inputs)
    return called(fallback, inputs)


def _part_failed(error: Exception) -> bool:
    """True where another attempt, or a fallback, may do better."""
    return not isinstance(error, DSPyStreamError) or error.scope == "row"


def _outage(error: Exception) -> bool:
    """True where a flow's model does not answer: the step waits for it, else all rows would be defaults."""
    ticket = TICKET.get()
    return isinstance(error, LMError) and error.retryable and ticket is not None and bool(ticket.step)


def _worth_trying(error: Exception) -> bool:
    # Behind a model that does not answer there are the retries of its own, and the step's patience.
    if isinstance(error, LMError) and error.retryable:
        return False
    return not isinstance(error, (RecordError, PoisonRow))


def record_of(name: str, made: Any) -> Mapping[str, Any]:
    """The fields that a part returned.

    Raises:
        TypeError: it returned something else.
    """
    if isinstance(made, Example):  # a Prediction is one
        return made._store
    if isinstance(made, Mapping):
        return made
    raise TypeError(f"{name} returned {type(made).__name__}; a module returns a Prediction")


def renamed(name: str, made: Mapping[str, Any], outputs: Mapping[str, str] | None) -> Mapping[str, Any]:
    """The outputs that are wanted, under their new names.

    Raises:
        TypeError: one of them was not made.
    """
    if outputs is None:
        return made
    for field in outputs:
        if field not in made:
            raise TypeError(f"{name} made no output {field!r}, but: {', '.join(map(str, made)) or 'none'}")
    return {new: made[old] for old, new in outputs.items()}
