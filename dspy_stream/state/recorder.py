"""What any journal can do, the keys of private calls, and a journal as one run sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from dspy_stream.state.spend import Account, Part, Spend
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
        self,
        key: bytes,
        value: bytes,
        usage: Usage | None = None,
        model: str = "",
        *,
        run_id: str | None = None,
        step: str = "",
    ) -> None:
        """Store an answer and, for a run, what it cost and in which step of which model."""
        ...

    def account(self, run_id: str) -> Account:
        """What a run has paid so far."""
        ...

    def tally(self, run_id: str, found: Mapping[Part, Spend], *, now: bool = True) -> None:
        """Add to a run's totals what no answer brings."""
        ...

    def replace(self, answers: Mapping[bytes, bytes]) -> None:
        """Let answers take the places of others."""
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


def _no_step() -> str:
    return ""


class Recorder:
    """The journal as one run sees it: what is put here counts as paid by that run.

    ``step`` says in which step the code runs that makes a call.
    """

    __slots__ = ("_journal", "_step", "get", "replace", "run_id")

    def __init__(self, journal: JournalLike, run_id: str, step: Callable[[], str] = _no_step) -> None:
        self._journal = journal
        self._step = step
        self.run_id = run_id
        self.get = journal.get
        self.replace = journal.replace

    async def put(self, key: bytes, value: bytes, usage: Usage | None = None, model: str = "") -> None:
        """Store an answer together with the run's new totals; returns when both survive a crash."""
        await self._journal.put(key, value, usage, model, run_id=self.run_id, step=self._step())

    def spend(self) -> Spend:
        """What this run has paid so far, over all its restarts."""
        return self._journal.account(self.run_id).total

    def account(self) -> Account:
        """The same by step and model; not to be changed."""
        return self._journal.account(self.run_id)

    def tally(self, found: Mapping[Part, Spend], *, now: bool = True) -> None:
        """Add what no answer brings: hits of the journal, attempts that were lost."""
        self._journal.tally(self.run_id, found, now=now)
