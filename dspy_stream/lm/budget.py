"""The budget: what may be spent on calls, held below the journal, so that only what is paid counts.

What is guaranteed. ``max_calls`` is exact: every request that is sent takes a place before it is
sent, repeated attempts included. ``max_tokens`` and ``max_cost`` hold for as much as is known
beforehand: a call is sent when what was spent, what the calls in flight keep in reserve, and its own
reserve stay within the limit. The reserve of an answer is certain where the request has
``max_tokens``; elsewhere it is twice the mean so far, and prompts are judged by their bytes and the ratio
seen so far, so that the total may pass the limit by what the calls in flight take beyond their
reserves. Until a model has answered once it gets one call at a time; by way of a batch only where the
request has no ``max_tokens``.

An attempt that was sent and brought no answer (a timeout, a connection that broke) may have been
charged for, and a late answer is not seen. It counts as a call, and as its reserve of tokens and
money; those of an earlier process, of which only the number is known, count as much as a finished call
of the run took in the mean. Refusals (429, 5xx, 4xx) and connections that were never made cost nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, Token
from typing import Final

from dspy_stream.errors import BudgetExceeded, ConfigurationError, LMConfigurationError, LMError
from dspy_stream.lm.reserve import Amount, Meter, may_be_charged
from dspy_stream.lm.witness import WITNESS
from dspy_stream.types import Request, Response, Usage

__all__ = ["Budget", "Send", "in_force"]

Send = Callable[[Request], Awaitable[Response]]

_ONE: Final = Amount(1)


class Budget:
    """What the calls inside a ``with`` block, or those of a run, may spend.

    Args:
        max_cost: US dollars. Needs the price of every model that is asked.
        max_tokens: of prompts and answers together.
        max_calls: requests that are sent and may be charged for.

    Answers from a journal are free. Once a call has been refused all later ones are; calls in flight
    finish. Around ``flow.run`` the budget holds together with the run's own; it is set around a
    program, not inside its ``forward``. Not shared between processes.

    Raises (in the call that finds it used up):
        BudgetExceeded: says what was spent and what the limit was.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> with Budget(max_calls=1) as budget:
    ...     ScriptedLM("yes")("May I?")
    ['yes']
    >>> budget.calls, budget.left("max_calls")
    (1, 0)
    """

    def __init__(
        self,
        *,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        max_calls: int | None = None,
    ) -> None:
        self.limits: dict[str, float] = {}
        for name, limit in (("max_calls", max_calls), ("max_tokens", max_tokens), ("max_cost", max_cost)):
            if limit is None:
                continue
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 <= limit < math.inf:
                raise ConfigurationError(f"{name} is {limit!r}; it must be a number, zero or more")
            self.limits[name] = limit
        self.refused: BudgetExceeded | None = None
        self._spent = Amount()
        self._reserved = Amount()
        self._flying: Counter[str] = Counter()  # calls on their way, by model
        self._waiting: deque[_Waiter] = deque()
        self._tokens: list[Token[tuple[Budget, ...]]] = []

    # ------------------------------------------------------------------------------------ reading

    @property
    def calls(self) -> int:
        """Calls so far, attempts that got no answer included."""
        return self._spent.calls

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._spent.tokens

    @property
    def cost(self) -> float:
        """US dollars so far, as far as prices are known."""
        return self._spent.cost

    @property
    def tight(self) -> bool:
        """True while a call waits for what others may leave."""
        return bool(self._waiting)

    def left(self, name: str) -> float | None:
        """What is left of a limit; None where it was not set."""
        limit = self.limits.get(name)
        return None if limit is None else max(0, limit - self._used(self._spent)[name])

    def start_at(self, calls: int, tokens: int, cost: float) -> None:
        """Count what was spent before, by earlier processes of the same run."""
        self._spent = Amount(calls, tokens, cost)

    @staticmethod
    def _used(amount: Amount) -> dict[str, float]:
        return {"max_calls": amount.calls, "max_tokens": amount.tokens, "max_cost": amount.cost}

    # ----------------------------------------------------------------------------------- spending

    def check(self, meter: Meter) -> None:
        """See that what a model costs can be known.

        Raises:
            LMConfigurationError: the budget is in dollars and the model has no price.
        """
        if "max_cost" in self.limits and meter.price is None:
            raise LMConfigurationError(
                f"max_cost needs the price of {meter.model}, which is not known: give it with prices= or "
                "--prices, or limit max_tokens or max_calls",
                model=meter.model,
            )

    async def pay(self, meter: Meter, request: Request, send: Send) -> Response:
        """Send the request when there is room for it, and count what it took.

        Raises:
            BudgetExceeded: there is no room, nor will there be.
            LMError: the call failed.
        """
        call = _Call(self, await self._admitted(meter, request))
        token = WITNESS.set(call.failed)
        try:
            response = await send(request)
        except LMError as error:
            call.ended(error)
            if call.refused:
                raise self._exceeded() from error
            raise
        except BaseException:  # cancelled: the request may be on its way
            call.lose()
            raise
        else:
            self._settle(meter, request, call.reserve, response.usage)
            return response
        finally:
            WITNESS.reset(token)
            self._release(meter, call.reserve)

    async def _admitted(self, meter: Meter, request: Request) -> Amount:
        """Take a place, waiting while calls in flight may still leave room for it."""
        if self.refused is not None:
            raise self._exceeded()
        if not self._waiting:
            reserve = self._reserve(meter, request)
            if self._fits(meter, request, reserve):
                return self._take(meter, reserve)
            if not self._reserved.calls:
                raise self._refuse(reserve)
        waiter = _Waiter(meter, request)
        self._waiting.append(waiter)
        try:
            return await waiter.place
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.place.cancelled() and waiter.place.exception() is None:
                self._release(meter, waiter.place.result())  # given in the same moment
            raise

    def _reserve(self, meter: Meter, request: Request) -> Amount:
        return meter.expect(request) if self.limits else _ONE

    def _fits(self, meter: Meter, request: Request, reserve: Amount) -> bool:
        if not self.limits:
            return True
        if self._flying[meter.model] and not self.limits.keys() <= {"max_calls"} and meter.blind(request):
            return False
        return self._over(reserve) is None

    def _over(self, more: Amount) -> str | None:
        """The limit that would be passed."""
        needed = self._used(self._spent.plus(self._reserved).plus(more))
        return next((name for name, limit in self.limits.items() if needed[name] > limit), None)

    def _take(self, meter: Meter, reserve: Amount) -> Amount:
        self._flying[meter.model] += 1
        self._reserved = self._reserved.plus(reserve)
        return reserve

    def _release(self, meter: Meter, reserve: Amount) -> None:
        """Give a place back, and let in whoever waits for it."""
        self._flying[meter.model] -= 1
        reserved = self._reserved.plus(reserve, -1)
        self._reserved = reserved if reserved.calls else Amount()  # floats do not add up to nothing
        waiting = self._waiting
        while waiting:
            head = waiting[0]
            reserve = self._reserve(head.meter, head.request)
            fits = self._fits(head.meter, head.request, reserve)
            if not fits and self.refused is None and not self._reserved.calls:
                self._refuse(reserve)
            if self.refused is None and not fits:
                return
            waiting.popleft()
            if head.place.done():
                continue
            if self.refused is not None:
                head.place.set_exception(self._exceeded())
            else:
                head.place.set_result(self._take(head.meter, reserve))

    def _settle(self, meter: Meter, request: Request, reserve: Amount, usage: Usage) -> None:
        if self.limits:
            meter.gauge.learn(request, usage)
        # What is not known is taken to be what was kept in reserve for it.
        cost = usage.cost if usage.cost is not None else reserve.cost
        tokens = usage.total_tokens
        if "max_tokens" in self.limits and not usage.prompt_tokens:
            tokens = max(tokens, reserve.tokens)
        self._spent = self._spent.plus(Amount(1, tokens, cost))

    def _lost(self, reserve: Amount) -> None:
        self._spent = self._spent.plus(reserve)

    # ------------------------------------------------------------------------------------ refusing

    def _refuse(self, reserve: Amount) -> BudgetExceeded:
        name = self._over(reserve) or next(iter(self.limits), "max_calls")
        spent, limit = self._used(self._spent)[name], self.limits.get(name, 0)
        said = f"{_shown(name, spent)} are spent"
        if spent < limit:
            flying = self._used(self._reserved)[name]
            said += f", {_shown(name, flying)} are kept for calls on their way" if flying else ""
            said += f", and the next call may need {_shown(name, self._used(reserve)[name])}"
        self.refused = BudgetExceeded(
            f"the budget is used up: of at most {_shown(name, limit)} ({name}), {said}"
        )
        self.refused.limit = name
        return self.refused

    def _exceeded(self) -> BudgetExceeded:
        # A fresh one for everybody: a shared exception would collect the traces of all.
        first = self.refused or self._refuse(_ONE)
        error = BudgetExceeded(str(first))
        error.limit = first.limit
        return error

    # ------------------------------------------------------------------------------- in a script

    def __enter__(self) -> Budget:
        self._tokens.append(_IN_FORCE.set((*_IN_FORCE.get(), self)))
        return self

    def __exit__(self, *exc: object) -> None:
        _IN_FORCE.reset(self._tokens.pop())

    def __repr__(self) -> str:
        limits = "".join(f"{name}={limit!r}, " for name, limit in self.limits.items())
        return f"Budget({limits}spent={self.calls} calls, {self.tokens} tokens, ${self.cost:.4f})"


_IN_FORCE: Final[ContextVar[tuple[Budget, ...]]] = ContextVar("dspy_stream_budgets", default=())


class _Waiter:
    """A call that waits for a place."""

    __slots__ = ("meter", "place", "request")

    def __init__(self, meter: Meter, request: Request) -> None:
        self.meter = meter
        self.request = request
        self.place: asyncio.Future[Amount] = asyncio.get_running_loop().create_future()


class _Call:
    """One call on its way, and the attempts that it has lost."""

    __slots__ = ("_budget", "_outer", "_seen", "refused", "reserve")

    def __init__(self, budget: Budget, reserve: Amount) -> None:
        self._budget = budget
        self._outer = WITNESS.get()
        self._seen: LMError | None = None
        self.reserve = reserve
        self.refused = False

    def failed(self, error: LMError) -> bool:
        """Hear of a failed attempt; False where there is no room for another."""
        self._seen = error
        go_on = self._outer is None or self._outer(error)
        if may_be_charged(error):
            self.lose()
            # The place that was taken is used up; another attempt needs one of its own, beside those taken.
            budget = self._budget
            if budget.limits and budget._over(Amount()) is not None:
                budget.refused or budget._refuse(self.reserve)
                self.refused = True
                return False
        return go_on

    def ended(self, error: LMError) -> None:
        """The call failed for good; its last attempt may not have been told."""
        if error is not self._seen and may_be_charged(error):
            self.lose()

    def lose(self) -> None:
        """Count an attempt that was sent and brought no answer."""
        self._budget._lost(self.reserve)


def in_force() -> tuple[Budget, ...]:
    """The budgets of the ``with`` blocks around, the outermost first."""
    return _IN_FORCE.get()


def _shown(name: str, amount: float) -> str:
    if name == "max_cost":
        return f"${amount:.4f}" if amount < 1 else f"${amount:,.2f}"
    return f"{int(amount):,} {'tokens' if name == 'max_tokens' else 'calls'}"
