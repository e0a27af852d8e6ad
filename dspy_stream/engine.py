"""The data path of one predictor and one row: render, call, parse, repair, return.

Everything that is the same for every row is in the :class:`Plan`, made once per predictor,
parameter set and model. What is left per row is this file.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dspy_stream.adapters.base import Prepared
from dspy_stream.errors import AdapterParseError, LMIncompleteError
from dspy_stream.runtime import Ask
from dspy_stream.state.recorder import private_key
from dspy_stream.types import Head, Layer, Message, Request, Response, Usage

__all__ = ["Answer", "Plan", "Ticket", "ask"]

# Rollouts of second answers start here, out of the way of those that users choose.
_SECOND_ANSWERS: Final = 1_000_000_000


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """One predictor made ready: its prompt's constant part, its parser, and the model to ask."""

    prepared: Prepared
    head: Head
    client: Layer
    cache: bool = True
    rollout_id: int | None = None
    repairs: int = 1


class Ticket:
    """Which row of which step a call is made for, and what it has used so far.

    The number of the call within the row, together with run, step and row, names an answer that
    must not be shared (``cache=False``): after a crash the same call finds its own answer again.
    """

    __slots__ = ("attempt", "calls", "fresh", "hits", "row_id", "run_id", "spoiled", "step", "usage")

    def __init__(self, run_id: str = "", step: str = "", row_id: str = "", attempt: int = 1) -> None:
        self.run_id = run_id
        self.step = step
        self.row_id = row_id
        self.attempt = attempt
        self.calls = 0
        self.hits = 0
        self.usage: dict[str, Usage] | None = None
        # Questions whose answers could not be read. The journal would give the same answers
        # again, so a later attempt at the row asks for others.
        self.spoiled: set[bytes] | None = None
        self.fresh = False  # ask for other answers to every question, as when a dead letter is retried

    def again(self) -> Ticket:
        """The ticket of the next attempt at the same row."""
        made = Ticket(self.run_id, self.step, self.row_id, self.attempt + 1)
        made.spoiled, made.fresh = self.spoiled, self.fresh
        return made

    def rollout(self, request: Request) -> int | None:
        """The rollout to ask for: the plan's own, or another where that answer was unreadable."""
        if not self.fresh and (self.spoiled is None or request.key() not in self.spoiled):
            return request.rollout_id
        # Each retry of dead letters is a run of its own and asks for answers of its own.
        apart = zlib.crc32(self.run_id.encode()) << 16 if self.fresh else 0
        return (request.rollout_id or 0) + _SECOND_ANSWERS + apart + self.attempt

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
        return private_key(self.run_id, self.row_id, self.step, self.calls) + b"/" + request.key()

    def count(self, response: Response, model: str) -> None:
        """Note one finished call."""
        self.calls += 1
        if response.cached:  # paid for by somebody else
            self.hits += 1
            return
        used = self.usage = self.usage if self.usage is not None else {}
        used[model] = used[model] + response.usage if model in used else response.usage


class Answer(NamedTuple):
    """Parsed completions, in the order the model gave them, and the response they came from."""

    completions: tuple[dict[str, Any], ...]
    response: Response


def ask(plan: Plan, inputs: Mapping[str, Any], ticket: Ticket) -> Generator[Ask, Response, Answer]:
    """Steps that answer one row: at most one call, and one more for each repair.

    Raises:
        AdapterParseError: the answer, and its repair, could not be read.
        LMError: the call failed for good.
    """
    request = _request(plan, plan.prepared.render(inputs), ticket)
    response = yield Ask(plan.client, request)
    ticket.count(response, plan.head.model)
    try:
        return Answer(_read(plan, response), response)
    except AdapterParseError as error:
        answer = yield from _repair(plan, request, error, ticket)
        return answer


def _repair(
    plan: Plan, request: Request, error: AdapterParseError, ticket: Ticket
) -> Generator[Ask, Response, Answer]:
    """Show the model its own answer and what is wrong with it, and ask again."""
    asked = [request]
    for _ in range(plan.repairs):
        request = _request(plan, request.tail + plan.prepared.repair(error.lm_response, error), ticket)
        asked.append(request)
        response = yield Ask(plan.client, request)
        ticket.count(response, plan.head.model)
        try:
            return Answer(_read(plan, response), response)
        except AdapterParseError as again:
            error = again
    for unread in asked:
        ticket.spoil(unread)
    raise error


def _request(plan: Plan, tail: tuple[Message, ...], ticket: Ticket) -> Request:
    request = Request(plan.head, tail, plan.rollout_id, plan.cache)
    if ticket.fresh or ticket.spoiled is not None:
        request = request.with_rollout(ticket.rollout(request))
    if not plan.cache:
        request = request.kept_as(ticket.private_key(request))
    return request


def _read(plan: Plan, response: Response) -> tuple[dict[str, Any], ...]:
    """Every completion that can be read; the first failure where none can."""
    if not response.choices:
        raise LMIncompleteError("the provider sent no completion", model=plan.head.model)
    if len(response.choices) == 1:
        return (plan.prepared.read(response.choices[0]),)
    read: list[dict[str, Any]] = []
    first: AdapterParseError | None = None
    for choice in response.choices:
        try:
            read.append(plan.prepared.read(choice))
        except AdapterParseError as error:  # noqa: PERF203
            first = first or error
    if not read:
        assert first is not None
        raise first
    return tuple(read)
