"""What one run spends: its budget, and its calls by step and model."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from dspy_stream.errors import BudgetExceeded, LMError
from dspy_stream.lm.budget import Budget, in_force
from dspy_stream.lm.charged import Charged
from dspy_stream.lm.reserve import may_be_charged, meter_of
from dspy_stream.modules.scope import TICKET
from dspy_stream.state.spend import Account, Part, Spend

if TYPE_CHECKING:
    from dspy_stream.engine import Ticket
    from dspy_stream.lm.base import Model
    from dspy_stream.state.recorder import Recorder
    from dspy_stream.types import Layer, Request, Response

__all__ = ["Spending", "step_in_force"]


def step_in_force() -> str:
    """The step that the code running now belongs to."""
    ticket = TICKET.get()
    return ticket.step if ticket is not None else ""


class Spending:
    """The account of a run in this process, and the layer that charges it.

    A run with a state folder has its account in the journal, where it changes in the same write as
    the answers; without one it is kept here.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget if budget is not None else Budget()
        self.hits: dict[Part, int] = {}
        self._around = in_force()
        self._recorder: Recorder | None = None
        self._here = Account()

    def resume(self, recorder: Recorder | None) -> None:
        """Go on with what the run has spent before."""
        self._recorder = recorder
        if recorder is not None:
            spent = recorder.spend()
            # Of what earlier processes lost only the number is known; it is taken to be the mean.
            unknown = spent.lost + spent.calls - spent.priced
            tokens = spent.lost * spent.total_tokens / spent.calls if spent.calls else 0.0
            cost = unknown * spent.cost / spent.priced if spent.priced else 0.0
            self.budget.start_at(
                spent.calls + spent.lost, spent.total_tokens + math.ceil(tokens), spent.cost + cost
            )

    def around(self, lm: Model, paid: Layer) -> Layer:
        """The layer that every call of a model passes which the journal cannot answer.

        Raises:
            LMConfigurationError: the budget is in dollars, and the model's price is not known.
        """
        budgets = (*self._around, self.budget) if self.budget.limits else self._around
        meter = meter_of(lm, paid)
        for budget in budgets:
            paid = Charged(paid, budget, meter)
        return _Noted(paid, self, lasting=meter.lasting)

    def attempt_failed(self, error: LMError) -> None:
        """Count an attempt, to be repeated or not, that was sent and brought no answer."""
        if may_be_charged(error):
            self._lost(error.model or "")

    def _lost(self, model: str) -> None:
        part = (step_in_force(), model)
        if self._recorder is not None:
            self._recorder.tally({part: Spend(lost=1)}, now=False)
        else:
            self._here.add(part, Spend(lost=1))

    def paid(self, request: Request, response: Response) -> None:
        """Count an answer, where no journal does."""
        if self._recorder is None:
            self._here.paid((step_in_force(), request.model), response.usage)

    def used(self, ticket: Ticket) -> None:
        """Count what the journal answered in one attempt at a row."""
        hits = self.hits
        for model, count in (ticket.found or {}).items():
            part = (ticket.step, model)
            hits[part] = hits.get(part, 0) + count

    def account(self) -> Account:
        """What the run has spent over all its restarts, and what the journal answered."""
        found = self._recorder.account() if self._recorder is not None else self._here
        account = found.copy()
        for part, count in self.hits.items():
            account.add(part, Spend(hits=count))
        return account

    def close(self) -> Account:
        """Store what no answer has brought with it; the account as it is then."""
        account = self.account()
        found = {part: Spend(hits=count) for part, count in self.hits.items()}
        self.hits = {}
        if self._recorder is not None:
            self._recorder.tally(found)
        else:
            self._here = account
        return account


class _Noted:
    """Counts what came of a call, and notes on the row's ticket that one was refused.

    A program may catch the error and go on as if nothing were; the row must not.
    """

    __slots__ = ("_inner", "_lasting", "_spending")

    def __init__(self, inner: Layer, spending: Spending, *, lasting: bool) -> None:
        self._inner = inner
        self._lasting = lasting
        self._spending = spending

    async def __call__(self, request: Request) -> Response:
        try:
            response = await self._inner(request)
        except BudgetExceeded as error:
            ticket = TICKET.get()
            if ticket is not None:
                ticket.refused = error
            raise
        except LMError as error:
            if not error.retryable:  # of the others the retries have told, attempt by attempt
                self._spending.attempt_failed(error)
            raise
        except asyncio.CancelledError:  # the request may be on its way
            if not self._lasting or self._spending._recorder is None:  # else its batch is in the ledger
                self._spending._lost(request.model)
            raise
        self._spending.paid(request, response)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()
