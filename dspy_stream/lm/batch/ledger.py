"""Where the lane notes its batches: what it needs of a ledger, and one that keeps nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dspy_stream.types import BatchRecord

__all__ = ["Ledger", "MemoryLedger"]


class Ledger(Protocol):
    """Open batches; what is written survives the process when the call returns."""

    def intend(self, record: BatchRecord, keys: Sequence[bytes]) -> None:
        """Note a batch before anything of it is sent."""
        ...

    def update(self, record: BatchRecord) -> None:
        """Note how far a batch has come."""
        ...

    def close(self, record_id: str) -> None:
        """Forget a batch whose results are in the journal, or which was never sent."""
        ...

    def open(self, lane: str) -> list[tuple[BatchRecord, tuple[bytes, ...]]]:
        """The batches of a lane with the journal keys of their requests, oldest first."""
        ...


class MemoryLedger:
    """A ledger for runs that keep nothing: what is at a provider is forgotten with the process."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[BatchRecord, tuple[bytes, ...]]] = {}

    def intend(self, record: BatchRecord, keys: Sequence[bytes]) -> None:
        """Note a batch."""
        self.entries[record.id] = (record, tuple(keys))

    def update(self, record: BatchRecord) -> None:
        """Note how far it has come."""
        self.entries[record.id] = (record, self.entries[record.id][1])

    def close(self, record_id: str) -> None:
        """Forget it."""
        self.entries.pop(record_id, None)

    def open(self, lane: str) -> list[tuple[BatchRecord, tuple[bytes, ...]]]:
        """The batches of a lane."""
        return [entry for entry in self.entries.values() if entry[0].lane == lane]
