"""The balancing layer: several endpoints, or several keys, as one model."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Final

from dspy_stream.clock import Clock
from dspy_stream.errors import LMAuthError, LMBillingError, LMError, LMUnavailableError
from dspy_stream.lm.circuit import Circuit, speaks_of_the_server
from dspy_stream.types import Layer, Request, Response

__all__ = ["Balancer", "Member"]

_log: Final = logging.getLogger("dspy_stream")

# Up to so many members all are compared; of more, two drawn at random, which is nearly as good
# (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
_FEW: Final = 8
# Seconds in which a failure is half forgotten: after an answer, and twice as many after each further failure
# without one, at most.
_FORGOTTEN: Final = (0.5, 8.0)
# Less than this of a failure is none.
_NOTHING: Final = 0.25


class Member:
    """One endpoint: its layers, its share, and how many calls it has now.

    A call that has just failed there counts as one that it still has: a place that fails fast would
    otherwise be the least busy, and draw the calls of all others.

    ``paused`` says for how many seconds its rate limit holds calls back, 0 where it does not. Once its key
    has been refused it is ``shut``, and asked no more.
    """

    __slots__ = ("_failed", "_failed_at", "_run", "active", "circuit", "layer", "paused", "shut", "weight")

    def __init__(
        self,
        layer: Layer,
        *,
        weight: float = 1.0,
        circuit: Circuit | None = None,
        paused: Callable[[], float] | None = None,
    ) -> None:
        self.layer = layer
        self.weight = weight
        self.circuit = circuit
        self.paused = paused
        self.active = 0
        self.shut = False
        self._failed = 0.0  # failures of late
        self._failed_at = 0.0
        self._run = 0  # failures since the last answer

    def load(self, now: float) -> float:
        """Calls, failures of late among them, for its weight."""
        return (self.active + self._failures(now)) / self.weight

    def answered(self) -> None:
        """A call was answered."""
        self._run = 0

    def failed(self, now: float) -> None:
        """A call failed in a way that speaks of the server."""
        self._failed = self._failures(now) + 1.0
        self._failed_at = now
        self._run += 1

    def _failures(self, now: float) -> float:
        if not self._failed:
            return 0.0
        least, most = _FORGOTTEN
        half = min(least * 2.0 ** min(self._run, 16), most)
        left = self._failed * 0.5 ** ((now - self._failed_at) / half)
        return left if left >= _NOTHING else 0.0


# The member at which a request of this context failed last. It is compared by the request, so that
# what an earlier one left behind does not matter.
_FAILED: Final[ContextVar[tuple[Request, Member] | None]] = ContextVar("dspy_stream_lm_failed", default=None)


class Balancer:
    """Give each call to the member with the fewest calls, and failures of late, for its weight.

    Members whose circuit is open, or whose rate limit holds calls back, are passed over while there
    are others; a call that failed is repeated elsewhere if it can be. The members' calls count while
    they wait as well as while they are made. ``name`` is how errors call the model.

    A member whose key is refused, or whose account has no money, is left out from then on, with a
    warning, and the call goes to another one; only the last one's refusal is raised.

    Raises (when called):
        LMUnavailableError: every circuit is open; ``retry_after`` is that of the first to be tried.
    """

    __slots__ = ("_clock", "_members", "_name", "_rng")

    def __init__(self, members: Sequence[Member], *, name: str, clock: Clock, rng: random.Random) -> None:
        self._members = tuple(members)
        self._name = name
        self._clock = clock
        self._rng = rng

    async def __call__(self, request: Request) -> Response:
        """The answer of one of them."""
        while True:
            failed = _FAILED.get()
            member = self._choose(failed[1] if failed is not None and failed[0] is request else None)
            member.active += 1
            try:
                response = await member.layer(request)
            except (LMAuthError, LMBillingError) as error:
                if not self._goes_on_without(member, error):
                    raise
            except Exception as error:
                _FAILED.set((request, member))
                if isinstance(error, LMError) and speaks_of_the_server(error):
                    member.failed(self._clock.monotonic())
                raise
            else:
                member.answered()
                return response
            finally:
                member.active -= 1

    def _goes_on_without(self, member: Member, error: LMError) -> bool:
        """Leave a member out whose key is refused, unless it is the last."""
        others = [one for one in self._members if not one.shut and one is not member]
        if not others:
            return False
        if not member.shut:
            member.shut = True
            _log.warning(
                "one of the %d endpoints of %s is left out from now on: %s",
                len(self._members),
                self._name,
                error,
            )
        return True

    def _choose(self, avoided: Member | None) -> Member:
        now = self._clock.monotonic()
        open_ = [one for one in self._members if not one.shut]
        ready = [one for one in open_ if one.circuit is None or one.circuit.ready(now)]
        if not ready:
            raise self._unavailable(now)
        ready = [one for one in ready if one.paused is None or one.paused() <= 0.0] or ready
        if len(ready) > 1 and avoided is not None:
            ready = [one for one in ready if one is not avoided]
        if len(ready) > _FEW:
            ready = self._rng.sample(ready, 2)
        loads = [one.load(now) for one in ready]
        least = min(loads)
        best = [one for one, load in zip(ready, loads, strict=True) if load <= least]
        return best[0] if len(best) == 1 else self._rng.choices(best, [one.weight for one in best])[0]

    def _unavailable(self, now: float) -> LMUnavailableError:
        circuits = [one.circuit for one in self._members if one.circuit is not None and not one.shut]
        first = min(circuits, key=lambda circuit: circuit.wait(now))
        return LMUnavailableError(
            f"none of the {len(self._members)} endpoints of {self._name} is asked, because all have failed "
            f"too often just now ({first.reason})",
            model=self._name,
            retry_after=first.wait(now),
        )

    async def aclose(self) -> None:
        """Close every member."""
        for member in self._members:
            await member.layer.aclose()
