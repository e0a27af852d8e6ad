"""The single-flight layer: rows that ask the same thing at the same time share one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from dspy_stream.types import Layer, Request, Response

__all__ = ["SingleFlight"]

_Outcome = Response | BaseException | None
_ABANDONED: Final = None


def _nothing(_request: Request) -> None:
    return None


class SingleFlight:
    """Let the first of several identical requests call, and the others wait for its answer.

    Only requests with ``cache=True`` are shared; they are the same where their keys are. Those
    who waited get the answer marked as cached, since they paid nothing; a failure is shared too,
    and nothing is remembered once the call is over. A waiter that is cancelled concerns nobody
    else; if the caller itself is cancelled, one of those waiting calls in its place.
    """

    __slots__ = ("_flying", "_inner", "peek")

    def __init__(self, inner: Layer) -> None:
        self._inner = inner
        # What the layer below has without waiting; its own method, since every row asks.
        self.peek: Callable[[Request], Response | None] = getattr(inner, "peek", _nothing)
        # The caller runs in its own task and a list appears only when somebody waits: a task
        # for each call would cost as much as the rest of this layer many times over.
        self._flying: dict[bytes, list[asyncio.Future[_Outcome]]] = {}

    async def __call__(self, request: Request) -> Response:
        """The answer, asked for once."""
        if not request.cache:
            return await self._inner(request)
        key = request.key()
        while (waiting := self._flying.get(key)) is not None:
            mine: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
            waiting.append(mine)
            outcome = await mine
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not _ABANDONED:
                return outcome if outcome.cached else outcome._replace(cached=True)
        return await self._lead(key, request)

    async def _lead(self, key: bytes, request: Request) -> Response:
        self._flying[key] = []
        outcome: _Outcome = _ABANDONED
        try:
            outcome = await self._inner(request)
            return outcome
        except Exception as error:  # whatever it is, it belongs to all who asked
            outcome = error
            raise
        finally:
            for future in self._flying.pop(key):
                if not future.done():  # done: that waiter was cancelled
                    future.set_result(outcome)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()
