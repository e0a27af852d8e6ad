"""What RocksDB's error texts mean; the one place where they are read.

The binding raises bare ``Exception`` with the database's own words, so words are all there is.
"""

from __future__ import annotations

from pathlib import Path

from dspy_stream.errors import StateCorrupt, StateError, StateLocked
from dspy_stream.state.stamp import RESTORE

__all__ = ["classify"]

_FULL = ("no space left", "disk quota exceeded", "os error 28", "os error 122")
_READ_ONLY = ("read-only file system", "os error 30")
_LOCKED = ("lock hold by", "/lock: resource temporarily unavailable", "while lock file")
_CORRUPT = ("corruption", "checksum mismatch", "column families not opened", "does not exist (create_if")


def classify(error: Exception, path: Path, doing: str) -> StateError:
    """The error to raise instead of one of the database's, with what to do about it.

    A mistake in the call itself, such as text where bytes belong, is raised as it is.

    >>> error = classify(Exception("IO error: No space left on device"), Path("s"), "writing")
    >>> type(error).__name__, error.exit_code
    ('StateError', 74)
    """
    if type(error).__name__ == "DbClosedError":
        return StateError(f"the state folder {path} was closed; open it again")
    if type(error) is not Exception:
        raise error
    text = str(error)
    low = text.lower()
    if any(words in low for words in _LOCKED):
        return StateLocked(f"the database in {path} is in use by another process ({text})")
    # A damaged store may say that it is out of files, but never that it is out of space.
    if any(words in low for words in _FULL):
        return StateError(f"{doing} {path} failed: the disk is full; free space and run again ({text})")
    if any(words in low for words in _READ_ONLY):
        return StateError(f"{doing} {path} failed: the file system is read-only ({text})")
    if any(words in low for words in _CORRUPT) or "no such file" in low:
        return StateCorrupt(f"{doing} {path} found damage ({text}): {RESTORE}")
    return StateError(f"{doing} {path} failed; check the disk and run again ({text})")
