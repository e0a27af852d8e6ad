"""The retry layer: try again what may pass, at growing and random intervals, within one deadline."""

from __future__ import annotations

import random
from typing import Final

from dspy_stream.clock import Clock
from dspy_stream.errors import LMError
from dspy_stream.lm.deadline import BUDGET
from dspy_stream.types import Layer, Request, Response

__all__ = ["Retry", "pause"]

_BASE: Final = 0.5
_CAP: Final = 60.0


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

    ``num_retries`` further attempts are made after the first; ``timeout`` seconds bound all of
    them and the waits between. The error that is raised in the end has ``attempts`` set.
    """

    __slots__ = ("_clock", "_inner", "_num_retries", "_rng", "_timeout")

    def __init__(
        self, inner: Layer, *, num_retries: int, timeout: float, clock: Clock, rng: random.Random
    ) -> None:
        self._inner = inner
        self._num_retries = num_retries
        self._timeout = timeout
        self._clock = clock
        self._rng = rng

    async def __call__(self, request: Request) -> Response:
        """The first answer, or the last error."""
        ends = self._clock.monotonic() + self._timeout
        try:
            return await self._inner(request)
        except LMError as error:
            if not error.retryable or self._num_retries == 0:
                raise
            first = error
        return await self._again(request, first, ends)

    async def _again(self, request: Request, error: LMError, ends: float) -> Response:
        clock = self._clock
        for attempt in range(2, self._num_retries + 2):
            wait = pause(attempt - 1, error.retry_after, self._rng)
            if clock.monotonic() + wait >= ends:
                raise _given_up(error, attempt - 1, f", no time left of {self._timeout:g} s")
            await clock.sleep(wait)
            token = BUDGET.set(max(0.0, ends - clock.monotonic()))
            try:
                return await self._inner(request)
            except LMError as failed:
                error = failed
                if not error.retryable:
                    raise _given_up(error, attempt) from None
            finally:
                BUDGET.reset(token)
        raise _given_up(error, self._num_retries + 1)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()


def _given_up(error: LMError, attempts: int, why: str = "") -> LMError:
    error.attempts = attempts
    error.message = f"{error.message} (attempt {attempts}{why})"
    error.args = (error.message,)
    return error
