"""Which row's user code is executing right now, legible after the process was killed.

A file of fixed slots, mapped into memory, one for each thread that runs user code. Entering
writes the slot, leaving clears it; the kernel keeps the page when the process dies. On the next
start the occupied slots name the suspects, and a row that was there three times is poison.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dspy_stream.errors import ConfigurationError, StateCorrupt, StateError
from dspy_stream.state.batch import Batch
from dspy_stream.state.stamp import RESTORE

if TYPE_CHECKING:
    from dspy_stream.state.store import Store

__all__ = ["MAX_ATTEMPTS", "BlackBox", "file_is_sound"]

MAX_ATTEMPTS: Final = 3
SLOTS: Final = 256
SLOT: Final = 256
_MAGIC: Final = b"dsbbox1\0"
_HEADER: Final = struct.Struct(">8sQ")
_ROOM: Final = SLOT - 1
_TOO_MANY: Final = f"more than {SLOTS} threads run user code; lower the threads of a step"
_COUNTED: Final = b"counted"
_PREFIX: Final = b"row/"


class BlackBox:
    """The slots of one state folder, opened by its owner.

    ``suspects`` are the rows that were in user code when the last process died, as step and row
    id; opening has counted them already. A step and row too long for a slot go by a digest.

    >>> import tempfile
    >>> from dspy_stream.state.store import Store
    >>> with tempfile.TemporaryDirectory() as parent, Store.open(parent + "/state") as store:
    ...     box = BlackBox(store)
    ...     slot = box.claim()
    ...     box.enter(slot, "answer", "row-7"); box.close()       # as if it had died here
    ...     box = BlackBox(store)
    ...     box.suspects, box.attempts("answer", "row-7")
    ...     box.close()
    ((('answer', 'row-7'),), 1)
    """

    __slots__ = ("_free", "_lock", "_map", "_store", "_tally", "path", "suspects")

    def __init__(self, store: Store) -> None:
        self._store = store
        self.path = store.path / "blackbox"
        self._lock = threading.Lock()
        self._free = list(range(SLOTS - 1, -1, -1))
        self._map = _map(self.path)
        try:
            self._tally = _tallies(store)
            self.suspects: tuple[tuple[str, str], ...] = self._count()
        except BaseException:
            self._map.close()
            raise

    def claim(self) -> int:
        """A slot for the calling thread, until it is given back.

        Raises:
            ConfigurationError: more threads than slots run user code.
        """
        with self._lock:
            if not self._free:
                raise ConfigurationError(_TOO_MANY)
            return self._free.pop()

    def release(self, slot: int) -> None:
        """Give a slot back."""
        with self._lock:
            self.leave(slot)
            self._free.append(slot)

    def enter(self, slot: int, step: str, row_id: str) -> None:
        """Note that user code of a step begins to execute for a row; about 0.4 us, never blocks.

        Slots are numbered from zero, one for each thread: from :meth:`claim`, or given out by the caller.

        Raises:
            ConfigurationError: there is no such slot.
        """
        try:
            name = f"{step}\0{row_id}".encode()
        except UnicodeEncodeError:
            name = _name(step, row_id)
        size = len(name)
        if size > _ROOM:
            name = _name(step, row_id)
            size = len(name)
        start = (slot + 1) * SLOT
        try:
            self._map[start + 1 : start + 1 + size] = name
            # Last, and one byte: a process killed before this line has written nothing that counts.
            self._map[start] = size
        except IndexError:
            raise ConfigurationError(_TOO_MANY) from None

    def leave(self, slot: int) -> None:
        """Note that the code of this slot is no longer executing; about 0.1 us."""
        self._map[(slot + 1) * SLOT] = 0

    def attempts(self, step: str, row_id: str) -> int:
        """How often a process died while it executed this row in this step."""
        return self._tally.get(_name(step, row_id), 0) if self._tally else 0

    def acquit(self, step: str, row_id: str) -> None:
        """Forget what was counted against a row, as it went through or was dealt with."""
        if self._tally.pop(_name(step, row_id), None) is not None:
            batch = Batch()
            batch.delete("suspects", _PREFIX + _name(step, row_id))
            self._store.write(batch)

    def forget(self) -> None:
        """Forget what was counted against all rows."""
        if self._tally:
            self._tally.clear()
            self._store.delete_prefix("suspects", _PREFIX)

    def close(self) -> None:
        """Unmap the file; what is in its slots stays."""
        self._map.close()

    def _count(self) -> tuple[tuple[str, str], ...]:
        generation = _HEADER.unpack_from(self._map)[1]
        names = {name for slot in range(SLOTS) if (name := self._occupant(slot)) is not None}
        counted = self._store.get("suspects", _COUNTED)
        # A crash after counting and before clearing must not count the same death twice.
        if names and counted != b"%d" % generation:
            batch = Batch()
            for name in sorted(names):
                self._tally[name] = self._tally.get(name, 0) + 1
                batch.put("suspects", _PREFIX + name, b"%d" % self._tally[name])
            batch.put("suspects", _COUNTED, b"%d" % generation)
            self._store.write(batch)
            self._store.sync()
        for slot in range(SLOTS):
            self.leave(slot)
        self._map[: _HEADER.size] = _HEADER.pack(_MAGIC, generation + 1)
        return tuple(sorted(_words(name) for name in names))

    def _occupant(self, slot: int) -> bytes | None:
        start = (slot + 1) * SLOT
        size = self._map[start]
        if size == 0:
            return None
        name = self._map[start + 1 : start + 1 + size]
        if b"\0" not in name:
            raise StateCorrupt(f"{self.path} is damaged in slot {slot}; delete it to forget its suspects")
        return name


def file_is_sound(path: Path) -> bool:
    """Whether a box can be opened on this file; one that is not there yet can.

    Raises:
        StateError: it cannot be looked at.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}; check the disk") from error
    if not data:
        return True
    if len(data) != (SLOTS + 1) * SLOT or not data.startswith(_MAGIC):
        return False
    slots = (data[start : start + SLOT] for start in range(SLOT, len(data), SLOT))
    return all(not slot[0] or b"\0" in slot[1 : 1 + slot[0]] for slot in slots)


def _map(path: Path) -> mmap.mmap:
    size = (SLOTS + 1) * SLOT
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            present = os.fstat(fd).st_size
            # Written, not just sized: a hole in a mapped file kills the process on a full disk.
            empty = _HEADER.pack(_MAGIC, 1).ljust(size, b"\0")
            if present == 0 and os.pwrite(fd, empty, 0) != size:
                os.ftruncate(fd, 0)  # half of it would be taken for damage the next time
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            head = os.pread(fd, _HEADER.size, 0)
            if present not in (0, size) or head[: len(_MAGIC)] != _MAGIC:
                raise StateCorrupt(f"{path} is damaged; delete it to forget its suspects")
            return mmap.mmap(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        raise StateError(f"cannot use {path}: {error.strerror}; check the disk") from error


def _tallies(store: Store) -> dict[bytes, int]:
    tally = {}
    for key, value in store.scan("suspects", _PREFIX):
        if not value.isdigit():
            raise StateCorrupt(f"a suspect's count in {store.path} is damaged: {RESTORE}")
        tally[key[len(_PREFIX) :]] = int(value)
    return tally


def _name(step: str, row_id: str) -> bytes:
    name = f"{step}\0{row_id}".encode("utf-8", "replace")
    return name if len(name) <= _ROOM else _shorten(name)


def _shorten(name: bytes) -> bytes:
    step, _, row = name.partition(b"\0")
    if len(step) > _ROOM // 2:
        step = _digest(step)
    return step + b"\0" + (_digest(row) if len(step) + 1 + len(row) > _ROOM else row)


def _digest(text: bytes) -> bytes:
    return text[:64] + b"#" + hashlib.blake2b(text, digest_size=16).hexdigest().encode()


def _words(name: bytes) -> tuple[str, str]:
    step, _, row = name.partition(b"\0")
    return step.decode("utf-8", "replace"), row.decode("utf-8", "replace")
