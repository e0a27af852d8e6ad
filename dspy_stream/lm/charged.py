"""The layers that charge a budget with what passes through them."""

from __future__ import annotations

from dspy_stream.lm.budget import Budget, Send, in_force
from dspy_stream.lm.reserve import Meter
from dspy_stream.types import Layer, Request, Response

__all__ = ["Charged", "InForce"]


class Charged:
    """The layer that charges a budget with what passes through it."""

    __slots__ = ("_budget", "_inner", "_meter")

    def __init__(self, inner: Layer, budget: Budget, meter: Meter) -> None:
        budget.check(meter)
        self._inner = inner
        self._budget = budget
        self._meter = meter

    async def __call__(self, request: Request) -> Response:
        """The answer, once there was room for the call."""
        return await self._budget.pay(self._meter, request, self._inner)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()


class InForce:
    """The layer that charges whatever budgets are in force where a call is made; often none."""

    __slots__ = ("_inner", "_meter")

    def __init__(self, inner: Layer, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    async def __call__(self, request: Request) -> Response:
        """The answer, once there was room for the call in every budget."""
        send: Send = self._inner
        for budget in in_force():  # the innermost block's is asked first
            budget.check(self._meter)
            send = _through(budget, self._meter, send)
        return await send(request)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()


def _through(budget: Budget, meter: Meter, send: Send) -> Send:
    return lambda request: budget.pay(meter, request, send)
