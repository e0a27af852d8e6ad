"""A small file beside the database that says how much of it there must be.

RocksDB opens a store whose manifest was cut or whose log file is gone, and silently shows fewer
rows. The stamp remembers, from the last sync, the manifest's size and the sequence number that
was durable by then; a store that has less is refused.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dspy_stream.errors import StateCorrupt, StateError

__all__ = ["RESTORE", "Stamp", "StampFile", "check_files", "check_sequence", "observe", "read", "size_of"]

RESTORE: Final = (
    "restore the folder from a copy, or save what can be read of it with `dspy-stream state rebuild` "
    "(calls that cannot be read are paid for again)"
)
_MAGIC: Final = b"dsstamp1"
_FORM: Final = struct.Struct(">8s5QI")
_CURRENT: Final = re.compile(rb"MANIFEST-(\d{6,})\n")
# The first entry of all, the version's, is written just before the first stamp.
_UNSTAMPED: Final = 1
# A log may end in a torn record; more than this missing is not a torn record but a lost file.
_TORN_TAIL: Final = 4096


@dataclass(frozen=True, slots=True)
class Stamp:
    """Numbers and sizes (bytes) of the manifest and newest log, and the durable sequence number."""

    manifest: int
    manifest_size: int
    wal: int
    wal_size: int
    sequence: int

    def to_bytes(self) -> bytes:
        """52 bytes, the last four a CRC-32 of the others; well below a disk sector."""
        numbers = (self.manifest, self.manifest_size, self.wal, self.wal_size, self.sequence)
        body = _FORM.pack(_MAGIC, *numbers, 0)[:-4]
        return body + struct.pack(">I", zlib.crc32(body))

    @staticmethod
    def from_bytes(data: bytes) -> Stamp:
        """Read a stamp back.

        Raises:
            ValueError: the bytes are not a stamp, or their checksum is wrong.
        """
        if len(data) != _FORM.size:
            raise ValueError(f"{len(data)} bytes instead of {_FORM.size}")
        magic, *numbers, checksum = _FORM.unpack(data)
        if magic != _MAGIC or checksum != zlib.crc32(data[:-4]):
            raise ValueError("wrong checksum")
        return Stamp(*numbers)


class StampFile:
    """The stamp on disk, overwritten in place: one sector, so it is the old one or the new one."""

    __slots__ = ("_fd", "_last", "path")

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stamp"
        self._last: Stamp | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise StateError(f"cannot open {self.path}: {error.strerror}") from error

    def write(self, stamp: Stamp, *, durable: bool = False) -> None:
        """Replace the stamp; ``durable`` waits for the disk.

        Raises:
            StateError: it cannot be written.
        """
        if stamp == self._last and not durable:
            return
        try:
            os.pwrite(self._fd, stamp.to_bytes(), 0)
            if durable:
                os.fsync(self._fd)
        except OSError as error:
            raise StateError(f"cannot write {self.path}: {error.strerror}") from error
        self._last = stamp

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(folder: Path) -> Stamp | None:
    """The stamp of a state folder; None where none was written yet.

    Raises:
        StateCorrupt: the file is not a stamp.
    """
    path = folder / "stamp"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    if not data:
        return None
    try:
        return Stamp.from_bytes(data)
    except ValueError as error:
        raise StateCorrupt(f"{path} is damaged ({error}): {RESTORE}") from error


def observe(database: Path, sequence: int) -> Stamp:
    """What the database's files are now, with a sequence number the caller knows to be durable."""
    manifest = _manifest(database)
    wal = max((int(f.stem) for f in database.glob("*.log") if f.stem.isdigit()), default=0)
    return Stamp(
        manifest,
        size_of(database / f"MANIFEST-{manifest:06d}"),
        wal,
        size_of(database / f"{wal:06d}.log") if wal else 0,
        sequence,
    )


def check_files(stamp: Stamp | None, database: Path) -> bool:
    """Compare the files with the stamp, before the database is opened; False where there is none yet.

    Raises:
        StateCorrupt: a file is missing or shorter than it was.
    """
    exists = (database / "CURRENT").exists()
    if not exists:
        if stamp is not None or any(database.glob("*.sst")):
            raise StateCorrupt(f"{database} has lost its file CURRENT: {RESTORE}")
        return False
    number = _manifest(database)
    if stamp is None:
        return True
    if number < stamp.manifest:
        raise StateCorrupt(f"{database} is older than its stamp: {RESTORE}")
    size = size_of(database / f"MANIFEST-{number:06d}")
    if number == stamp.manifest and size < stamp.manifest_size:
        lost = stamp.manifest_size - size
        raise StateCorrupt(f"{database}/MANIFEST-{number:06d} has lost {lost} bytes: {RESTORE}")
    return True


def check_sequence(stamp: Stamp | None, database: Path, sequence: int) -> None:
    """Compare what the database holds with the stamp, after a look into it that changed nothing.

    A torn end of the log is accepted, as a crash of the machine may leave one.

    Raises:
        StateCorrupt: entries which were durable are gone.
    """
    if stamp is None:
        if sequence > _UNSTAMPED:
            raise StateCorrupt(f"{database.parent} has entries but no stamp file: {RESTORE}")
        return
    if sequence >= stamp.sequence:
        return
    log = database / f"{stamp.wal:06d}.log"
    if not log.exists() or size_of(log) < stamp.wal_size - _TORN_TAIL:
        lost = stamp.sequence - sequence
        raise StateCorrupt(f"{database} has lost its last {lost} changes ({log.name}): {RESTORE}")


def _manifest(database: Path) -> int:
    path = database / "CURRENT"
    try:
        found = _CURRENT.fullmatch(path.read_bytes())
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    if found is None:
        raise StateCorrupt(f"{path} is damaged: {RESTORE}")
    return int(found[1])


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where it is gone, as a compaction may remove one at any time."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StateError(f"cannot look at {path}: {error.strerror}") from error
