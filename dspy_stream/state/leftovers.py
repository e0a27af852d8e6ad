"""Snapshots that a dead process wrote for epochs it never committed, taken out before a run resumes.

A run resumes at the smallest epoch that all its workers had reached. A worker that was further
leaves snapshots of later epochs behind. The engine does not look at them then; but the next
resume, from an epoch beyond theirs, would take one for the newest of its operator, unless that
operator happened to write another since: rows long out of the flow would come out of it again.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from dspy_stream.errors import StateError

__all__ = ["drop_uncommitted"]

_TABLES: Final = {"exs", "fronts", "snaps"}
_PATIENCE: Final = 5.0  # seconds for a lock; a killed process holds none


def drop_uncommitted(folder: Path) -> int:
    """Delete the snapshots of epochs that the next resume repeats; how many there were.

    Damaged files are left to the engine, which says what is wrong with them.

    Raises:
        StateError: a file cannot be read or written, so that rows might come out twice.
    """
    parts = sorted(folder.glob("part-*.sqlite3"))
    try:
        epoch = _resume_epoch(parts)
        return sum(_drop(part, epoch) for part in parts) if epoch is not None else 0
    except sqlite3.OperationalError as error:  # locked, full, failing
        raise StateError(
            f"the recovery files in {folder} cannot be prepared for going on: {error}; free space or end "
            "whoever holds them, and run again"
        ) from error
    except sqlite3.DatabaseError:
        return 0


def _resume_epoch(parts: list[Path]) -> int | None:
    """Where the engine will begin; None where it has not run yet.

    Its own query says so: at the smallest frontier of the workers of the last execution, of which
    one that has written none stands at that execution's beginning.
    """
    executions: dict[int, tuple[int, int]] = {}
    frontiers: dict[tuple[int, int], int] = {}
    for part in parts:
        with closing(sqlite3.connect(part, timeout=_PATIENCE)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if not tables >= _TABLES:
                return None  # the engine has not been there yet
            for number, *rest in database.execute("SELECT ex_num, worker_count, resume_epoch FROM exs"):
                workers, began = rest
                executions[number] = (workers, began)
            for number, worker, reached in database.execute(
                "SELECT ex_num, worker_index, worker_frontier FROM fronts"
            ):
                key = (number, worker)
                frontiers[key] = max(frontiers.get(key, reached), reached)
    if not executions:
        return None
    last = max(executions)
    workers, began = executions[last]
    return min(max(began, frontiers.get((last, worker), began)) for worker in range(workers))


def _drop(part: Path, epoch: int) -> int:
    with closing(sqlite3.connect(part, timeout=_PATIENCE)) as database, database:
        return database.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (epoch,)).rowcount
