"""One state folder, one RocksDB.

Keys and values are bytes throughout. A folder has one owner process; within it, everybody who
opens the same folder shares one :class:`Store`. Beside a running flow others may look with
``read_only=True``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, cast

from rocksdict import AccessType, Rdict, WriteBatch

from dspy_stream.errors import StateError
from dspy_stream.state import exchange
from dspy_stream.state import stamp as stamps
from dspy_stream.state.batch import FAMILIES, Batch, Family, after
from dspy_stream.state.database import (
    assert_recovery_mode,
    close_quietly,
    connect,
    database_options,
    family_names,
)
from dspy_stream.state.faults import classify
from dspy_stream.state.folder import FolderLock, check_private, prepare
from dspy_stream.state.layout import LAYOUT_KEY, check_layout, layout_stamp

__all__ = ["Batch", "Store", "check_unopened"]

_CHUNK: Final = 256
_CHUNK_BYTES: Final = 1 << 20
_STAMP_EVERY: Final = 256


class Store:
    """The database of one state folder. Thread safe; every method blocks only for the disk.

    Use :meth:`open`; close as often as you opened. After a failed write all further writes fail
    until the folder is opened again, while reading goes on.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent, Store.open(parent + "/state") as store:
    ...     batch = Batch()
    ...     batch.put("meta", b"colour", b"green")
    ...     store.write(batch)
    ...     store.get("meta", b"colour"), list(store.scan("meta", b"col"))
    (b'green', [(b'colour', b'green')])
    """

    def __init__(self, path: Path, database: Rdict, *, lock: FolderLock | None, scratch: str | None) -> None:
        self.path = path
        self.read_only = lock is None
        self._db = database
        self._families: dict[str, Rdict] = {name: database.get_column_family(name) for name in FAMILIES}
        self._handles = {name: database.get_column_family_handle(name) for name in FAMILIES}
        self._lock = lock
        self._scratch = scratch
        self._stamp = stamps.StampFile(path) if lock is not None else None
        self._sync_lock = threading.Lock()
        self._synced = 0
        self._writes = 0
        self._failure: str | None = None
        self._references = 1

    @staticmethod
    def open(path: str | os.PathLike[str], *, read_only: bool = False, create: bool = True) -> Store:
        """The store of a folder, created where there is none; shared within the process.

        ``read_only`` opens a separate view that may stand beside the owner, see :meth:`catch_up`;
        ``create=False`` makes no new one.

        Raises:
            StateLocked: another process owns the folder.
            StateCorrupt: damaged, or written by another version; nothing in it was changed.
            ConfigurationError: the folder is a link, not ours, or writable by others.
            StateError: not a folder, it cannot be read or written, or there is none to be opened.
        """
        if read_only:
            return _open_view(Path(path))
        if not create and not (Path(path) / "db").is_dir():
            raise StateError(f"there is no state folder {path}")
        folder = prepare(path)
        with _registry_lock:
            store = _registry.get(folder)
            if store is not None:
                store._references += 1
                return store
            lock = FolderLock.acquire(folder)
            try:
                store = _open_owner(folder, lock)
            except BaseException:
                lock.release()
                raise
            _registry[folder] = store
            return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give one reference back; the last one syncs, closes the database and frees the folder.

        Raises:
            StateError: the last entries could not be made durable; the folder is freed all the same.
        """
        with _registry_lock:
            self._references -= 1
            if self._references != 0:
                return
            try:
                if not self.read_only and self._failure is None:
                    self.sync()
            finally:
                _registry.pop(self.path, None)
                self._release()

    def get(self, family: Family, key: bytes) -> bytes | None:
        """The value of a key, or None.

        Raises:
            StateCorrupt: the block that holds it is damaged.
        """
        try:
            value: bytes | None = self._families[family].get(key)
        # The binding raises bare Exception, here and below; classify() is where it gets a class.
        except Exception as error:
            raise classify(error, self.path, "reading") from error
        return value

    def get_many(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of many keys, in their order, None where there is none."""
        try:
            values = self._families[family].get(list(keys))
        except Exception as error:
            raise classify(error, self.path, "reading") from error
        return cast("list[bytes | None]", values)

    def scan(
        self, family: Family, prefix: bytes = b"", *, start: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys with a prefix and their values, in order of key, beginning at ``start``.

        Entries are read in pieces and no iterator stays open between them, so writing and deleting
        while scanning is allowed; what is written meanwhile may or may not be seen.

        Raises:
            StateCorrupt: a block is damaged. A scan never just ends early.
        """
        position = max(prefix, start) if start is not None else prefix
        while True:
            piece, more = self._piece(family, position, prefix)
            yield from piece
            if not more:
                return
            position = piece[-1][0] + b"\0"

    def _piece(
        self, family: Family, position: bytes, prefix: bytes
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        found: list[tuple[bytes, bytes]] = []
        size = 0
        try:
            cursor = self._families[family].iter()
            cursor.seek(position)
            while cursor.valid():
                key = cursor.key()
                if not key.startswith(prefix):
                    return found, False
                if len(found) >= _CHUNK or size >= _CHUNK_BYTES:
                    return found, True
                value = cursor.value()
                found.append((key, value))
                size += len(key) + len(value)
                cursor.next()
            # An iterator at a damaged block looks like one at its end, except here.
            cursor.status()
        except Exception as error:
            raise classify(error, self.path, "scanning") from error
        return found, False

    def write(self, batch: Batch) -> None:
        """Apply a batch as a whole; when this returns it survives the process, not yet a power loss.

        Raises:
            StateError: the disk is full or failing; nothing of the batch was applied.
        """
        if not batch.changes:
            return
        self._check_writable()
        handles = self._handles
        raw = WriteBatch(raw_mode=True)
        for family, key, value, is_range in batch.changes:
            if value is None:
                raw.delete(key, handles[family])
            elif is_range:
                raw.delete_range(key, value, handles[family])
            else:
                raw.put(key, value, handles[family])
        try:
            self._db.write(raw)
        except Exception as error:
            raise self._failed(error, "writing") from error
        self._writes += 1
        if self._writes % _STAMP_EVERY == 0:
            self._restamp()

    def put(self, family: Family, key: bytes, value: bytes) -> None:
        """Write one key; see :meth:`write`."""
        batch = Batch()
        batch.put(family, key, value)
        self.write(batch)

    def delete_prefix(self, family: Family, prefix: bytes) -> None:
        """Remove all keys with a prefix, in one step whatever their number."""
        batch = Batch()
        batch.delete_range(family, prefix, after(prefix))
        self.write(batch)

    def sync(self) -> None:
        """Return when everything written so far survives a power loss.

        Raises:
            StateError: the disk is full or failing.
        """
        self._check_writable()
        with self._sync_lock:
            sequence = self._db.latest_sequence_number()
            if sequence == self._synced:
                return
            try:
                self._db.flush_wal(True)
            except Exception as error:
                raise self._failed(error, "syncing") from error
            self._synced = sequence
        self._restamp()

    def catch_up(self) -> None:
        """Let a read-only view see what the owner has written since; about 2 ms."""
        try:
            self._db.try_catch_up_with_primary()
        except Exception as error:
            raise classify(error, self.path, "catching up") from error

    def compact(self, family: Family) -> None:
        """Give the space of removed entries back to the disk; may take seconds a gigabyte."""
        self._check_writable()
        try:
            self._families[family].compact_range(None, None)
        except Exception as error:
            raise classify(error, self.path, "compacting") from error

    def estimate(self, family: Family) -> int:
        """About how many keys a family has, at once; exact only after a compaction."""
        try:
            count = self._families[family].property_int_value("rocksdb.estimate-num-keys")
        except Exception as error:
            raise classify(error, self.path, "reading") from error
        return count or 0

    def disk_bytes(self) -> int:
        """Bytes of all files of the database."""
        return sum(stamps.size_of(file) for file in (self.path / "db").iterdir())

    def _check_writable(self) -> None:
        if self.read_only:
            raise StateError(f"{self.path} was opened for reading only")
        if self._failure is not None:
            raise StateError(self._failure)

    def _failed(self, error: Exception, doing: str) -> StateError:
        # RocksDB refuses every write after a failed one, and no longer says why.
        known = classify(error, self.path, doing)
        if self._failure is None:
            self._failure = str(known)
        return known

    def _restamp(self) -> None:
        if self._stamp is not None:
            self._stamp.write(stamps.observe(self.path / "db", self._synced))

    def _begin_stamp(self) -> None:
        assert self._stamp is not None
        self._db.flush_wal(True)
        self._synced = self._db.latest_sequence_number()
        self._stamp.write(stamps.observe(self.path / "db", self._synced), durable=True)

    def _release(self) -> None:
        self._failure = f"the state folder {self.path} was closed; open it again"
        self._handles.clear()
        # Each of these objects keeps the database, and with it RocksDB's own lock, alive.
        for part in (*self._families.values(), self._db):
            close_quietly(part)
        if self._stamp is not None:
            self._stamp.close()
        if self._lock is not None:
            self._lock.release()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


_registry: dict[Path, Store] = {}
_registry_lock = threading.RLock()
_inherited: list[Store] = []


def _after_fork() -> None:
    # A child must neither use nor close the parent's database, and closing is what forgetting
    # the last reference would do.
    global _registry_lock
    _inherited.extend(_registry.values())
    _registry.clear()
    _registry_lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def _open_owner(folder: Path, lock: FolderLock) -> Store:
    exchange.check_none(folder)
    database = folder / "db"
    database.mkdir(mode=0o700, exist_ok=True)
    check_private(database, "state folder")
    check_unopened(folder)
    handle = connect(folder, database_options(create=True), AccessType.read_write())
    store = Store(folder, handle, lock=lock, scratch=None)
    try:
        assert_recovery_mode(database)
        if store.get("meta", LAYOUT_KEY) is None:
            store.put("meta", LAYOUT_KEY, layout_stamp())
        store._begin_stamp()
    except BaseException:
        store._release()
        raise
    return store


def check_unopened(folder: Path) -> None:
    """Look whether a folder may be opened, and change nothing: one that is refused stays as it was.

    Raises:
        StateCorrupt: it is damaged, or of another version.
    """
    last = stamps.read(folder)
    if stamps.check_files(last, folder / "db"):
        _peek(folder, last)


def _peek(folder: Path, last: stamps.Stamp | None) -> None:
    names = family_names(folder)
    if set(names) != set(FAMILIES):  # only the version stamp can be looked at
        names = tuple(name for name in names if name == "meta")
    view = connect(folder, database_options(create=False), AccessType.read_only(False), names)
    try:
        meta = view.get_column_family("meta") if "meta" in names else None
        sequence = view.latest_sequence_number()
        stored = meta.get(LAYOUT_KEY) if meta is not None else None
        check_layout(folder, stored, empty=sequence == 0)
        stamps.check_sequence(last, folder / "db", sequence)
        if meta is not None:
            meta.close()
    except StateError:
        raise
    except Exception as error:
        raise classify(error, folder, "opening") from error
    finally:
        view.close()


def _open_view(path: Path) -> Store:
    if not path.is_dir():
        raise StateError(f"there is no state folder {path}")
    folder = path.resolve()
    exchange.check_none(folder)
    if not stamps.check_files(stamps.read(folder), folder / "db"):
        raise StateError(f"the folder {folder} holds no state")
    if set(family_names(folder)) != set(FAMILIES):  # of another version, or never finished
        _peek(folder, stamps.read(folder))
        raise StateError(f"the folder {folder} holds no state")
    scratch = tempfile.mkdtemp(prefix="dspy_stream-view-")
    try:
        # A secondary must be able to hold every file, as the owner may delete one it still needs.
        options = database_options(create=False, open_files=-1)
        handle = connect(folder, options, AccessType.secondary(scratch))
        store = Store(folder, handle, lock=None, scratch=scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    try:
        check_layout(folder, store.get("meta", LAYOUT_KEY), empty=False)
    except BaseException:
        store._release()
        raise
    return store
