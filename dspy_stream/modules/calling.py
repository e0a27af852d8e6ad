"""Adapters that ask models by themselves: a subclass with a ``__call__`` of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dspy_stream.adapters import Adapter
from dspy_stream.engine import Answer, Asked, Plan, Ticket
from dspy_stream.history import outputs_of
from dspy_stream.lm.base import Model
from dspy_stream.modules.scope import Clients
from dspy_stream.program import Signature
from dspy_stream.runtime import Steps, aperform, bridge, perform
from dspy_stream.telling import put
from dspy_stream.types import Choice, Head, Layer, Message, Request, Response

__all__ = ["asking_itself"]


def asking_itself(
    lm: Model,
    adapter: Adapter,
    *,
    signature: type[Signature],
    demos: Sequence[Any],
    config: Mapping[str, Any],
    clients: Clients,
) -> Plan:
    """The plan of a predictor whose adapter is called with a model, and gives the outputs.

    What the adapter asks goes the way of any other call of the predictor: journal, limits, budget.
    """
    client = clients.get(lm)

    def whole(inputs: Mapping[str, Any], ticket: Ticket) -> Steps[Answer]:
        asked = _Through(lm, client, ticket)
        made = yield from bridge(adapter, asked, dict(config), signature, list(demos), dict(inputs))
        return Answer(tuple(map(dict, made)), asked.last)

    nothing: Any = None  # no prompt: the adapter writes its own
    return Plan(nothing, Head(lm.model), client, asked=Asked(lm, adapter, signature, demos), whole=whole)


class _Through:
    """A model as an adapter is given it: its calls are those of the row."""

    def __init__(self, lm: Model, client: Layer, ticket: Ticket) -> None:
        self.last = Response((Choice(""),), model=lm.model)
        self._lm = lm
        self._client = client
        self._ticket = ticket

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def __call__(self, prompt: str | None = None, messages: Any = None, **options: Any) -> list[Any]:
        return perform(self._steps(prompt, messages, options))

    async def acall(self, prompt: str | None = None, messages: Any = None, **options: Any) -> list[Any]:
        return await aperform(self._steps(prompt, messages, options))

    def _steps(self, prompt: str | None, messages: Any, options: dict[str, Any]) -> Steps[list[Any]]:
        lm: Any = self._lm
        asking = getattr(lm, "request", None)
        if asking is not None:
            request: Request = asking(prompt, messages, **options)
        else:
            turns = (
                [Message("user", prompt)] if prompt is not None else [Message(**each) for each in messages]
            )
            request = Request.of(lm.model, tuple(turns), **{**lm.options, **options})
        if not request.cache:
            request = request.kept_as(self._ticket.private_key(request))
        response = yield from put(lm, self._client, request, prompt=prompt)
        self._ticket.count(response, lm.model)
        self.last = response
        return outputs_of(response)
