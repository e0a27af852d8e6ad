"""Answers on their way from a batch to the journal: none is lost, and none counts as paid twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from dspy_stream.clock import Clock
from dspy_stream.lm.cache import Journal
from dspy_stream.types import Response

__all__ = ["Keeper"]

_PIECE: Final = 500
# How long an answer may take from its waiter to the journal, in growing steps, before it is put there here.
_STEPS: Final = (0.0, 0.0, 0.0, 0.01, 0.05, 0.2, 0.5, 1.0, 2.0)


class Keeper:
    """Holds answers until they are known to be in the journal.

    One that somebody waits for is put there by the layer above, with what it cost; the others are
    put there here. ``kept`` says whether a key's answer is to be kept at all.
    """

    def __init__(self, journal: Journal, clock: Clock, model: str, kept: Callable[[bytes], bool]) -> None:
        self._journal = journal
        self._clock = clock
        self._model = model
        self._kept = kept
        self._loose: dict[bytes, Response] = {}
        self._orphans: set[bytes] = set()
        self._piece: list[bytes] = []
        self._settling: set[asyncio.Task[None]] = set()

    async def get(self, key: bytes) -> Response | None:
        """An answer that came while nobody waited for it: in the journal now, with what it took."""
        found = self._loose.get(key)
        if found is not None:
            await self._put([key] if key in self._orphans else [])
            for pause in _STEPS:  # somebody else is putting it there
                if self.has(key):
                    break
                await self._clock.sleep(pause)
            return found._replace(cached=True)
        data = self._journal.get(key)
        return Response.from_bytes(data) if data is not None else None

    def has(self, key: bytes) -> bool:
        """Whether an answer is in the journal."""
        return self._journal.get(key) is not None

    def take(self, key: bytes, answer: Response, *, awaited: bool) -> None:
        """An answer has come; ``awaited``: it has been handed to somebody."""
        self._loose[key] = answer
        if not awaited:
            self._orphans.add(key)
        self._piece.append(key)
        if len(self._piece) == _PIECE:
            self._begin()

    async def settled(self) -> None:
        """Return when all answers that came are in the journal, whoever put them there."""
        self._begin()
        await asyncio.gather(*self._settling)

    def _begin(self) -> None:
        piece, self._piece = self._piece, []
        task = asyncio.get_running_loop().create_task(self._settle(piece))
        self._settling.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._settling.discard(task)  # a failure stays, for its batch to meet

    async def _settle(self, keys: list[bytes]) -> None:
        await self._put([key for key in keys if key in self._orphans])
        for pause in _STEPS:
            keys = [key for key in keys if key in self._loose]
            for key in keys:
                if not self._kept(key) or self.has(key):
                    self._loose.pop(key, None)
            if all(key not in self._loose for key in keys):
                return
            await self._clock.sleep(pause)
        await self._put([key for key in keys if key in self._loose])  # whoever waited has gone

    async def _put(self, keys: list[bytes]) -> None:
        self._orphans.difference_update(keys)  # nobody else is to put them there meanwhile
        answers = [(key, self._loose[key]) for key in keys if self._kept(key) and not self.has(key)]
        await asyncio.gather(
            *(self._journal.put(key, answer.to_bytes(), answer.usage, self._model) for key, answer in answers)
        )
        for key in keys:
            self._loose.pop(key, None)
