"""What a call may cost, judged before it is made, and whether a failed one may have been charged for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dspy_stream.errors import LMError, LMProviderError, LMTimeoutError, LMTransportError
from dspy_stream.lm.cost import Price, price_of
from dspy_stream.lm.tokens import Gauge, answer_limit
from dspy_stream.types import Request

if TYPE_CHECKING:
    from dspy_stream.lm.model import Model
    from dspy_stream.types import Layer

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
    """What the calls to one model cost: its price, and what earlier calls took.

    ``lasting``: a call that is let go goes on all the same, and is counted when its answer is fetched.
    """

    __slots__ = ("gauge", "lasting", "model", "price")

    def __init__(self, model: str, price: Price | None, *, lasting: bool = False) -> None:
        self.model = model
        self.price = price
        self.lasting = lasting
        self.gauge = Gauge()

    def blind(self, request: Request) -> bool:
        """Whether a first call has to show what others like it may take.

        One that may last a day is not waited for where the request itself limits its answer.
        """
        limited = self.lasting and answer_limit(request.options) is not None
        return not self.gauge.known and not limited

    def expect(self, request: Request) -> Amount:
        """What to keep in reserve for a call."""
        prompt, answer = self.gauge.expect(request)
        if self.lasting and not self.gauge.known:
            prompt *= 2  # a whole batch goes by the guess; many languages take more tokens than English
        # What was really charged shows what no list says: another model that stood in, searches.
        cost = max(self.price.of(prompt, answer) if self.price is not None else 0.0, self.gauge.mean_cost)
        return Amount(1, prompt + answer, cost)


def meter_of(lm: Model, paid: Layer | None = None) -> Meter:
    """A meter for the calls to a model; that of ``paid`` where it has its own, as a lane of other prices."""
    own = getattr(paid, "meter", None)
    if isinstance(own, Meter):
        return own
    known = getattr(lm, "price", None)
    return Meter(lm.model, known() if callable(known) else price_of(lm.model))


def may_be_charged(error: LMError) -> bool:
    """True where the request was sent and what became of it is not known."""
    unknown = isinstance(error, (LMTimeoutError, LMTransportError)) or type(error) is LMProviderError
    answered = error.status is not None and not 200 <= error.status < 300
    return unknown and error.sent and not answered
