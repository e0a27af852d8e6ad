"""What a step does with a row: read its inputs, run the module, add its outputs, judge failures."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dspy_stream.clock import Clock
from dspy_stream.engine import Ticket
from dspy_stream.errors import (
    AdapterParseError,
    DSPyStreamError,
    LMError,
    OutOfMemory,
    PoisonRow,
    RecordError,
    TooManyFailures,
)
from dspy_stream.modules.module import Module
from dspy_stream.modules.scope import TICKET
from dspy_stream.program import Example
from dspy_stream.rows import DeadLetter, Row, Stage
from dspy_stream.runtime import Steps
from dspy_stream.stream.ask import Again
from dspy_stream.stream.limits import Streak
from dspy_stream.stream.nodes import OnError

__all__ = ["Dropped", "Letters", "ModuleWork", "Policy", "Watch", "refuse_poison"]

# A failure that may pass is tried again after a pause drawn from this range, in seconds.
_PAUSE: Final = (0.5, 3.0)
# Times a row may meet a failing model while other rows are answered, before it is given up.
_UNLUCKY: Final = 3


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that left the flow on purpose; it travels on so that every row is accounted for."""

    row_id: str


@dataclass(frozen=True, slots=True)
class Policy:
    """When to try a row again, and when to give it or the flow up.

    ``retries`` are further attempts at a row whose own code or answer failed. ``outage`` is how
    many seconds a step goes on without one answer before the flow ends. ``anew`` asks for other
    answers than those in the journal.
    """

    timeout: float | None = None
    retries: int = 0
    on_error: OnError = "dead_letter"
    outage: float = 300.0
    anew: frozenset[str] = frozenset()


class Letters(Protocol):
    """Makes the envelopes of one flow."""

    def write(
        self, row: Row, stage: Stage, step: str, error: BaseException, *, attempts: int = 1
    ) -> DeadLetter:
        """An envelope for a row that failed."""
        ...


class Watch(Protocol):
    """Remembers, through a crash, which row's own code was running; counts what calls used."""

    def entered(self, step: str, row_id: str) -> None:
        """The row's code begins or goes on."""
        ...

    def left(self) -> None:
        """It has returned or waits."""
        ...

    def deaths(self, step: str, row_id: str) -> int:
        """How often the process ended while this row's code ran."""
        ...

    def used(self, ticket: Ticket) -> None:
        """An attempt ended; its calls are counted."""
        ...

    def troubled(self, step: str, error: LMError) -> None:
        """The model does not answer; the row will be tried again."""
        ...


_DEATHS: Final = 3
_STARVED: Final = 3


def _ignore(_error: TooManyFailures) -> None:
    """Nobody limits failures."""


def refuse_poison(watch: Watch, step: str, row_id: str) -> None:
    """Raise a PoisonRow where the process died too often while it ran code of this row."""
    deaths = watch.deaths(step, row_id)
    if deaths >= _DEATHS:
        raise PoisonRow(f"the process died {deaths} times while this row was in {step}")


class ModuleWork:
    """A module as the work of a step."""

    def __init__(
        self,
        step: str,
        module: Module,
        policy: Policy,
        *,
        run_id: str,
        letters: Letters,
        watch: Watch,
        clock: Clock,
        streak: Streak | None = None,
    ) -> None:
        self.timeout = policy.timeout
        self._step = step
        self._module = module
        self._policy = policy
        self._run_id = run_id
        self._letters = letters
        self._watch = watch
        self._clock = clock
        self._rng = random.Random(step)  # noqa: S311  it spreads retries, it guards nothing
        self._names = module.input_names()
        self._required = module.required_names()
        self._answered = clock.monotonic()
        self._streak = streak if streak is not None else Streak(f"in {step}", None, _ignore)
        self._starved = 0  # rows that found no memory since one passed

    def passes(self, item: Any) -> bool:
        """Only rows are worked on."""
        return type(item) is not Row

    def begin(self, row: Row, last: Ticket | None) -> tuple[Steps[Any], Ticket]:
        """Steps for one attempt; the inputs are the fields that the module names.

        Raises:
            RecordError: the row lacks a field the module needs.
            PoisonRow: the row has ended the process too often.
        """
        refuse_poison(self._watch, self._step, row.id)
        if last is None:
            ticket = Ticket(self._run_id, self._step, row.id)
            ticket.fresh = row.id in self._policy.anew
        else:
            ticket = last.again()
        TICKET.set(ticket)
        return self._module.steps(self._inputs(row)), ticket

    def _inputs(self, row: Row) -> Mapping[str, Any]:
        fields = row.fields
        for name in self._required:
            if name not in fields:
                known = ", ".join(map(str, fields))
                raise RecordError(f"{self._step} needs the field {name!r}; the row has: {known}")
        if self._names is None:
            return fields
        return {name: fields[name] for name in self._names if name in fields}

    def finish(self, row: Row, value: Any, ticket: Ticket) -> Row:
        """The row with the outputs added.

        Raises:
            TypeError: the module returned neither a Prediction nor a mapping.
        """
        self._watch.used(ticket)
        self._answered = self._clock.monotonic()
        self._streak.passed()
        self._starved = 0
        if isinstance(value, Example):  # a Prediction is one
            outputs: Mapping[str, Any] = value._store
        elif isinstance(value, Mapping):
            outputs = value
        else:
            raise TypeError(f"{self._step} returned {type(value).__name__}; a module returns a Prediction")
        return Row(row.id, {**row.fields, **outputs}, row.origin, row.raw)

    def fail(self, row: Row, error: BaseException, ticket: Ticket | None) -> Any:
        """A dead letter, a dropped row, or when to try again.

        Raises:
            BaseException: the error itself, where it concerns the flow and not the row.
        """
        if ticket is not None:
            self._watch.used(ticket)
        if not isinstance(error, Exception) or (isinstance(error, DSPyStreamError) and error.scope != "row"):
            raise error
        attempt = ticket.attempt if ticket is not None else 1
        if isinstance(error, MemoryError):
            again = self._out_of_memory(error, attempt)
        elif isinstance(error, LMError) and error.retryable:
            again = self._unavailable(error, attempt)
        else:
            again = attempt <= self._policy.retries and not isinstance(error, (RecordError, PoisonRow))
        if again:
            waits = isinstance(error, (LMError, MemoryError))
            return Again(self._rng.uniform(*_PAUSE) if waits else 0.0)
        if self._policy.on_error == "stop":
            raise error
        if self._policy.on_error == "skip":
            return Dropped(row.id)
        self._streak.failed()
        return self._letters.write(row, _stage(error), self._step, error, attempts=attempt)

    def _out_of_memory(self, error: MemoryError, attempt: int) -> bool:
        """True to try once more: one row may want too much, but several that find none are not at fault."""
        self._starved += 1
        if self._starved >= _STARVED:
            raise OutOfMemory(
                f"{self._step}: {self._starved} rows in a row found no memory; give the process more, or "
                "lower --capacity, and run again to go on"
            ) from error
        return attempt == 1

    def _unavailable(self, error: LMError, attempt: int) -> bool:
        """True to wait on: an outage is not the row's fault, up to the outage budget."""
        silent = self._clock.monotonic() - self._answered
        self._watch.troubled(self._step, error)
        if silent > self._policy.outage:
            raise error
        # While others are answered, a row that keeps failing is at fault itself.
        return silent > _PAUSE[1] or attempt <= max(self._policy.retries, _UNLUCKY)

    def entered(self, row: Row) -> None:
        """Note whose code runs."""
        self._watch.entered(self._step, row.id)

    def left(self) -> None:
        """Note that it does not run now."""
        self._watch.left()


def _stage(error: BaseException) -> Stage:
    if isinstance(error, AdapterParseError):
        return "parse"
    if isinstance(error, LMError):
        return "call"
    if isinstance(error, RecordError):
        return "check"
    if isinstance(error, PoisonRow):
        return "process"
    return "module"
