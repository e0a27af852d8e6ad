"""What any journal can do, the keys of private calls, and a journal as one run sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from dspy_stream.state.spend import Spend
from dspy_stream.types import Usage

__all__ = [
    "PRIVATE",
    "JournalLike",
    "Recorder",
    "check_private_prefix",
    "private_key",
    "row_prefix",
    "run_prefix",
    "spend_key",
]

PRIVATE: Final = b"private/"


class JournalLike(Protocol):
    """What :class:`Journal` and its fake in memory have in common."""

    def get(self, key: bytes) -> bytes | None:
        """The stored answer, or None."""
        ...

    async def put(
        self, key: bytes, value: bytes, usage: Usage | None = None, *, run_id: str | None = None
    ) -> None:
        """Store an answer and, for a run, what it cost."""
        ...

    def spend(self, run_id: str) -> Spend:
        """What a run has paid so far."""
        ...

    def forget(self, prefixes: Iterable[bytes]) -> None:
        """Drop private answers."""
        ...


def private_key(run_id: str, row_id: str, step: str, call: int) -> bytes:
    """The key of a call that must not be shared: the call's number within one step of one row.

    >>> private_key("r1", "row-7", "answer", 0).startswith(row_prefix("r1", "row-7"))
    True
    """
    return row_prefix(run_id, row_id) + b"%b/%d" % (step.encode(), call)


def row_prefix(run_id: str, row_id: str) -> bytes:
    """The prefix of all private keys of one row; no row's prefix begins another's."""
    row = row_id.encode("utf-8", "surrogatepass")
    return run_prefix(run_id) + b"%d:%b/" % (len(row), row)


def run_prefix(run_id: str) -> bytes:
    """The prefix of all private keys of one run."""
    return PRIVATE + run_id.encode() + b"/"


def check_private_prefix(prefix: bytes) -> None:
    """Raise ValueError for a prefix that could reach shared answers."""
    if not prefix.startswith(PRIVATE):
        raise ValueError(f"not the prefix of private calls: {prefix!r}; see row_prefix()")


def spend_key(run_id: str) -> bytes:
    """The key of a run's totals in the ``runs`` family."""
    return b"spend/" + run_id.encode()


class Recorder:
    """The journal as one run sees it: what is put here counts as paid by that run."""

    __slots__ = ("_journal", "get", "run_id")

    def __init__(self, journal: JournalLike, run_id: str) -> None:
        self._journal = journal
        self.run_id = run_id
        self.get = journal.get

    async def put(self, key: bytes, value: bytes, usage: Usage | None = None) -> None:
        """Store an answer together with the run's new totals; returns when both survive a crash."""
        await self._journal.put(key, value, usage, run_id=self.run_id)

    def spend(self) -> Spend:
        """What this run has paid so far, over all its restarts."""
        return self._journal.spend(self.run_id)
