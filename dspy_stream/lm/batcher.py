"""The batcher layer: requests that come at the same time go to the provider as one."""

from __future__ import annotations

import asyncio
from typing import Final

from dspy_stream.errors import LMIncompleteError, LMInvalidRequestError, LMUnsupportedModelError
from dspy_stream.types import Layer, Request, Response, Usage

__all__ = ["BATCH", "Batcher", "Whole"]

BATCH: Final = "batch"
"""Under this a head keeps how many of its requests go together, where that is not as usual."""

_Waiting = tuple[Request, "asyncio.Future[Response]"]


class Batcher:
    """Put requests of one head together, whose messages are texts and whose choices belong to these.

    What is asked for in one turn of the loop, by however many rows, is sent as one request of at most
    ``size`` texts, or as many as a head says, and never more than ``most``. What a batch used is shared
    out among its requests by the length of their texts. Where a batch is refused, its halves are sent, so
    that a text which cannot be taken fails alone.
    """

    __slots__ = ("_inner", "_most", "_size", "_tasks", "_waiting")

    def __init__(self, inner: Layer, size: int, *, most: int = 2048) -> None:
        self._inner = inner
        self._most = most
        self._size = size
        self._waiting: dict[int, list[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, request: Request) -> Response:
        """The answer to this request alone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        group = self._waiting.get(id(request.head))
        if group is None:
            group = self._waiting[id(request.head)] = []
            loop.call_soon(self._flush, id(request.head))
        group.append((request, future))
        return await future

    def _flush(self, head: int) -> None:
        group = self._waiting.pop(head)
        size = min(group[0][0].head.memo.get(BATCH, self._size), self._most)
        for start in range(0, len(group), size):
            task = asyncio.ensure_future(self._send(group[start : start + size]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, group: list[_Waiting]) -> None:
        try:
            await self._ask(group)
        except BaseException as error:
            for _, future in group:
                if not future.done():
                    if isinstance(error, Exception):
                        future.set_exception(error)
                    else:
                        future.cancel()
            if not isinstance(error, Exception):
                raise

    async def _ask(self, group: list[_Waiting]) -> None:
        first = group[0][0]
        together = Request(first.head, tuple(m for request, _ in group for m in request.tail))
        try:
            response = await self._inner(together)
        except LMInvalidRequestError as error:
            if len(group) == 1 or isinstance(error, LMUnsupportedModelError):
                raise
            half = len(group) // 2
            await asyncio.gather(self._send(group[:half]), self._send(group[half:]))
            return
        for (_, future), part in zip(group, _shared_out(group, response), strict=True):
            if not future.done():
                future.set_result(part)

    async def aclose(self) -> None:
        """Close the layer below."""
        for task in self._tasks:
            task.cancel()
        await self._inner.aclose()


def _shared_out(group: list[_Waiting], response: Response) -> list[Response]:
    """The response of each request: its choice, and its part of what was used."""
    lengths = [1 + sum(len(message.content) for message in request.tail) for request, _ in group]
    total, used = sum(lengths), response.usage
    parts, before, tokens = [], 0, 0
    for length, choice in zip(lengths, response.choices, strict=True):
        before += length
        upto = used.prompt_tokens * before // total
        cost = None if used.cost is None else used.cost * length / total
        usage = Usage(upto - tokens, 0, cost)
        tokens = upto
        parts.append(Response((choice,), usage, response.model, response.request_id))
    return parts


class Whole:
    """Refuse an answer that has not as many choices as the request has texts."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Layer) -> None:
        self._inner = inner

    async def __call__(self, request: Request) -> Response:
        """The answer, as it is."""
        response = await self._inner(request)
        if len(response.choices) != len(request.messages):
            raise LMIncompleteError(
                f"{len(request.messages)} texts were sent, and {len(response.choices)} vectors came back",
                model=request.model,
            )
        return response

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()
