"""What a step does with a row: read its inputs, run the module, add its outputs, judge failures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from dspy_stream.clock import Clock
from dspy_stream.engine import Ticket
from dspy_stream.errors import (
    AdapterParseError,
    BudgetExceeded,
    DSPyStreamError,
    LMError,
    OutOfMemory,
    PoisonRow,
    RecordError,
    RowTimeout,
    TooManyFailures,
)
from dspy_stream.lm.secret import masked
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.defaults import default_outputs
from dspy_stream.modules.hosts import Call
from dspy_stream.modules.module import Module
from dspy_stream.modules.noted import noted
from dspy_stream.modules.running import renamed, stand_in
from dspy_stream.modules.scope import SCOPE, TICKET, Scope
from dspy_stream.modules.together import GUARD, alone
from dspy_stream.modules.traced import OF_CALLS
from dspy_stream.modules.walking import failed_part
from dspy_stream.program import Example
from dspy_stream.rows import Origin, Row, Stage
from dspy_stream.runtime import Steps
from dspy_stream.state.blackbox import MAX_ATTEMPTS
from dspy_stream.stream.ask import HELD, Again
from dspy_stream.stream.codec import as_json
from dspy_stream.stream.limits import Streak
from dspy_stream.stream.meter import Meter
from dspy_stream.stream.nodes import OnError
from dspy_stream.stream.outage import Outage
from dspy_stream.stream.probe import behind, probed
from dspy_stream.stream.watch import Letters, Watch
from dspy_stream.types import Layer

__all__ = ["Dropped", "ModuleWork", "Policy", "refuse_poison"]

# A failure that may pass is tried again after a pause drawn from this range, in seconds.
_PAUSE: Final = (0.5, 3.0)
# The same for a row that may be at fault.
_SHORT: Final = (0.3, 1.0)
# Times a row may meet a failing model while other rows are answered, before it is given up.
_UNLUCKY: Final = 3


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that left the flow on purpose; it travels on so that every row is accounted for."""

    row_id: str
    origin: Origin | None = field(default=None, compare=False)  # known where its other halves wait for it


@dataclass(frozen=True, slots=True)
class Policy:
    """When to try a row again, and when to give it or the flow up.

    ``retries`` are further attempts at a row whose own code or answer failed; attempts that an
    outage cost do not count. ``outage`` is how many seconds a step goes on without one answer
    before the flow ends. Rows ``anew`` ask for other answers where those in the journal cannot be read.
    ``fallback`` answers for a row that is given up, and ``outputs`` says which outputs go into the row and
    under which names. With ``partial`` a dead letter holds the record as far as it had come. ``defaults``
    are the outputs of a row that failed where ``on_error`` is ``"default"``, and with ``covered`` whatever
    parts within the module chose for it. ``call`` is how the module
    is called; a ``bounded`` call keeps to ``timeout`` by itself. ``noted`` outputs are also named in the row.
    With ``probing`` a model may be asked a short question of our own.
    """

    timeout: float | None = None
    retries: int = 0
    on_error: OnError = "dead_letter"
    outage: float = 300.0
    anew: frozenset[str] = frozenset()
    fallback: Module | None = None
    outputs: Mapping[str, str] | None = None
    partial: bool = False
    defaults: Mapping[str, Any] | None = None
    covered: bool = False
    call: Call = heard_steps
    bounded: bool = False
    noted: bool = False
    probing: bool = True


_STARVED: Final = 3


def _ignore(_error: TooManyFailures) -> None:
    """Nobody limits failures."""


def refuse_poison(watch: Watch, step: str, row_id: str) -> None:
    """Raise a PoisonRow where the process died too often while it ran code of this row."""
    deaths = watch.deaths(step, row_id)
    if deaths >= MAX_ATTEMPTS:
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
        self.timeout = policy.timeout if not policy.bounded else None
        self.meter = Meter()
        self._step = step
        self._module = module
        self._policy = policy
        self._call = policy.call
        self._run_id = run_id
        self._letters = letters
        self._watch = watch
        self._clock = clock
        self._rng = random.Random(step)  # noqa: S311  it spreads retries, it guards nothing
        self._names = module.input_names()
        self._required = module.required_names()
        # What it reads, where it needs all of that; asked for every row.
        needs_all = self._names is not None and set(self._names) <= set(self._required)
        self._exact = self._names if needs_all else None
        self._outage = Outage(policy.outage, clock.monotonic(), probing=policy.probing)
        self._streak = streak if streak is not None else Streak(f"in {step}", None, _ignore)
        self._question = asyncio.Event()  # of our own, the latest: set once it is answered or not
        self._question.set()
        self._starved = 0  # rows that found no memory since one passed
        self._degraded: dict[str, str] = {}  # rows whose fallback has its turn, and why
        self._tried: dict[str, int] = {}  # rows to be tried again: how many had passed when they first failed
        self.scope: Scope | None = None  # of the attempts that begin, where it is not the step's first

    def passes(self, item: Any) -> bool:
        """Only rows are worked on."""
        return type(item) is not Row

    def begin(self, row: Row, last: Ticket | None) -> tuple[Steps[Any], Ticket]:
        """Steps for one attempt; the inputs are the fields that the module names.

        Raises:
            RecordError: the row lacks a field the module needs.
            PoisonRow: the row has ended the process too often.
        """
        if last is None:
            self._outage.started(self._clock.monotonic())
        refuse_poison(self._watch, self._step, row.id)
        if last is None:
            ticket = Ticket(self._run_id, self._step, row.id)
            ticket.fresh = row.id in self._policy.anew
        else:
            ticket = last.again()
        TICKET.set(ticket)
        if self.scope is not None:
            SCOPE.set(self.scope)
        GUARD.set(_RowGuard(self._watch, self._step, row.id))
        fallback = self._policy.fallback
        if fallback is not None and row.id in self._degraded:
            steps = stand_in(self._step, fallback, row.fields)
            if self._policy.bounded:
                steps = alone(steps, seconds=self._policy.timeout)
        else:
            steps = self._call(self._module, self._inputs(row))
        if last is not None:
            if self._outage.wants_probe(row.id, self._clock.monotonic()):
                self._question = asyncio.Event()
                return probed(steps, self._probed, self._failing(row.id)), ticket
            if self._outage.suspects(row.id):
                return behind(steps, self._question, partial(self._outage.vouched, row.id)), ticket
        return steps, ticket

    def _failing(self, row_id: str) -> tuple[Layer, str] | None:
        """The model that keeps failing a row, where it can be asked without the row's own code."""
        scope, name = SCOPE.get(), self._outage.failing(row_id)
        client = scope.clients.named(name) if scope is not None and name is not None else None
        return (client, name) if client is not None and name is not None else None

    def _probed(self, model: str | None) -> None:
        self._outage.probed(model is not None, self._clock.monotonic())
        self._question.set()
        if model is not None:
            self._answered((model,))

    def _inputs(self, row: Row) -> Mapping[str, Any]:
        fields = row.fields
        if self._exact is not None:
            try:
                return {name: fields[name] for name in self._exact}
            except KeyError:
                pass  # said below
        for name in self._required:
            if name not in fields:
                known = ", ".join(str(given).removeprefix(OF_CALLS) for given in fields)
                raise RecordError(f"{self._step} needs the field {name!r}; the row has: {known}")
        if self._names is None:
            return fields
        return {name: fields[name] for name in self._names if name in fields}

    def finish(self, row: Row, value: Any, ticket: Ticket) -> Row:
        """The row with the outputs added.

        Raises:
            TypeError: the module returned neither a Prediction nor a mapping.
            BudgetExceeded: a call was refused, whatever the program then did without its answer.
        """
        if ticket.refused is not None:
            raise ticket.refused
        self._watch.used(ticket)
        if ticket.instead is not None:
            self._watch.replaced(ticket)
        if ticket.usage is not None or not ticket.calls:  # the journal's answers say nothing
            self._answered(ticket.usage or ())
        self._streak.passed()
        self._tried.pop(row.id, None)
        self._starved = 0
        if isinstance(value, Example):  # a Prediction is one
            outputs: Mapping[str, Any] = value._store
        elif isinstance(value, Mapping):
            outputs = value
        else:
            raise TypeError(f"{self._step} returned {type(value).__name__}; a module returns a Prediction")
        if self._policy.outputs is not None:
            outputs = renamed(self._step, outputs, self._policy.outputs)
        self._outage.ended(row.id)
        self._degraded.pop(row.id, None)
        if ticket.defaulted is not None:  # of a part within the program, which runs as one step
            self._defaulted(row, ticket.defaulted)
        if self._policy.noted:
            return row.adding(outputs)
        return Row(row.id, {**row.fields, **outputs}, row.origin, row.record)

    def _answered(self, models: Iterable[str]) -> None:
        over = self._outage.answered(models, self._clock.monotonic())
        if over is not None:
            self._watch.recovered(self._step, over)

    def attempt_failed(self, error: LMError) -> bool:
        """Hear of an attempt at a call; False where it is not to be repeated, and the row is judged."""
        self._watch.attempt_failed(error)
        now = self._clock.monotonic()
        if self._outage.troubled(error, now):
            self._watch.troubled(self._step, error)
        ticket = TICKET.get()
        return self._outage.goes_on(ticket.row_id if ticket is not None else "", error, now)

    def fail(self, row: Row, error: BaseException, ticket: Ticket | None) -> Any:
        """A dead letter, a dropped row, or when to try again; ``HELD`` where the run may not spend more.

        Raises:
            BaseException: the error itself, where it concerns the flow and not the row.
        """
        if ticket is not None:
            self._watch.used(ticket)
            if isinstance(error, Exception):
                error = ticket.refused or error
        if isinstance(error, BudgetExceeded):
            self._watch.halt(error)
            return HELD
        if isinstance(error, RowTimeout) and self._watch.tight():
            return Again(0.0)  # the time went into waiting for a place, for which no row is to blame
        if not isinstance(error, Exception) or (isinstance(error, DSPyStreamError) and error.scope != "row"):
            raise error
        attempts = ticket.attempt if ticket is not None else 1
        if self._again(row, error, ticket, attempts):
            self.meter.retries += 1
            self._tried.setdefault(row.id, self._streak.passes)
            waits = isinstance(error, (LMError, MemoryError, RowTimeout))
            pause = (
                self._rng.uniform(*(_SHORT if self._outage.suspects(row.id) else _PAUSE)) if waits else 0.0
            )
            return Again(max(pause, getattr(error, "retry_after", None) or 0.0))
        if self._policy.fallback is not None and ticket is not None and row.id not in self._degraded:
            self._degraded[row.id] = f"{type(error).__name__}: {error}"
            self.meter.fallbacks += 1
            return Again(0.0)
        before = self._degraded.pop(row.id, None)
        passes = self._tried.pop(row.id, None)
        chosen = noted(ticket, error, "on_error") if not self._policy.covered else None
        on_error = chosen or self._policy.on_error
        if on_error == "stop":
            raise error
        self._outage.ended(row.id)
        if on_error == "skip":
            self.meter.skipped += 1
            return Dropped(row.id, row.origin)
        if on_error == "default":
            return self._by_default(row, error)
        self._streak.failed(passes)
        self.meter.dead_letters += 1
        letter = self._letters.write(row, _stage(error), self._step, error, attempts=attempts)
        why = before if before is not None else noted(ticket, error, "fallback_of")
        named = failed_part(self._module, error, noted(ticket, error, "predictor"))
        more = {"predictor": named, "fallback_of": why}
        told = {name: masked(text) for name, text in more.items() if text is not None}
        letter = replace(letter, error={**letter.error, **told})
        return replace(letter, fields=as_json(row.fields)) if self._policy.partial else letter

    def _by_default(self, row: Row, error: Exception) -> Row:
        self._defaulted(row, error)
        outputs: Mapping[str, Any] = default_outputs(self._module, self._policy.defaults)
        if self._policy.outputs is not None:
            outputs = renamed(self._step, outputs, self._policy.outputs)
        return row.adding(outputs)

    def _defaulted(self, row: Row, error: Exception) -> None:
        self.meter.defaulted += 1
        self._watch.defaulted(self._step, row.id, error)

    def _again(self, row: Row, error: Exception, ticket: Ticket | None, attempts: int) -> bool:
        """True to try the row once more."""
        if isinstance(error, LMError) and error.retryable:
            return self._unavailable(row, error)
        if isinstance(error, RowTimeout):
            trouble = self._outage.behind_timeout(self._policy.timeout, self._clock.monotonic())
            if trouble is not None:
                return self._unavailable(row, trouble)
        answered = list(ticket.usage) if ticket is not None and ticket.usage is not None else []
        if isinstance(error, LMError) and error.status is not None and error.model:
            answered.append(error.model)  # by a refusal
        if answered:
            self._answered(answered)
        attempts -= self._outage.lost(row.id)
        if ticket is not None and isinstance(error, AdapterParseError):
            attempts -= ticket.replays()
        if isinstance(error, MemoryError):
            return self._out_of_memory(error, attempts)
        return attempts <= self._policy.retries and not isinstance(error, (RecordError, PoisonRow))

    def _out_of_memory(self, error: MemoryError, attempt: int) -> bool:
        """True to try once more: one row may want too much, but several that find none are not at fault."""
        self._starved += 1
        if self._starved >= _STARVED:
            raise OutOfMemory(
                f"{self._step}: {self._starved} rows in a row found no memory; give the process more, or "
                "lower --capacity, and run again to go on"
            ) from error
        return attempt == 1

    def _unavailable(self, row: Row, error: LMError) -> bool:
        """True to wait on: an outage is not the row's fault, up to the outage budget."""
        now = self._clock.monotonic()
        if self._outage.troubled(error, now):
            self._watch.troubled(self._step, error)
        if self._outage.spent(error, now):
            raise self._outage.told(error, now)
        return not self._outage.blames(row.id, error, max(self._policy.retries, _UNLUCKY))

    def entered(self, row: Row) -> None:
        """Note whose code runs."""
        self._watch.entered(self._step, row.id)

    def left(self) -> None:
        """Note that it does not run now."""
        self._watch.left()


class _RowGuard:
    """Notes whose code runs, where it runs in tasks of its own."""

    __slots__ = ("_row_id", "_step", "_watch")

    def __init__(self, watch: Watch, step: str, row_id: str) -> None:
        self._watch = watch
        self._step = step
        self._row_id = row_id

    def entered(self) -> None:
        self._watch.entered(self._step, self._row_id)

    def left(self) -> None:
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
