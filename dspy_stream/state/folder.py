"""The state folder itself: who may use it, and who is using it now.

Everything here runs before the database is touched. The lock is the open file's (flock): the kernel
drops it when its process dies, however it dies, so there is never a stale one to remove by hand; and
reading or copying the lock file elsewhere in the process does not drop it, as it would a POSIX lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from pathlib import Path

import orjson

from dspy_stream.errors import ConfigurationError, StateError, StateLocked

__all__ = ["FolderLock", "check_private", "prepare"]

_HOLDER_WAIT = 0.5


def prepare(path: str | os.PathLike[str]) -> Path:
    """Create the state folder with mode 0700, or check one that exists; return its real path.

    Raises:
        ConfigurationError: the path is a symbolic link, belongs to another user, or can be
            written by others (exit 78).
        StateError: the path is not a folder, or cannot be created or written (exit 74).
    """
    folder = Path(path)
    try:
        if not os.path.lexists(folder):
            folder.mkdir(mode=0o700, parents=True)
            folder.chmod(0o700)  # a umask may have taken bits that we need ourselves
    except FileExistsError:
        pass  # another process was quicker; the checks below decide
    except ValueError as error:
        raise ConfigurationError(f"{str(folder)!r} cannot be a state folder: {error}") from error
    except OSError as error:
        raise StateError(f"cannot create the state folder {folder}: {error.strerror}") from error
    check_private(folder, "state folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StateError(
            f"the state folder {folder} is not writable (read-only file system or missing permission); "
            "choose another with --state"
        )
    return folder.resolve()


def check_private(folder: Path, what: str) -> None:
    """Raise unless ``folder`` is a real folder of ours which nobody else can write.

    Raises:
        ConfigurationError: a symbolic link, another owner, or mode bits for group or others.
        StateError: not a folder, or it cannot be looked at.
    """
    try:
        info = os.lstat(folder)
    except OSError as error:
        raise StateError(f"cannot look at the {what} {folder}: {error.strerror}") from error
    if stat.S_ISLNK(info.st_mode):
        raise ConfigurationError(f"the {what} {folder} is a symbolic link; name the folder it points to")
    if not stat.S_ISDIR(info.st_mode):
        raise StateError(f"the {what} {folder} is not a folder")
    if info.st_uid != os.geteuid():
        raise ConfigurationError(
            f"the {what} {folder} belongs to user {info.st_uid}, and this process runs as user "
            f"{os.geteuid()}; run as its owner or choose another folder"
        )
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(info.st_mode)
        raise ConfigurationError(
            f"the {what} {folder} can be written by others (mode {mode:04o}); run: chmod 700 {folder}"
        )


class FolderLock:
    """The right to write one state folder, held until ``release`` or the end of the process.

    A forked child does not have it, and does not hold it up when its parent has died.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @staticmethod
    def acquire(folder: Path) -> FolderLock:
        """Take the lock without waiting for it.

        Raises:
            StateLocked: another process has it; the message names its pid and the folder.
            StateError: the lock file cannot be written.
        """
        path = folder / "lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise StateError(f"cannot open the lock file {path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, orjson.dumps({"pid": os.getpid()}), 0)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                os.close(fd)
                raise StateError(f"cannot lock {path}: {error.strerror}; free space or move it") from error
            holder = _holder(fd)
            os.close(fd)
            raise StateLocked(
                f"the state folder {folder} is in use by {holder}; wait for it, stop it, or choose another "
                "folder with --state"
            ) from None
        lock = FolderLock(path, fd)
        _held[fd] = lock
        return lock

    def release(self) -> None:
        """Give the lock back; harmless when repeated."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError:
                pass  # the pid left in the file is only a hint; the lock itself goes with the descriptor
            self._abandon()

    def _abandon(self) -> None:
        _held.pop(self._fd, None)
        os.close(self._fd)
        self._fd = -1


_held: dict[int, FolderLock] = {}


def _left_by_parent() -> None:
    """A child that outlives its parent would keep the parent's locks, which go with the open file."""
    for lock in list(_held.values()):
        lock._abandon()


os.register_at_fork(after_in_child=_left_by_parent)


def _holder(fd: int) -> str:
    # The holder writes its pid just after it has the lock, so a stale pid may be read for a moment.
    deadline = time.monotonic() + _HOLDER_WAIT
    while True:
        pid = _read_pid(fd)
        if pid is not None and (_alive(pid) or time.monotonic() > deadline):
            return f"process {pid}"
        if time.monotonic() > deadline:
            return "another process"
        time.sleep(0.02)


def _read_pid(fd: int) -> int | None:
    try:
        value = orjson.loads(os.pread(fd, 256, 0))
    except ValueError:
        return None
    pid = value.get("pid") if isinstance(value, dict) else None
    return pid if isinstance(pid, int) and pid > 0 else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # it lives, and belongs to somebody else
    except (OSError, OverflowError):
        return False
    return True
