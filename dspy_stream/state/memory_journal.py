"""A journal that forgets everything when the process ends, for scripts and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from dspy_stream.state.lru import ByteLRU
from dspy_stream.state.recorder import PRIVATE, Recorder, _no_step, check_private_prefix
from dspy_stream.state.spend import Account, Part, Spend
from dspy_stream.types import Usage

__all__ = ["MemoryJournal"]


class MemoryJournal:
    """The journal's interface without a folder, at most ``memory_bytes`` of shared answers.

    Private answers are kept until they are forgotten, as on disk.

    >>> import asyncio
    >>> journal = MemoryJournal()
    >>> asyncio.run(journal.recorder("r1").put(b"key", b"answer", Usage(3, 1)))
    >>> journal.get(b"key"), journal.spend("r1").prompt_tokens
    (b'answer', 3)
    """

    def __init__(self, *, memory_bytes: int = 64 << 20) -> None:
        self._shared = ByteLRU(memory_bytes)
        self._private: dict[bytes, bytes] = {}
        self._accounts: dict[str, Account] = {}

    def get(self, key: bytes) -> bytes | None:
        """The stored answer, or None."""
        return self._private.get(key) if key.startswith(PRIVATE) else self._shared.get(key)

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
        """Store an answer; the first one to a key stays."""
        if key.startswith(PRIVATE):
            self._private.setdefault(key, value)
        elif self._shared.get(key) is None:
            self._shared.put(key, value)
        if run_id is not None:
            self._accounts.setdefault(run_id, Account()).paid((step, model), usage)

    def replace(self, answers: Mapping[bytes, bytes]) -> None:
        """Let answers that are here take the places of others: new keys by old ones."""
        for key, other in answers.items():
            found = self._shared.get(other)
            if found is not None:
                self._shared.put(key, found)

    def recorder(self, run_id: str, step: Callable[[], str] = _no_step) -> Recorder:
        """The journal as one run sees it."""
        return Recorder(self, run_id, step)

    def spend(self, run_id: str) -> Spend:
        """What a run has paid so far."""
        return self.account(run_id).total

    def account(self, run_id: str) -> Account:
        """The same by step and model."""
        return self._accounts.get(run_id, Account())

    def tally(self, run_id: str, found: Mapping[Part, Spend], *, now: bool = True) -> None:
        """Add to a run's totals what no answer brings."""
        del now
        account = self._accounts.setdefault(run_id, Account())
        for part, spend in found.items():
            account.add(part, spend)

    def forget(self, prefixes: Iterable[bytes]) -> None:
        """Drop private answers.

        Raises:
            ValueError: a prefix that is not private.
        """
        for prefix in prefixes:
            check_private_prefix(prefix)
            for key in [key for key in self._private if key.startswith(prefix)]:
                del self._private[key]
