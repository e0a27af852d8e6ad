"""Finished model calls, written before their results are used: nothing is paid twice.

The journal is also the cache. A key says what was asked; calls that must not be shared have keys
of their own (:func:`~dspy_stream.state.recorder.private_key`) and are forgotten when the row is
safely out.
"""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from dspy_stream.clock import Clock, SystemClock
from dspy_stream.errors import StateCorrupt
from dspy_stream.state.batch import Batch, after
from dspy_stream.state.lru import ByteLRU
from dspy_stream.state.memory_journal import MemoryJournal
from dspy_stream.state.recorder import PRIVATE, Recorder, _no_step, check_private_prefix, spend_key
from dspy_stream.state.spend import Account, Part, Spend
from dspy_stream.state.stamp import RESTORE
from dspy_stream.types import Usage

if TYPE_CHECKING:
    from dspy_stream.state.store import Store

__all__ = ["MAX_BYTES", "Journal", "MemoryJournal", "open_journal", "read_account", "read_spend"]

MAX_BYTES: Final = 10_000_000_000
_STAMP: Final = struct.Struct(">Q")
_FEW: Final = 64
_MINUTE: Final = 60_000


class _Group:
    """The calls of one turn of an event loop, written together."""

    __slots__ = ("entries", "loop", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.entries: list[tuple[bytes, bytes, Usage | None, str | None, Part]] = []
        self.waiters: list[asyncio.Future[None]] = []


class Journal:
    """The journal of one state folder.

    ``ttl`` is in seconds, None keeps for ever; ``memory_bytes`` bounds what is kept at hand.
    ``get`` may be called from any thread, ``put`` from any event loop.
    """

    def __init__(
        self,
        store: Store,
        *,
        ttl: float | None = None,
        memory_bytes: int = 8 << 20,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._ttl_ms = None if ttl is None else int(ttl * 1000)
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._memory = ByteLRU(memory_bytes)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._group: _Group | None = None
        self._accounts: dict[str, Account] = {}

    def get(self, key: bytes) -> bytes | None:
        """The stored answer, or None where there is none or it is older than the TTL.

        Raises:
            StateCorrupt: the entry is damaged.
        """
        memory = self._memory
        stored = memory.get(key) if memory.size else None
        if stored is None:
            stored = self._store.get("journal", key)
            if stored is None:
                return None
            if len(stored) < _STAMP.size:
                raise StateCorrupt(f"journal entry {key.hex()} in {self._store.path} is cut short: {RESTORE}")
            # Not kept in memory: RocksDB has its block at hand now, and most are asked for once.
        if self._ttl_ms is not None and self._expired(stored):
            self._memory.drop(key)
            return None
        return stored[8:]

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
        """Store an answer; returns when it survives a crash of the process.

        All calls of one turn of the loop share one write. The first answer to a key stays; a
        second one only adds to what the run has paid. With ``run_id`` the run's totals, and those
        of its step and model, change in the same write. Cancelling the caller does not undo the
        entry: it was paid for.

        Raises:
            StateError: the disk is full or failing; nothing of the turn was stored.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._lock:
            group = self._group
            if group is None or group.loop is not loop:
                # A group of another loop stays alive through that loop's own callback.
                group = self._group = _Group(loop)
                loop.call_soon(self._commit, group)
            group.entries.append((key, value, usage, run_id, (step, model)))
            group.waiters.append(done)
        await done

    def replace(self, answers: Mapping[bytes, bytes]) -> None:
        """Let answers that are here take the places of others, all in one write: new keys by old ones.

        For answers that could not be read. When this returns it survives a crash of the process.

        Raises:
            StateError: the disk is full or failing; nothing was changed.
        """
        with self._writing:
            found = zip(answers, self._store.get_many("journal", list(answers.values())), strict=True)
            batch, made = Batch(), {key: stored for key, stored in found if stored is not None}
            for key, stored in made.items():
                batch.put("journal", key, stored)
            self._store.write(batch)
            for key, stored in made.items():
                self._memory.put(key, stored)

    def close(self) -> None:
        """Give back the store, for a journal that came from :func:`open_journal`."""
        self._store.close()

    def recorder(self, run_id: str, step: Callable[[], str] = _no_step) -> Recorder:
        """The journal as one run sees it; ``step`` says which step a call is made for."""
        return Recorder(self, run_id, step)

    def spend(self, run_id: str) -> Spend:
        """What a run has paid so far; zero for an unknown one."""
        return self.account(run_id).total

    def account(self, run_id: str) -> Account:
        """What a run has paid so far, by step and model too; not to be changed."""
        known = self._accounts.get(run_id)
        if known is None:
            known = read_account(self._store, run_id)
            with self._lock:
                known = self._accounts.setdefault(run_id, known)
        return known

    def tally(self, run_id: str, found: Mapping[Part, Spend], *, now: bool = True) -> None:
        """Add to a run's totals what no answer brings: hits of the journal, attempts that were lost.

        With ``now=False`` it is stored with the next answer, or the next tally.
        """
        with self._writing:
            account = self.account(run_id).copy()
            for part, spend in found.items():
                account.add(part, spend)
            if now:
                self._store.put("runs", spend_key(run_id), account.to_bytes())
            with self._lock:
                self._accounts[run_id] = account

    def forget(self, prefixes: Iterable[bytes]) -> None:
        """Drop private answers, all prefixes in one write.

        Raises:
            ValueError: a prefix that is not private; shared answers are removed by :meth:`gc` only.
        """
        batch = Batch()
        for prefix in prefixes:
            check_private_prefix(prefix)
            keys: list[bytes] = []
            for key, _ in self._store.scan("journal", prefix):
                keys.append(key)
                if len(keys) > _FEW:
                    # Many range markers slow every later read, so they are for many keys only.
                    batch.delete_range("journal", prefix, after(prefix))
                    break
            else:
                for key in keys:
                    batch.delete("journal", key)
        self._store.write(batch)

    def gc(self, *, ttl: float | None = None, max_bytes: int | None = MAX_BYTES) -> tuple[int, int]:
        """Remove entries older than ``ttl`` seconds, then the oldest until ``max_bytes`` are left.

        Sizes are those of keys and values before compression; ages count in whole minutes for
        ``max_bytes``. Reads the whole journal once or twice. Returns entries and bytes removed.
        """
        limit = self._now() - int(ttl * 1000) if ttl is not None else 0
        if max_bytes is not None:
            limit = max(limit, self._limit_for(max_bytes, limit))
        removed, size, batch = 0, 0, Batch()
        for key, stored in self._store.scan("journal"):
            if self._written(key, stored) >= limit:
                continue
            batch.delete("journal", key)
            removed, size = removed + 1, size + len(key) + len(stored)
            if len(batch) >= 1000:
                self._store.write(batch)
                batch = Batch()
        self._store.write(batch)
        if removed:
            self._memory.clear()
            self._store.compact("journal")
        return removed, size

    def _limit_for(self, max_bytes: int, limit: int) -> int:
        minutes: dict[int, int] = {}
        for key, stored in self._store.scan("journal"):
            written = self._written(key, stored)
            if written >= limit:
                minute = written // _MINUTE
                minutes[minute] = minutes.get(minute, 0) + len(key) + len(stored)
        total = sum(minutes.values())
        for minute in sorted(minutes):
            if total <= max_bytes:
                return minute * _MINUTE
            total -= minutes[minute]
        return (max(minutes) + 1) * _MINUTE if minutes else 0

    def _written(self, key: bytes, stored: bytes) -> int:
        try:
            return int(_STAMP.unpack_from(stored)[0])
        except struct.error:
            raise StateCorrupt(
                f"journal entry {key.hex()} in {self._store.path} is cut short: {RESTORE}"
            ) from None

    def _expired(self, stored: bytes) -> bool:
        assert self._ttl_ms is not None
        return bool(self._now() - _STAMP.unpack_from(stored)[0] > self._ttl_ms)

    def _now(self) -> int:
        return max(0, int(self._clock.time() * 1000))

    def _at_hand(self, key: bytes) -> bool:
        """Whether there is an entry in memory that is not too old."""
        stored = self._memory.get(key)
        return stored is not None and (self._ttl_ms is None or not self._expired(stored))

    def _commit(self, group: _Group) -> None:
        with self._lock:
            if self._group is group:
                self._group = None
        try:
            with self._writing:
                self._write(group)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            for waiter in group.waiters:
                if not waiter.done():
                    waiter.set_exception(error)
            return
        for waiter in group.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _write(self, group: _Group) -> None:
        header = _STAMP.pack(self._now())
        fresh: dict[bytes, bytes] = {}
        usages: dict[tuple[str, Part], list[Usage | None]] = {}
        for key, value, usage, run_id, part in group.entries:
            # Only the memory is asked: what is not there was looked for before the call was made.
            if key not in fresh and not self._at_hand(key):
                fresh[key] = header + value
            if run_id is not None:
                usages.setdefault((run_id, part), []).append(usage)
        accounts: dict[str, Account] = {}
        for (run_id, part), paid in usages.items():
            if run_id not in accounts:
                accounts[run_id] = self.account(run_id).copy()
            accounts[run_id].paid_all(part, paid)
        batch = Batch()
        for key, stored in fresh.items():
            batch.put("journal", key, stored)
        for run_id, account in accounts.items():
            batch.put("runs", spend_key(run_id), account.to_bytes())
        self._store.write(batch)
        for key, stored in fresh.items():
            if not key.startswith(PRIVATE):
                self._memory.put(key, stored)
        with self._lock:
            self._accounts.update(accounts)


def open_journal(path: str | os.PathLike[str], *, ttl: float | None = None) -> Journal:
    """The journal of a state folder on its own, for scripts; close it when done.

    Raises:
        StateError: the folder cannot be used; see :meth:`dspy_stream.state.store.Store.open`.
    """
    from dspy_stream.state.store import Store

    return Journal(Store.open(path), ttl=ttl)


def read_spend(store: Store, run_id: str) -> Spend:
    """A run's totals as they are stored; zero where there are none.

    Raises:
        StateCorrupt: the record is damaged.
    """
    return read_account(store, run_id).total


def read_account(store: Store, run_id: str) -> Account:
    """A run's totals, and those of its steps and models, as they are stored.

    Raises:
        StateCorrupt: the record is damaged.
    """
    stored = store.get("runs", spend_key(run_id))
    if stored is None:
        return Account()
    try:
        return Account.from_bytes(stored)
    except ValueError as error:
        raise StateCorrupt(f"the totals of run {run_id} in {store.path} are damaged ({error})") from error
