"""The folder in which the dataflow engine keeps its recovery files for one run.

Those files are pickles, so they are code: they are handed to the engine only from a folder that
nobody but us can write. The run's id is stamped into it, so that files of one run can never
continue another.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Final

from dspy_stream.errors import ConfigurationError, StateCorrupt, StateError
from dspy_stream.state.folder import check_private
from dspy_stream.state.stamp import RESTORE

__all__ = ["check", "create", "folder_of", "has_progress", "is_sound", "remove", "unknown_runs"]

_RUN_ID: Final = re.compile(r"[a-z0-9_-]{1,64}")
_STAMP: Final = "RUN"


def folder_of(state: Path, run_id: str) -> Path:
    """Where the recovery files of a run are.

    Raises:
        StateCorrupt: the id could not have been one of ours, so it must not become a path.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise StateCorrupt(f"{state} names a run {run_id[:80]!r}, which is no run id: {RESTORE}")
    return state / "runs" / run_id / "recovery"


def create(state: Path, run_id: str) -> Path:
    """Make the empty, stamped folder of a new run.

    Raises:
        StateError: it exists already or cannot be written.
    """
    folder = folder_of(state, run_id)
    try:
        for part in (folder.parent.parent, folder.parent):
            part.mkdir(mode=0o700, exist_ok=True)
            check_private(part, "run folder")
        folder.mkdir(mode=0o700)
        stamp = os.open(folder / _STAMP, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(stamp, "w") as file:
            file.write(run_id)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StateError(f"cannot create the recovery folder {folder}: {error.strerror}") from error
    return folder


def check(state: Path, run_id: str) -> Path:
    """The folder of a run to be continued, once it is safe to hand it to the engine.

    Raises:
        ConfigurationError: it, or a file in it, is not ours or can be written by others (exit 78).
        StateCorrupt: it is stamped with another run's id, or with none.
    """
    folder = folder_of(state, run_id)
    for part in (folder.parent.parent, folder.parent, folder):
        check_private(part, "recovery folder")
    for name in sorted(os.listdir(folder)):
        info = os.lstat(folder / name)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & stat.S_IWOTH:
            raise ConfigurationError(
                f"{folder / name} is not a plain file of ours that only we can write; recovery files run "
                "code when they are opened, so the run was not continued"
            )
    try:
        stamped = (folder / _STAMP).read_bytes()[:80]
    except FileNotFoundError:
        stamped = b""
    if stamped != run_id.encode():
        whose = f"belongs to run {stamped!r}" if stamped else "has lost its run id"
        raise StateCorrupt(f"{folder} {whose}, expected {run_id}: {RESTORE}")
    return folder


def has_progress(state: Path, run_id: str) -> bool:
    """Whether the engine ever stored anything for a run; if not, it starts anew from the journal."""
    # Part 0 is put there last, so the others are complete.
    return (folder_of(state, run_id) / "part-0.sqlite3").is_file()


def is_sound(folder: Path) -> bool:
    """Whether every file in which the engine keeps a run's progress is whole."""
    parts = sorted(folder.glob("part-*.sqlite3"))
    try:
        for part in parts:
            with closing(sqlite3.connect(part)) as database:
                if database.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                    return False
    except sqlite3.DatabaseError:
        return False
    return bool(parts)


def remove(state: Path, run_id: str) -> None:
    """Delete the folder of a run, if there is one.

    Raises:
        StateError: something in it cannot be deleted.
    """
    try:
        shutil.rmtree(folder_of(state, run_id).parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StateError(f"cannot delete the files of run {run_id}: {error}") from error


def unknown_runs(state: Path, known: set[str]) -> list[str]:
    """Names under ``runs`` that no record speaks of."""
    folder = state / "runs"
    return sorted(set(os.listdir(folder)) - known) if folder.is_dir() else []
