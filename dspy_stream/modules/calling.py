"""Adapters that ask models by themselves: subclasses with a ``__call__`` of their own, or an ``acall``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dspy_stream import events
from dspy_stream.adapters import Adapter
from dspy_stream.adapters.hook import is_compiled
from dspy_stream.engine import Answer, Asked, Plan, Ticket
from dspy_stream.history import outputs_of
from dspy_stream.lm.base import Model
from dspy_stream.modules.scope import Clients
from dspy_stream.program import Signature
from dspy_stream.runtime import Steps, aperform, bridge, perform
from dspy_stream.telling import put
from dspy_stream.types import Choice, Head, Layer, Message, Request, Response, turns_of

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
    copies: _Copies = {}

    def whole(inputs: Mapping[str, Any], ticket: Ticket) -> Steps[Answer]:
        row = _Row(clients, copies, ticket, Response((Choice(""),), model=lm.model))
        asked = _Through(lm, client, row)
        given: dict[str, Any] = {"signature": signature, "demos": list(demos), "inputs": dict(inputs)}
        if is_compiled(adapter, "__call__"):
            made = yield events.within(adapter.acall(asked, lm_kwargs=dict(config), **given))
        else:
            made = yield from bridge(adapter, asked, lm_kwargs=dict(config), **given)
        return Answer(tuple(map(dict, made)), row.last)

    nothing: Any = None  # no prompt: the adapter writes its own
    return Plan(nothing, Head(lm.model), client, asked=Asked(lm, adapter, signature, demos), whole=whole)


_Copies = dict[tuple[Model, str], Model]
_PLAIN: Final = (str, int, float, bool, type(None))  # what a copy can be known by
_KEPT: Final = 64  # copies that rows share; more are made for each row


@dataclass(slots=True)
class _Row:
    """What the stand-ins of one row share."""

    clients: Clients
    copies: _Copies
    ticket: Ticket
    last: Response


class _Through:
    """A model as an adapter is given it: its calls are those of the row, and those of its copies too."""

    def __init__(self, lm: Model, client: Layer, row: _Row) -> None:
        self._lm = lm
        self._client = client
        self._row = row

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def __copy__(self) -> _Through:
        return self

    def __deepcopy__(self, memo: object) -> _Through:
        return self

    def copy(self, **changes: Any) -> _Through:
        """The same model with other settings or options; it too asks through journal, limits and budget."""
        row = self._row
        key = (self._lm, repr(sorted(changes.items())))
        made = row.copies.get(key)
        if made is None:
            lm: Any = self._lm
            made = lm.copy(**changes)
            # A model of one's own is equal to itself alone: made for each row, its layers would pile up.
            if len(row.copies) < _KEPT and all(isinstance(value, _PLAIN) for value in changes.values()):
                row.copies[key] = made
        return _Through(made, row.clients.get(made), row)

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
            turns = (Message("user", prompt),) if prompt is not None else turns_of(messages)
            request = Request.of(lm.model, turns, **{**lm.options, **options})
        if not request.cache:
            request = request.kept_as(self._row.ticket.private_key(request))
        response = yield from put(lm, self._client, request, prompt=prompt)
        self._row.ticket.count(response, lm.model)
        self._row.last = response
        return outputs_of(response, getattr(lm, "model_type", "chat"))
