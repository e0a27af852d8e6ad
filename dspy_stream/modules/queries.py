"""Questions that code asks a model in the middle of its work: one, or several at the same time."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from dspy_stream import events
from dspy_stream.engine import Ticket
from dspy_stream.errors import LMError
from dspy_stream.lm.base import Model, resolve
from dspy_stream.modules.scope import SCOPE, TICKET, default_lm, process_clients
from dspy_stream.modules.together import Branch, together
from dspy_stream.runtime import Ask, Steps, perform
from dspy_stream.telling import put
from dspy_stream.types import Head, Message, Request

__all__ = ["Queries"]


class Queries:
    """The questions of one row's code: through the layers of any other call, and no more than a limit.

    Args:
        limit: how many questions all together.
        lm: the model to ask; the one in force without.
    """

    def __init__(self, limit: int, lm: Model | str | None = None) -> None:
        self._limit = limit
        self._lm = lm
        self.count = 0

    def tools(self) -> dict[str, Callable[..., Any]]:
        """What code calls, by name."""
        return {"llm_query": self.llm_query, "llm_query_batched": self.llm_query_batched}

    def llm_query(self, prompt: str) -> str:
        """Ask a model.

        Raises:
            ValueError: the prompt is empty.
            RuntimeError: the limit is reached.
            LMError: the model could not be asked.
        """
        if not prompt:
            raise ValueError("prompt cannot be empty")
        self._reserve(1)
        made: str = perform(self._asked(prompt, TICKET.get() or Ticket()))
        return made

    def llm_query_batched(self, prompts: list[str]) -> list[str]:
        """Ask a model several things at the same time; answers in the same order.

        A question that could not be put has a text that begins with ``[ERROR]`` as its answer.

        Raises:
            RuntimeError: there are more than the limit allows; none was asked.
        """
        first = self.count
        self._reserve(len(prompts))
        outer = TICKET.get() or Ticket()
        branches, tickets = [], []
        for number, prompt in enumerate(prompts, first):
            context = copy_context()
            # Their calls are numbered apart, in whatever order they are made.
            ticket = outer.beside(f"/llm{number}")
            context.run(TICKET.set, ticket)
            tickets.append(ticket)
            branches.append(Branch(context, self._told(prompt, ticket)))
        try:
            made: list[str] = perform(together(branches))
        finally:
            for ticket in tickets:
                outer.add(ticket)
        return made

    def _reserve(self, count: int) -> None:
        if self.count + count > self._limit:
            raise RuntimeError(
                f"LLM call limit exceeded: {self.count} + {count} > {self._limit}. "
                "Work with what you have, in Python."
            )
        self.count += count

    def _told(self, prompt: str, ticket: Ticket) -> Steps[str]:
        if not prompt:
            return "[ERROR] prompt cannot be empty"
        try:
            return (yield from self._asked(prompt, ticket))
        except LMError as error:
            if error.scope != "row":
                raise
            return f"[ERROR] {error}"

    def _asked(self, prompt: str, ticket: Ticket) -> Steps[str]:
        scope = SCOPE.get()
        lm = resolve(self._lm) if self._lm is not None else default_lm(scope)
        clients = scope.clients if scope is not None else process_clients()
        head = Head(lm.model, (), lm.options, by=lm.by)
        request = Request(head, (Message("user", prompt),), lm.rollout_id, lm.cache)
        if ticket.spoiled is not None:
            request = request.with_rollout(ticket.rollout(request))
        if not request.cache:
            request = request.kept_as(ticket.private_key(request))
        if ticket.step and not events.active:
            response = yield Ask(clients.get(lm), request)
        else:
            response = yield from put(lm, clients.get(lm), request, prompt=prompt)
        ticket.count(response, lm.model)
        text: str = response.text
        return text
