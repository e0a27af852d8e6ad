"""A new store put into the place of a damaged one, so that a crash leaves the old, the new, or a
folder that says how to finish.

What is to be moved is noted first. While the note is there the folder is not opened; each move is
made once however often it is begun.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import orjson

from dspy_stream.errors import StateCorrupt, StateError
from dspy_stream.state.folder import check_private

__all__ = ["BUILDING", "aside_name", "begin", "check_none", "finish", "pending"]

BUILDING: Final = "rebuilding"
"""The folder, within the state folder, in which a new store is made."""

_NOTE: Final = "rebuilt.json"
_PARTS: Final = ("db", "stamp")


def check_none(folder: Path) -> None:
    """Raise where an exchange was begun and not finished.

    Raises:
        StateCorrupt: it was.
    """
    if (folder / _NOTE).exists():
        raise StateCorrupt(
            f"{folder} was being rebuilt when the process ended; finish it with: "
            f"dspy-stream state rebuild {folder}"
        )


def pending(folder: Path) -> dict[str, Any] | None:
    """The plan of an exchange that was begun; None where there is none.

    Raises:
        StateCorrupt: the note is not ours.
    """
    note = folder / _NOTE
    try:
        plan = orjson.loads(note.read_bytes())
        parts = [plan["aside"], *plan["runs"], *plan["files"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StateCorrupt(f"{note} is damaged ({error}); nothing was moved") from error
    except OSError as error:
        raise StateError(f"cannot read {note}: {error.strerror}") from error
    if any(not isinstance(part, str) or "/" in part or part in ("", ".", "..") for part in parts):
        raise StateCorrupt(f"{note} names what is no file of this folder; nothing was moved")
    found: dict[str, Any] = plan
    return found


def aside_name(folder: Path) -> str:
    """A free name, within the folder, for what is moved aside."""
    number = 1
    while os.path.lexists(folder / f"damaged-{number}"):
        number += 1
    return f"damaged-{number}"


def begin(folder: Path, plan: dict[str, Any]) -> None:
    """Note, durably, what :func:`finish` will do.

    ``plan`` has ``aside``, the name of the folder for what is old, and ``runs`` and ``files``, names of
    run folders and files that go there too; whatever else is in it is kept.
    """
    half = folder / f"{_NOTE}.half"
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(orjson.dumps(plan))
        file.flush()
        os.fsync(file.fileno())
    half.rename(folder / _NOTE)
    _settle(folder)


def finish(folder: Path, plan: dict[str, Any]) -> None:
    """Move the old store aside and the new one to its place; nothing is deleted."""
    aside, made = folder / plan["aside"], folder / BUILDING / "new"
    aside.mkdir(mode=0o700, exist_ok=True)
    check_private(aside, "folder for the damaged store")
    for name in _PARTS:
        if (made / name).exists():  # until it is in its place
            if os.path.lexists(folder / name):
                (folder / name).rename(aside / name)
            _settle(aside)
            (made / name).rename(folder / name)
    (aside / "runs").mkdir(mode=0o700, exist_ok=True)
    for name in plan["runs"]:
        _move(folder / "runs" / name, aside / "runs" / name)
    for name in plan["files"]:
        _move(folder / name, aside / name)
    _settle(folder)
    shutil.rmtree(folder / BUILDING, ignore_errors=True)
    (folder / _NOTE).unlink()
    _settle(folder)


def _move(old: Path, new: Path) -> None:
    if os.path.lexists(old):
        old.rename(new)


def _settle(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
