"""The limit layer: calls to one endpoint wait for permits, as many and as fast as the server lets through."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final
from weakref import WeakValueDictionary

from dspy_stream.clock import Clock
from dspy_stream.errors import LMError, LMRateLimitError, LMUnavailableError
from dspy_stream.lm.controller import Controller, Limits, LimitState
from dspy_stream.lm.deadline import BUDGET
from dspy_stream.lm.rates import quota, says_quota
from dspy_stream.types import Layer, Request, Response

__all__ = ["Limit", "LimitState", "Limiter", "Limits", "limiter_for"]

# The number of the permit with which a call is made.
_PERMIT: Final[ContextVar[int]] = ContextVar("dspy_stream_lm_permit", default=0)

_Waiter = tuple["asyncio.Future[int]", float, bool]

# A wait is not cut short for less than this.
_SOON: Final = 0.001
# Answers without a word on limits after which only every so many-th is looked at.
_SILENT: Final = 8
_LOOK: Final = 64


class Limiter:
    """The permits of one endpoint, shared by everybody in the process who calls it with the same key.

    Calls wait in the order they came; those that have been tried before go first. ``control`` decides;
    ``again`` and ``new`` are those who wait; ``name`` is for people. Not for use from several
    event loops at the same time.
    """

    __slots__ = ("__weakref__", "_at", "_pump", "_silent", "again", "control", "name", "new")

    def __init__(self, limits: Limits | None = None, name: str = "") -> None:
        self.name = name
        self.control = Controller(limits if limits is not None else Limits())
        self.again: deque[_Waiter] = deque()
        self.new: deque[_Waiter] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._at = math.inf  # when the pump wakes up
        self._silent = 0

    def restrict(self, limits: Limits) -> None:
        """Keep to these limits as well as to those it has."""
        self.control.restrict(limits)

    def observer(self, clock: Clock) -> Callable[[Mapping[str, str], int], None]:
        """What a client calls with the headers and the status of every answer."""

        def observe(headers: Mapping[str, str], status: int) -> None:  # noqa: ARG001 - errors say as much
            # A provider that says nothing of limits is soon looked at only now and then.
            silent = self._silent
            if (silent > _SILENT and silent % _LOOK) or not says_quota(headers):
                self._silent = silent + 1
                return
            self._silent = 0
            said = quota(headers, clock.time())
            if said is not None:
                self.control.heard(said, clock.monotonic(), _PERMIT.get())

        return observe

    def state(self, now: float) -> LimitState:
        """How it stands at ``now``, on the clock of the layers."""
        return self.control.state(now, self.waiting)

    @property
    def waiting(self) -> int:
        """How many calls wait for a permit."""
        return sum(not waiter.done() for queue in (self.again, self.new) for waiter, *_ in queue)

    # ------------------------------------------------------------------------- for the layer

    async def wait(self, clock: Clock, tokens: float, *, first: bool, patient: bool = True) -> int:
        """A permit's number, when there is one; ``first``: before those that have not been tried yet.

        Raises:
            LMUnavailableError: everything has been refused for a while, and the call is not ``patient``.
        """
        now = clock.monotonic()
        if not patient and self.control.barren(now):
            raise self._exhausted(now)
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        (self.again if first else self.new).append((waiter, tokens, patient))
        self._grant(clock)
        try:
            return await waiter
        except asyncio.CancelledError:
            if (
                waiter.done() and not waiter.cancelled() and not waiter.exception()
            ):  # the permit and the cancellation crossed
                self.control.dropped(waiter.result())
            self._grant(clock)
            raise

    def answered(self, clock: Clock, number: int, sent: float) -> None:
        """The call came back with an answer, and others wait."""
        self.control.succeeded(clock.monotonic(), number, sent, pressed=True)
        self._grant(clock)

    def failed(self, clock: Clock, number: int, sent: float, error: LMError) -> None:
        """The call failed."""
        now = clock.monotonic()
        self.control.failed(now, number, sent, error)
        if isinstance(error, LMRateLimitError):
            waited_for = self.again or self.new
            error.held = (self.name, self.control.held(now) if waited_for else None)
            if self.control.barren(now):
                self._turn_away(now)
        self._grant(clock)

    def dropped(self, clock: Clock, number: int) -> None:
        """The call was given up."""
        self.control.dropped(number)
        self._grant(clock)

    def _turn_away(self, now: float) -> None:
        """Let those who wait and have somebody else to ask do so."""
        for queue in (self.again, self.new):
            for waiter, _, patient in queue:
                if not patient and not waiter.done():
                    waiter.set_exception(self._exhausted(now))

    def _exhausted(self, now: float) -> LMUnavailableError:
        delay = self.control.delay(now)
        return LMUnavailableError(
            f"{self.name} is not asked now, because it has refused every call of late (429)",
            retry_after=delay if delay < math.inf else None,
        )

    # ------------------------------------------------------------------------------- granting

    def _grant(self, clock: Clock) -> None:
        """Give out the permits that there are, and see to it that somebody comes back for the next."""
        control = self.control
        while queue := self.again or self.new:
            waiter, tokens, _ = queue[0]
            if waiter.done():
                queue.popleft()  # given up while it waited
                continue
            now = clock.monotonic()
            number = control.take(now, tokens)
            if not number:
                delay = control.delay(now, tokens)
                if delay < math.inf:
                    self._wake(clock, now + delay)
                return
            queue.popleft()
            waiter.set_result(number)
        if self._pump is not None and self._at < math.inf:  # nobody waits, be it for a timer that runs
            self._pump.cancel()
            self._pump = None

    def _wake(self, clock: Clock, at: float) -> None:
        pump = self._pump
        if pump is not None and not pump.done():
            if self._at == math.inf:  # it is the pump that asks
                self._at = at
            if at >= self._at - _SOON:
                return
            pump.cancel()
        self._at = at
        self._pump = asyncio.get_running_loop().create_task(self._run(clock))

    async def _run(self, clock: Clock) -> None:
        while self._at < math.inf:
            await clock.sleep(self._at - clock.monotonic())
            self._at = math.inf
            self._grant(clock)
        self._pump = None


_limiters: Final[WeakValueDictionary[tuple[str, str, str], Limiter]] = WeakValueDictionary()


def limiter_for(origin: str, key_digest: str, limits: Limits | None = None, *, scope: str = "") -> Limiter:
    """The limiter of an endpoint, one for the process while anybody uses it.

    ``origin`` is scheme, host and port; ``key_digest`` stands for the key, which must not be handed in;
    ``scope`` sets apart what has limits of its own there, such as a model. All who name ``limits`` are
    kept to the smallest of them.

    >>> kept = limiter_for("https://one.example", "ab12")
    >>> limiter_for("https://one.example", "ab12") is kept
    True
    >>> limiter_for("https://one.example", "cd34") is kept
    False
    """
    name = (origin, key_digest, scope)
    found = _limiters.get(name)
    if found is None:
        found = _limiters[name] = Limiter(
            limits, f"{origin.partition('://')[2]} ({scope})" if scope else origin
        )
    elif limits is not None:
        found.restrict(limits)
    return found


class Limit:
    """Let a call through when its endpoint's limiter has a permit for it.

    The seconds that a failed call has waited are added to ``error.waited``: they are not the call's own.
    One that is not ``patient``, because another model can be asked, waits for no endpoint that refuses
    everything; every permit that there is still tries it. ``allowed`` is asked once a call has waited, and
    raises where it should not be made any more.

    Raises (when called):
        LMUnavailableError: it did not wait, or is not allowed.
    """

    __slots__ = ("_allowed", "_clock", "_inner", "_limiter", "_patient")

    def __init__(
        self,
        inner: Layer,
        limiter: Limiter,
        *,
        clock: Clock,
        patient: bool = True,
        allowed: Callable[[], None] | None = None,
    ) -> None:
        self._patient = patient
        self._allowed = allowed
        self._inner = inner
        self._limiter = limiter
        self._clock = clock

    async def __call__(self, request: Request) -> Response:
        """The answer of the layer below, after a wait if need be."""
        limiter, clock = self._limiter, self._clock
        control = limiter.control
        tokens = control.guess(request) if control.counts_tokens else 0.0
        sent = clock.monotonic()
        waited = 0.0
        # Nobody waits: straight to the state machine, since this is the way of every call.
        number = 0 if limiter.again or limiter.new else control.take(sent, tokens)
        waits = not number
        if waits:
            began = sent
            # A call that has been tried before has a budget.
            number = await limiter.wait(clock, tokens, first=BUDGET.get() is not None, patient=self._patient)
            sent = clock.monotonic()
            waited = sent - began
        permit = _PERMIT.set(number)
        try:
            if waits and self._allowed is not None:
                self._allowed()
            response = await self._inner(request)
        except LMError as error:
            error.waited += waited
            limiter.failed(clock, number, sent, error)
            raise
        except BaseException:
            limiter.dropped(clock, number)
            raise
        finally:
            _PERMIT.reset(permit)
        if limiter.new or limiter.again:
            limiter.answered(clock, number, sent)
        else:
            control.succeeded(clock.monotonic(), number, sent)
        if tokens:
            control.learn(request, tokens, response.usage)
        return response

    def paused(self) -> float:
        """Seconds for which nothing should be sent here while there are other places."""
        control, now = self._limiter.control, self._clock.monotonic()
        return max(control.paused(now), control.delay(now) if control.barren(now) else 0.0)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()
