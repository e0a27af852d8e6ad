"""The layer for ``n``: where a provider gave fewer answers than were asked for, the rest are asked for."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from dspy_stream.runtime import LISTENER
from dspy_stream.types import Head, Layer, Listener, Request, Response, Usage

__all__ = ["Several"]

# Apart from the rollouts that users choose, and from those of second answers.
_FURTHER: Final = 1_000_000_000_000
_ONE: Final = "one answer"


class Several:
    """Ask once for all ``n`` answers, and for each that did not come by itself, all at the same time.

    Many servers give one answer whatever ``n`` says. A further answer is another question to the layers
    below, with a ``rollout_id`` of its own: it is kept, and paid once, as any other. The first failure is
    raised, and answers that were complete by then are kept.
    """

    __slots__ = ("_inner", "_peek")

    def __init__(self, inner: Layer) -> None:
        self._inner = inner
        self._peek: Callable[[Request], Response | None] | None = getattr(inner, "peek", None)

    def peek(self, request: Request) -> Response | None:
        """The stored answer, without waiting; None where it may be more than one."""
        return self._peek(request) if self._peek is not None and _wanted(request) == 1 else None

    async def __call__(self, request: Request) -> Response:
        """All answers, in one response."""
        response = await self._inner(request)
        came, wanted = len(response.choices), _wanted(request)
        if came >= wanted:
            return response
        tasks = [
            asyncio.ensure_future(self._further(request, number, LISTENER.get()))
            for number in range(came, wanted)
        ]
        try:
            further = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return _together([response, *further])

    async def _further(self, request: Request, number: int, listener: Listener | None) -> Response:
        if listener is not None:
            LISTENER.set(lambda delta: listener(delta._replace(choice=number)))  # of this task alone
        response = await self._inner(_one(request, number))
        return response._replace(choices=response.choices[:1])

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()


def _wanted(request: Request) -> int:
    count = request.head.options.get("n", 1)
    return count if isinstance(count, int) else 1


def _one(request: Request, number: int) -> Request:
    """The same question for one further answer."""
    head = request.head.memo.get(_ONE)
    if head is None:
        options = {name: value for name, value in request.head.options.items() if name != "n"}
        head = Head(request.head.model, request.head.messages, options, by=request.head.by)
        request.head.memo[_ONE] = head
    rollout_id = number * _FURTHER + (request.rollout_id or 0)
    private = request.private
    if private is not None:
        private = hashlib.blake2b(b"%b further %d" % (private, number), digest_size=20).digest()
    return Request(head, request.tail, rollout_id, request.cache, private)


def _together(responses: Sequence[Response]) -> Response:
    """One response of all choices; it used what those used that were paid for."""
    cached = all(response.cached for response in responses)
    used = [response.usage for response in responses if cached or not response.cached]
    choices = tuple([choice for response in responses for choice in response.choices])
    return responses[0]._replace(
        choices=choices, usage=sum(used[1:], used[0] if used else Usage()), cached=cached
    )
