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

__all__ = ["drop_uncommitted"]


def drop_uncommitted(folder: Path) -> int:
    """Delete the snapshots of epochs that the next resume repeats; how many there were.

    Files that are not as expected are left to the engine, which says what is wrong with them.
    """
    parts = sorted(folder.glob("part-*.sqlite3"))
    try:
        epoch = _resume_epoch(parts)
        return sum(_drop(part, epoch) for part in parts) if epoch is not None else 0
    except sqlite3.Error:
        return 0


def _resume_epoch(parts: list[Path]) -> int | None:
    """Where the engine will begin; None where that is not certain.

    The smallest frontier of all workers of the last execution, or that execution's own beginning
    where no worker has one yet.
    """
    executions: dict[int, tuple[int, int]] = {}
    frontiers: dict[tuple[int, int], int] = {}
    for part in parts:
        with closing(sqlite3.connect(part, timeout=5.0)) as database:
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
    known = [reached for (number, _), reached in frontiers.items() if number == last]
    if not known:
        return began
    return min(known) if len(known) == workers else None


def _drop(part: Path, epoch: int) -> int:
    with closing(sqlite3.connect(part, timeout=5.0)) as database, database:
        return database.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (epoch,)).rowcount
