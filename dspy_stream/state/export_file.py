"""A new file that is whole or not there, for what an operator exports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dspy_stream.errors import OutputError

__all__ = ["new_file"]


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file, mode 0600, under a temporary name; it gets its own when all went well.

    Nothing that exists is overwritten or followed: a file, link or device of that name is refused.

    Raises:
        OutputError: the name is taken, or the file cannot be written.
    """
    target = Path(path)
    if not target.name:
        raise OutputError(f"{os.fspath(path)!r} names no file")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if os.path.lexists(target):
            raise OutputError(f"{target} exists; choose a name that is free")
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.link(part, target)  # unlike a rename, it never replaces what appeared meanwhile
            finally:
                part.unlink(missing_ok=True)
    except FileExistsError as error:
        raise OutputError(f"{target} exists; choose a name that is free") from error
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"cannot write {target}: {error}") from error
