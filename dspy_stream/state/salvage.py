"""A database that is damaged, read in spite of it: what :mod:`dspy_stream.state.rebuild` copies from.

First as it stands, where its manifest is whole: a damaged block costs its own entries, a damaged part
of the log its own changes. Where that leaves something out, once more from its tables and logs
alone, by RocksDB's own repair, on links and copies in a folder of their own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rocksdict import AccessType, DBRecoveryMode, Options, Rdict

from dspy_stream.errors import StateError
from dspy_stream.state import stamp as stamps
from dspy_stream.state.batch import FAMILIES, Family
from dspy_stream.state.database import close_quietly, database_options
from dspy_stream.state.faults import classify
from dspy_stream.state.wal import Census, census

__all__ = ["Sick", "as_it_is", "log_census", "repaired"]

_CHUNK: Final = 256
_CHUNK_BYTES: Final = 1 << 20
_PLANTED: Final = b"\0planted"
_APART: Final = 1000
_WIDTH: Final = 32
_NARROWINGS: Final = 24
Entry = tuple[bytes, bytes]


@dataclass(frozen=True)
class Sick:
    """A damaged database, opened for reading.

    ``log_whole`` says that nothing of the log was left out.
    """

    database: Rdict
    families: dict[Family, Rdict]
    log_whole: bool

    def entries(self, family: Family) -> Iterator[Entry | None]:
        """All that can be read, in order of key, in pieces; None at each place that cannot."""
        opened = self.families.get(family)
        position: bytes | None = b"" if opened is not None else None
        while opened is not None and position is not None:
            found, state = _piece(opened, position)
            yield from (entry for entry in found if entry[0] != _PLANTED)
            if found:
                position = found[-1][0] + b"\0"
            if state == "damaged":
                yield None
                position = _beyond(opened, position)
            elif state == "end":
                position = None

    def estimate(self, family: Family) -> int:
        """About how many entries a family has, by the tables' own account."""
        try:
            return self.families[family].property_int_value("rocksdb.estimate-num-keys") or 0
        except Exception:  # noqa: BLE001 - bare in the binding; without a number there is none
            return 0

    def close(self) -> None:
        """Close it."""
        for part in (*self.families.values(), self.database):
            close_quietly(part)


def as_it_is(folder: Path, last: stamps.Stamp | None, log: Census) -> Sick | None:
    """The database of a state folder under its own manifest; nothing in it is changed.

    None where it cannot be opened, or its manifest may leave something out.
    """
    database = folder / "db"
    options = _tolerant()
    try:
        if last is None or not stamps.check_files(last, database):
            return None
        names = [name for name in FAMILIES if name in Rdict.list_cf(str(database))]
        opened = Rdict(str(database), options, dict.fromkeys(names, options), AccessType.read_only(False))
    except Exception:  # noqa: BLE001 - ours, or bare in the binding; the tables alone may tell more
        return None
    try:
        stamps.check_sequence(last, database, opened.latest_sequence_number())
    except StateError:
        return _sick(opened, names, log_whole=False)
    return _sick(opened, names, log_whole=not log.lost)


def repaired(folder: Path, work: Path, families: dict[int, Family]) -> Sick | None:
    """The same from tables and logs alone, put together in ``work``; None where there is nothing.

    ``families`` are those that the logs speak of, by number: without it a repair would drop the entries
    of one that has no table yet.

    Raises:
        StateError: there is no room for it.
    """
    options = _tolerant()
    try:
        _gather(folder / "db", work)
        _plant(work, families)
        Rdict.repair(str(work), options)
        names = [name for name in FAMILIES if name in Rdict.list_cf(str(work))]
        opened = Rdict(str(work), options, dict.fromkeys(names, options), AccessType.read_only(False))
    except OSError as error:
        raise StateError(f"cannot make {work}: {error.strerror}; free space and run again") from error
    except Exception as error:
        found = classify(error, work, "repairing")
        if type(found) is StateError:  # a full or failing disk, which another try may not meet
            raise found from error
        return None
    return _sick(opened, names, log_whole=False)


def log_census(folder: Path, last: stamps.Stamp | None) -> Census:
    """What the logs of a state folder speak of, and how many of their changes cannot be read."""
    logs = sorted(file for file in (folder / "db").glob("*.log") if file.stem.isdigit())
    return census((file.read_bytes() for file in logs), last.sequence if last is not None else 0)


def _tolerant() -> Options:
    options = database_options(create=False)
    options.set_paranoid_checks(False)
    options.set_wal_recovery_mode(DBRecoveryMode.skip_any_corrupted_record())
    return options


def _sick(opened: Rdict, names: Sequence[Family], *, log_whole: bool) -> Sick:
    return Sick(opened, {name: opened.get_column_family(name) for name in names}, log_whole)


def _gather(database: Path, work: Path) -> None:
    """Tables, which nobody changes, as links; logs as copies."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    for file in sorted(database.iterdir()):
        if file.suffix == ".sst":
            try:
                os.link(file, work / file.name)
            except OSError:  # a file system without links
                shutil.copyfile(file, work / file.name)
        elif file.suffix == ".log" and file.stem.isdigit():
            shutil.copyfile(file, work / file.name)


def _plant(work: Path, families: dict[int, Family]) -> None:
    """Give every family a table that says its name and number, from a database made for that."""
    if not families:
        return
    made = work / "made"
    options = database_options(create=True)
    database = Rdict(str(made), options)
    opened = []
    for number in range(1, max(families) + 1):  # numbers are given in order
        name = families.get(number, f"none-{number}")
        opened.append(database.create_column_family(name, options))
        if number in families:
            opened[-1].put(_PLANTED, b"")
            opened[-1].flush()
    for part in (*opened, database):
        close_quietly(part)
    taken = [int(file.stem) for file in work.iterdir() if file.stem.isdigit()]
    for place, table in enumerate(sorted(made.glob("*.sst")), max(taken, default=0) + _APART):
        table.rename(work / f"{place:06d}.sst")
    shutil.rmtree(made)


def _piece(family: Rdict, position: bytes) -> tuple[list[Entry], str]:
    found: list[Entry] = []
    size = 0
    try:
        cursor = family.iter()
        cursor.seek(position)
        while cursor.valid() and len(found) < _CHUNK and size < _CHUNK_BYTES:
            found.append((cursor.key(), cursor.value()))
            size += len(found[-1][0]) + len(found[-1][1])
            cursor.next()
        more = cursor.valid()
        cursor.status()
    except Exception:  # noqa: BLE001 - bare in the binding; whatever it is, this place cannot be read
        return found, "damaged"
    return found, "more" if more else "end"


def _sound(family: Rdict, position: bytes) -> bool:
    try:
        cursor = family.iter()
        cursor.seek(position)
        cursor.status()
    except Exception:  # noqa: BLE001 - bare in the binding
        return False
    return True


def _beyond(family: Rdict, position: bytes) -> bytes | None:
    """The next place that can be read: found by leaps of growing size, then narrowed down."""
    width = max(_WIDTH, len(position))
    low, top = int.from_bytes(position.ljust(width, b"\0"), "big"), (1 << 8 * width) - 1
    for shift in range(0, 8 * width + 1, 4):
        high = min(low + (1 << shift), top)
        if _sound(family, high.to_bytes(width, "big")):
            break
    else:
        return None
    for _ in range(_NARROWINGS):
        middle = (low + high) // 2
        if _sound(family, middle.to_bytes(width, "big")):
            high = middle
        else:
            low = middle
    return high.to_bytes(width, "big")
