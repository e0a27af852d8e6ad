"""The retry layer: try again what may pass, at growing and random intervals, within one deadline."""

from __future__ import annotations

import os
import random
from typing import Final

from dspy_stream.clock import Clock
from dspy_stream.errors import LMError, LMRateLimitError, LMUnavailableError
from dspy_stream.lm.deadline import BUDGET
from dspy_stream.lm.witness import WITNESS
from dspy_stream.types import Layer, Request, Response

__all__ = ["Retry", "pause"]

_BASE: Final = 0.5
_CAP: Final = 60.0
_RATE_LIMITS: Final = 50
_SPREAD: Final = 0.5


def pause(failures: int, retry_after: float | None, rng: random.Random) -> float:
    """Seconds to wait after the ``failures``-th failure in a row.

    Full jitter: anything from zero to 0.5 s doubled with every failure, at most 60 s. Never less
    than the provider asked for.

    >>> pause(1, 2.0, random.Random(0))
    2.0
    >>> 0.0 <= pause(3, None, random.Random(0)) <= 2.0
    True
    """
    # The exponent is bounded because 2.0 ** 1100 is an OverflowError.
    backoff = rng.uniform(0.0, min(_CAP, _BASE * 2.0 ** min(failures - 1, 16)))
    return max(backoff, retry_after or 0.0)


class Retry:
    """Repeat calls that failed in a way that may pass.

    ``num_retries`` further attempts are made after the first, none with 0; ``timeout`` seconds bound
    all of them and the waits between, but for the time that an attempt waited for a permit. Two
    failures use up no attempt: a rate limit, which is met at most 50 times in a call, and a model that was
    not asked because its circuit is open, whose end is waited for as long as there is time; where
    the layer is not ``patient``, both count as any other. The error that is raised in the end has
    ``attempts`` set, to those that were made.

    A question whose answer is kept nowhere gets a name for this call, so that the provider can tell its
    attempts from other calls.
    """

    __slots__ = ("_clock", "_inner", "_num_retries", "_patient", "_rng", "_timeout")

    def __init__(
        self,
        inner: Layer,
        *,
        num_retries: int,
        timeout: float,
        clock: Clock,
        rng: random.Random,
        patient: bool = True,
    ) -> None:
        self._inner = inner
        self._num_retries = num_retries
        self._timeout = timeout
        self._clock = clock
        self._rng = rng
        self._patient = patient

    async def __call__(self, request: Request) -> Response:
        """The first answer, or the last error."""
        ends = self._clock.monotonic() + self._timeout
        if request.journal_key() is None:
            request = request.kept_as(os.urandom(20))  # not of the generator, which a fork would double
        try:
            return await self._inner(request)
        except LMError as error:
            if not _go_on(error) or self._num_retries == 0:
                raise
            first = error
        return await self._again(request, first, ends)

    async def _again(self, request: Request, error: LMError, ends: float) -> Response:
        clock = self._clock
        count = _Count()
        while True:
            ends += error.waited
            wait = count.after(error, self._rng)
            if count.used_up(error, self._num_retries, self._patient):
                raise _given_up(error, count.made)
            if clock.monotonic() + wait >= ends:
                raise _given_up(error, count.made, f", no time left of {self._timeout:g} s")
            await clock.sleep(wait)
            token = BUDGET.set(max(0.0, ends - clock.monotonic()))
            try:
                return await self._inner(request)
            except LMError as failed:
                error = failed
                if not _go_on(error):
                    count.after(error, self._rng)
                    raise _given_up(error, count.made) from None
            finally:
                BUDGET.reset(token)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()


class _Count:
    """The attempts of one call: those made, and how many of them were its own to lose."""

    __slots__ = ("limited", "lost", "made")

    def __init__(self) -> None:
        self.made = 0
        self.lost = 0
        self.limited = 0

    def after(self, error: LMError, rng: random.Random) -> float:
        """Count a failure; seconds to wait after it."""
        if isinstance(error, LMUnavailableError):
            # Not all at once when the time has come, and not before.
            return (error.retry_after or 0.0) + rng.uniform(0.0, _SPREAD)
        self.made += 1
        if isinstance(error, LMRateLimitError):
            self.limited += 1
        else:
            self.lost += 1
        return pause(self.made, error.retry_after, rng)

    def used_up(self, error: LMError, num_retries: int, patient: bool) -> bool:
        """True where the error is the call's last."""
        if not patient:
            return isinstance(error, LMUnavailableError) or self.made > num_retries
        return self.lost > num_retries or self.limited >= _RATE_LIMITS


def _go_on(error: LMError) -> bool:
    if not error.retryable or error.tried:
        return False
    witness = WITNESS.get()
    return witness is None or witness(error)


def _given_up(error: LMError, attempts: int, why: str = "") -> LMError:
    error.attempts = attempts
    error.message = f"{error.message} ({f'attempt {attempts}' if attempts else 'no attempt'}{why})"
    error.args = (error.message,)
    return error
