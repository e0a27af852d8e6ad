"""The cache layer: an answer is in the journal before anybody sees it, and is never paid twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dspy_stream.types import Layer, Request, Response, Usage

__all__ = ["Cache", "DictJournal", "Journal", "direct", "forget_direct"]


class Journal(Protocol):
    """Where finished calls are kept: a fast look, and a write that is durable when it returns."""

    def get(self, key: bytes) -> bytes | None:
        """The stored value; never blocks for long."""
        ...

    async def put(self, key: bytes, value: bytes, usage: Usage | None = None, model: str = "") -> None:
        """Store a value, and what it cost of which model; returns once both are safe."""
        ...


class DictJournal:
    """A journal in memory, for tests and for calls outside a flow.

    >>> DictJournal().get(b"nothing") is None
    True
    """

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """The stored value."""
        return self.entries.get(key)

    async def put(self, key: bytes, value: bytes, usage: Usage | None = None, model: str = "") -> None:
        """Store a value; nobody adds up what it cost."""
        del usage, model
        self.entries[key] = value


_direct = 0


def direct() -> int:
    """Which journals of models called directly count; another number after :func:`forget_direct`."""
    return _direct


def forget_direct() -> None:
    """Let models that are called directly begin anew, each with an empty journal."""
    global _direct
    _direct += 1


class Cache:
    """Answer from the journal where it can; otherwise ask, write, and only then answer.

    ``key_of`` names the entry of a request; None means that it is neither looked up nor kept.
    Answers served from the journal have ``cached=True``.
    """

    __slots__ = ("_inner", "_journal", "_key_of")

    def __init__(
        self, inner: Layer, journal: Journal, key_of: Callable[[Request], bytes | None] = Request.journal_key
    ) -> None:
        self._inner = inner
        self._journal = journal
        self._key_of = key_of

    def peek(self, request: Request) -> Response | None:
        """The stored answer, without waiting."""
        key = self._key_of(request)
        data = self._journal.get(key) if key is not None else None
        return Response.from_bytes(data) if data is not None else None

    async def __call__(self, request: Request) -> Response:
        """The stored answer, or a new one that has been stored."""
        key = self._key_of(request)
        if key is None:
            return await self._inner(request)
        data = self._journal.get(key)  # whatever a peek found: much may have come in since
        if data is not None:
            return Response.from_bytes(data)
        response = await self._inner(request)
        if response.cached:  # somebody else has paid for it, and kept it
            return response
        await self._journal.put(key, response.to_bytes(), response.usage, request.model)
        return response

    async def aclose(self) -> None:
        """Close the layer below; the journal belongs to somebody else."""
        await self._inner.aclose()
