"""What a call may cost, judged before it is made, and whether a failed one may have been charged for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dspy_stream.errors import LMError, LMProviderError, LMTimeoutError, LMTransportError
from dspy_stream.lm.cost import Price, price_of
from dspy_stream.lm.tokens import Gauge
from dspy_stream.types import Request

if TYPE_CHECKING:
    from dspy_stream.lm.model import Model

__all__ = ["Amount", "Meter", "may_be_charged", "meter_of"]


class Amount(NamedTuple):
    """Calls, tokens and US dollars."""

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, other: Amount, sign: int = 1) -> Amount:
        """Both together; with ``sign=-1`` the difference."""
        return Amount(
            self.calls + sign * other.calls, self.tokens + sign * other.tokens, self.cost + sign * other.cost
        )


class Meter:
    """What the calls to one model cost: its price, and what earlier calls took."""

    __slots__ = ("gauge", "model", "price")

    def __init__(self, model: str, price: Price | None) -> None:
        self.model = model
        self.price = price
        self.gauge = Gauge()

    def expect(self, request: Request) -> Amount:
        """What to keep in reserve for a call."""
        prompt, answer = self.gauge.expect(request)
        # What was really charged shows what no list says: another model that stood in, searches.
        cost = max(self.price.of(prompt, answer) if self.price is not None else 0.0, self.gauge.mean_cost)
        return Amount(1, prompt + answer, cost)


def meter_of(lm: Model) -> Meter:
    """A meter for the calls to a model."""
    known = getattr(lm, "price", None)
    return Meter(lm.model, known() if callable(known) else price_of(lm.model))


def may_be_charged(error: LMError) -> bool:
    """True where the request was sent and what became of it is not known."""
    unknown = isinstance(error, (LMTimeoutError, LMTransportError)) or type(error) is LMProviderError
    answered = error.status is not None and not 200 <= error.status < 300
    return unknown and error.sent and not answered
