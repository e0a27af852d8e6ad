"""The data path of one predictor and one row: render, call, parse, repair, return.

Everything that is the same for every row is in the :class:`Plan`, made once per predictor,
parameter set and model. What is left per row is this file.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dspy_stream import events
from dspy_stream.adapters.prepared import Prepared
from dspy_stream.errors import AdapterParseError, BudgetExceeded, LMIncompleteError, LMInvalidRequestError
from dspy_stream.runtime import Ask
from dspy_stream.state.recorder import private_key
from dspy_stream.telling import put
from dspy_stream.types import Choice, Head, Layer, Message, Request, Response, Usage
from dspy_stream.usage import note

__all__ = ["Answer", "Asked", "Plan", "Ticket", "ask"]

# Rollouts of second answers start here, out of the way of those that users choose.
_SECOND_ANSWERS: Final = 1_000_000_000

# How providers name the form of answers when they refuse it.
_FORM: Final = re.compile(
    r"(?:response|output|text)[ ._]?(?:format|schema|config)|json[ _-]?(?:schema|object|mode)"
    r"|structured[ _-]?output|grammar|guided",
    re.IGNORECASE,
)
_IN_FORCE: Final = "in force"
_BASE: Final = "base"  # under this a head of one row's keeps the one it was made from
_HEADS: Final = 64


class Heads:
    """Heads with the options that rows add, each made once and kept while there are few of them."""

    __slots__ = ("_made", "_options_of")

    def __init__(self, options_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        self._options_of = options_of
        self._made: dict[tuple[int, int], tuple[Head, Head, Mapping[str, Any]]] = {}

    def of(self, head: Head, inputs: Mapping[str, Any]) -> Head:
        """The head for one row; ``head`` itself where the row adds nothing."""
        options = self._options_of(inputs)
        if not options:
            return head
        key = (id(head), id(options))
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= _HEADS:
                self._made.clear()
            made = Head(head.model, head.messages, {**head.options, **options}, {_BASE: head}, head.by)
            # What the key names is kept with it, so that its ids stay its own.
            found = self._made[key] = (made, head, options)
        return found[0]


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """One predictor made ready: its prompt's constant part, its parser, and the model to ask.

    Attributes:
        plainer: the head to ask with where the provider refuses the form of answers that ``head``
            asks for.
        fallback: another way to ask, where an answer could not be read, nor its repair.
        then: reads the final outputs out of what this plan reads; for each completion a call.
        heads: makes heads with what a row's own request asks for; None where all rows ask the same.
        asked: who is asked what, for those who hear of it.
        whole: does all of it in the place of what this file does: an adapter that asks by itself.
    """

    prepared: Prepared
    head: Head
    client: Layer
    cache: bool = True
    rollout_id: int | None = None
    repairs: int = 1
    plainer: Head | None = None
    fallback: Plan | None = None
    then: Plan | None = None
    heads: Heads | None = None
    asked: Asked | None = None
    whole: Whole | None = None


class Asked(NamedTuple):
    """Who is asked what and how, for those who hear of it."""

    lm: Any
    adapter: Any
    signature: Any
    demos: Any


class Ticket:
    """Which row of which step a call is made for, and what it has used so far.

    The number of the call within the row, together with run, step and row, names an answer that
    must not be shared (``cache=False``): after a crash the same call finds its own answer again.
    """

    __slots__ = (
        *("attempt", "calls", "defaulted", "fresh", "found", "hits", "instead", "noted", "paid", "path"),
        *("refused", "row_id", "run_id", "spoiled", "step", "usage"),
    )

    def __init__(self, run_id: str = "", step: str = "", row_id: str = "", attempt: int = 1) -> None:
        self.run_id = run_id
        self.step = step
        self.row_id = row_id
        self.attempt = attempt
        self.calls = 0
        self.hits = 0
        self.usage: dict[str, Usage] | None = None
        self.paid: dict[str, int] | None = None  # calls that were paid for, by model
        self.found: dict[str, int] | None = None  # calls that the journal answered, by model
        self.refused: BudgetExceeded | None = None  # a call was not made; whatever the program did then
        # Questions whose answers could not be read. The journal would give the same answers
        # again, so a later attempt at the row asks for others.
        self.spoiled: set[bytes] | None = None
        # The row is a dead letter that is retried: second answers are those of this run, and what was asked
        # instead is kept by the question's key: rollout and key.
        self.fresh = False
        self.instead: dict[bytes, tuple[int, bytes]] | None = None
        self.defaulted: Exception | None = None  # why a part within the program has default outputs
        self.noted: tuple[tuple[BaseException, str, Any], ...] = ()  # of failures: see modules.noted
        self.path = ""  # which part of the step's program, where parts count their calls apart

    def again(self) -> Ticket:
        """The ticket of the next attempt at the same row."""
        made = Ticket(self.run_id, self.step, self.row_id, self.attempt + 1)
        made.spoiled, made.fresh, made.path, made.instead = self.spoiled, self.fresh, self.path, self.instead
        return made

    def beside(self, path: str, attempt: int | None = None) -> Ticket:
        """The ticket of a part whose calls are counted apart, since others may be made meanwhile."""
        made = Ticket(self.run_id, self.step, self.row_id, self.attempt if attempt is None else attempt)
        made.spoiled, made.fresh, made.path = self.spoiled, self.fresh, self.path + path
        made.instead = self.instead
        return made

    def add(self, part: Ticket) -> None:
        """Count what a part has used, once it has ended."""
        self.calls += part.calls
        self.hits += part.hits
        self.refused = self.refused or part.refused
        self.defaulted = self.defaulted or part.defaulted
        self.noted += part.noted
        if part.spoiled:
            self.spoiled = part.spoiled if self.spoiled is None else self.spoiled | part.spoiled
        if part.instead:
            self.instead = {**(self.instead or {}), **part.instead}
        for name in ("usage", "paid", "found"):
            mine, theirs = getattr(self, name), getattr(part, name)
            if theirs:
                added = dict(mine or {})
                for model, count in theirs.items():
                    added[model] = added[model] + count if model in added else count
                setattr(self, name, added)

    def rollout(self, request: Request) -> int | None:
        """The rollout to ask for: the plan's own, or another where that answer was unreadable."""
        spoiled = self.spoiled
        if spoiled is None or request.key() not in spoiled:
            return request.rollout_id
        rollout = (request.rollout_id or 0) + _SECOND_ANSWERS + self.attempt
        if not self.fresh:
            return rollout
        known = self.instead.get(request.key()) if self.instead is not None else None
        if known is not None and known[1] not in spoiled:
            return known[0]
        # Each retry of dead letters is a run of its own and asks for answers of its own.
        rollout += zlib.crc32(self.run_id.encode()) << 16
        if request.cache:
            key = request.with_rollout(rollout).key()
            self.instead = {**(self.instead or {}), request.key(): (rollout, key)}
        return rollout

    def replays(self) -> int:
        """Attempts that a retried row has for nothing: each finds out an answer that cannot be read."""
        if not self.fresh:
            return 0
        spoiled = self.spoiled or ()
        return 1 + sum(key not in spoiled for _, key in (self.instead or {}).values())

    def spoil(self, request: Request) -> None:
        """Note that the answer to this request could not be read."""
        self.spoiled = self.spoiled if self.spoiled is not None else set()
        self.spoiled.add(request.key())

    def private_key(self, request: Request) -> bytes | None:
        """A journal key for this very call; None outside a run, where nothing could find it again."""
        if not self.run_id:
            return None
        # The question is part of it: a program that asks in another order after a crash must not
        # be given the answer to something else.
        return private_key(self.run_id, self.row_id, self.step + self.path, self.calls) + b"/" + request.key()

    def count(self, response: Response, model: str) -> None:
        """Note one finished call."""
        self.calls += 1
        if response.cached:  # paid for by somebody else
            self.hits += 1
            if self.found is None:
                self.found = {model: 1}
            else:
                self.found[model] = self.found.get(model, 0) + 1
            return
        note(model, response)
        if self.usage is None or self.paid is None:
            self.usage, self.paid = {model: response.usage}, {model: 1}
            return
        used = self.usage
        used[model] = used[model] + response.usage if model in used else response.usage
        self.paid[model] = self.paid.get(model, 0) + 1


class Answer(NamedTuple):
    """Parsed completions, in the order the model gave them, and the response they came from."""

    completions: tuple[dict[str, Any], ...]
    response: Response


Whole = Callable[[Mapping[str, Any], Ticket], Generator[Any, Any, Answer]]


def ask(plan: Plan, inputs: Mapping[str, Any], ticket: Ticket) -> Generator[Ask, Response, Answer]:
    """Steps that answer one row: one call, one more for each repair, and those of the further plans.

    Raises:
        AdapterParseError: the answer, and its repair, could not be read.
        LMError: the call failed for good.
    """
    if plan.whole is not None:
        return (yield from plan.whole(inputs, ticket))
    # Nobody hears of the calls of a flow's rows, unless somebody wants to.
    quiet = ticket.step and not events.active
    tail = plan.prepared.render(inputs) if quiet else _rendered(plan, inputs)
    request = _request(plan, tail, ticket, inputs)
    try:
        if quiet:
            response = yield Ask(plan.client, request)
        else:
            response = yield from _put(plan, request)
    except LMInvalidRequestError as error:
        request = _plainer(plan, (request, error), ticket, inputs)
        response = yield from _put(plan, request)
    ticket.count(response, plan.head.model)
    try:
        if quiet and len(response.choices) == 1:
            answer = Answer((_parsed(plan, request, response.choices[0]),), response)
        else:
            answer = Answer(_read(plan, request, response), response)
    except AdapterParseError as error:
        answer = yield from _rescue(plan, inputs, (request, error), ticket)
    if plan.then is None:
        return answer
    try:
        answer = yield from _further(plan.then, answer, ticket)
    except AdapterParseError:
        ticket.spoil(request)  # what could not be found in this answer may be in another
        raise
    return answer


def _put(plan: Plan, request: Request) -> Generator[Ask, Response, Response]:
    return put(plan.asked.lm if plan.asked is not None else None, plan.client, request)


def _rendered(plan: Plan, inputs: Mapping[str, Any]) -> tuple[Message, ...]:
    """The row's own messages, while somebody may hear how they are made."""
    if plan.asked is None or not events.active:
        return plan.prepared.render(inputs)
    _, adapter, signature, demos = plan.asked
    given = {"signature": signature, "demos": demos, "inputs": inputs}
    with events.calling("adapter_format", adapter, given) as call:
        tail = plan.prepared.render(inputs)
        call.outputs = [message.to_json() for message in (*plan.head.messages, *tail)]
    return tail


def _plainer(
    plan: Plan, failed: tuple[Request, LMInvalidRequestError], ticket: Ticket, inputs: Mapping[str, Any]
) -> Request:
    """The question without the form of answers that the provider has refused, from now on."""
    request, error = failed
    plain = plan.plainer
    if (
        plain is None
        or plain in (request.head, request.head.memo.get(_BASE))
        or type(error) is not LMInvalidRequestError
    ):
        raise error
    if not _FORM.search(error.message):
        raise error
    plain.memo[_IN_FORCE] = True
    return _request(plan, request.tail, ticket, inputs)


def _rescue(
    plan: Plan, inputs: Mapping[str, Any], failed: tuple[Request, AdapterParseError], ticket: Ticket
) -> Generator[Ask, Response, Answer]:
    """Show the model its own answer and what is wrong with it, and ask again; then ask otherwise."""
    request, error = failed
    asked = [request]
    for _ in range(plan.repairs):
        tail = request.tail + plan.prepared.repair(error.lm_response, error)
        request = _request(plan, tail, ticket, inputs)
        asked.append(request)
        response = yield from _put(plan, request)
        ticket.count(response, plan.head.model)
        try:
            return Answer(_read(plan, request, response), response)
        except AdapterParseError as again:
            error = again
    if plan.fallback is not None:
        try:
            answer = yield from ask(plan.fallback, inputs, ticket)
        except AdapterParseError as last:
            error = last
        else:
            return answer
    for unread in asked:
        ticket.spoil(unread)
    raise error


def _further(then: Plan, answer: Answer, ticket: Ticket) -> Generator[Ask, Response, Answer]:
    """Put every completion to the next plan; the first failure where none can be read."""
    read: list[dict[str, Any]] = []
    first: AdapterParseError | None = None
    for outputs in answer.completions:
        try:
            found = yield from ask(then, outputs, ticket)
        except AdapterParseError as error:  # noqa: PERF203
            first = first or error
        else:
            read.append(found.completions[0])
    if not read:
        assert first is not None
        raise first
    return Answer(tuple(read), answer.response)


def _request(plan: Plan, tail: tuple[Message, ...], ticket: Ticket, inputs: Mapping[str, Any]) -> Request:
    head = plan.head
    if plan.plainer is not None and _IN_FORCE in plan.plainer.memo:
        head = plan.plainer
    if plan.heads is not None:
        head = plan.heads.of(head, inputs)
    request = Request(head, tail, plan.rollout_id, plan.cache)
    if ticket.spoiled is not None:
        request = request.with_rollout(ticket.rollout(request))
    if not plan.cache:
        request = request.kept_as(ticket.private_key(request))
    return request


def _read(plan: Plan, request: Request, response: Response) -> tuple[dict[str, Any], ...]:
    """Every completion that can be read; the first failure where none can."""
    if not response.choices:
        raise LMIncompleteError("the provider sent no completion", model=plan.head.model)
    if len(response.choices) == 1:
        return (_outputs(plan, request, response.choices[0]),)
    read: list[dict[str, Any]] = []
    first: AdapterParseError | None = None
    for choice in response.choices:
        try:
            read.append(_outputs(plan, request, choice))
        except AdapterParseError as error:  # noqa: PERF203
            first = first or error
    if not read:
        assert first is not None
        raise first
    return tuple(read)


def _outputs(plan: Plan, request: Request, choice: Choice) -> dict[str, Any]:
    if plan.asked is not None and events.active:
        given = {"signature": plan.asked.signature, "completion": choice.text}
        with events.calling("adapter_parse", plan.asked.adapter, given) as call:
            outputs: dict[str, Any] = _parsed(plan, request, choice)
            call.outputs = outputs
        return outputs
    return _parsed(plan, request, choice)


def _parsed(plan: Plan, request: Request, choice: Choice) -> dict[str, Any]:
    try:
        return plan.prepared.read(choice)
    except AdapterParseError as error:
        found = plan.prepared.salvage(choice, request.tail)
        if found is not None:
            return found
        why = _why(choice, error.reason)
        if why is None:
            raise
        name, signature = error.adapter_name, error.signature
        raise AdapterParseError(name, signature, error.lm_response, why, error.parsed_result) from None


def _why(choice: Choice, reason: str) -> str | None:
    """Why the answer is not what was asked for, where the provider says more than the answer itself."""
    said = choice.extra.get("refusal") if choice.extra else None
    if said:
        return f"it was refused: {str(said)[:300]}"
    if choice.finish_reason == "content_filter":
        return "the provider's content filter stopped it"
    cut = choice.finish_reason == "length" and "cut off" not in reason
    return f"it was cut off at the limit of tokens: {reason}" if cut else None
