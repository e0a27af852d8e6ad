"""A file that only grows, is cut back to a known length when opened, and says when it is safe."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import zlib
from typing import Protocol

from dspy_stream.errors import ConfigurationError, OutputError

__all__ = [
    "FileTape",
    "GzipTape",
    "Tape",
    "check_empty",
    "check_path",
    "is_occupied",
    "sync_folder",
    "unwritable",
]

_LEVEL = 6
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_GZIP = 31  # zlib's window setting for the gzip container


class Tape(Protocol):
    """Bytes go in at the end."""

    def append(self, data: bytes) -> None:
        """Write all of it, or raise an OutputError after which nothing more is written."""
        ...

    def sync(self) -> int:
        """Make it durable; return the length."""
        ...

    def close(self) -> None:
        """Sync and close; after a failure only close."""
        ...

    def abandon(self) -> None:
        """Close as it is."""
        ...


def unwritable(path: str, error: OSError) -> OutputError:
    """The error for a file that the system refuses to write."""
    advice = {
        errno.ENOSPC: "free some space and run again, which goes on from the last committed row",
        errno.EDQUOT: "the quota is used up; free some space and run again",
        errno.EACCES: "change its permissions, or write elsewhere",
        errno.EPERM: "change its permissions, or write elsewhere",
        errno.EROFS: "write elsewhere",
        errno.ELOOP: "it is a symbolic link; write to the file that it names",
        errno.ENOENT: "make the folder first",
        errno.EISDIR: "it is a folder; name a file",
        errno.EPIPE: "whoever read it has gone",
        errno.EIO: "the disk failed; run again once it is sound",
    }
    hint = advice.get(
        error.errno or 0, "mend the cause and run again, which goes on from the last committed row"
    )
    return OutputError(f"cannot write {path}: {error.strerror or error}; {hint}")


def check_path(path: str) -> None:
    """Find out whether a file can be made or written, without touching it.

    Whether one can be made, a file or folder of another name tells, which is made there and removed: a
    permission may be there, and the file system refuse all the same.

    Raises:
        OutputError: it cannot.
    """
    folder = os.path.dirname(path) or os.curdir
    try:
        found: os.stat_result | None = os.lstat(path)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise OutputError(f"cannot write {path!r}: {error.strerror}; write elsewhere") from error
    except ValueError as error:
        raise OutputError(f"cannot write {path!r}: {error}") from error
    if found is not None:
        if stat.S_ISLNK(found.st_mode):
            raise unwritable(path, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
        if stat.S_ISDIR(found.st_mode):
            raise unwritable(path, OSError(errno.EISDIR, os.strerror(errno.EISDIR)))
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(f"cannot write {path}: it is not a regular file; use - for standard output")
        if not os.access(path, os.W_OK):
            raise unwritable(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))
        _check_free(path)
    else:
        made = os.path.exists(folder)
        if not made:  # the last folder is made when the file is
            folder = os.path.dirname(os.path.abspath(folder))
        if not os.path.isdir(folder):
            raise OutputError(f"cannot write {path}: the folder {folder} does not exist; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write {path}: no permission to make files in {folder}")
        _try(path, folder, a_file=made)


def is_occupied(path: str) -> bool:
    """True if there is a file that is not empty."""
    try:
        return os.lstat(path).st_size > 0
    except OSError:
        return False


def check_empty(path: str) -> None:
    """Refuse a file that holds something already.

    Raises:
        ConfigurationError: it does.
    """
    if is_occupied(path):
        raise ConfigurationError(
            f"{path} exists and is not empty; pass --fresh to `dspy-stream run`, remove it, or "
            "write to another name"
        )


def _try(path: str, folder: str, *, a_file: bool) -> None:
    """Make a file, or a folder, in ``folder``, and remove it."""
    try:
        if a_file:
            descriptor, name = tempfile.mkstemp(prefix=".dspy_stream-", dir=folder)
            os.close(descriptor)
            os.unlink(name)
        else:
            os.rmdir(tempfile.mkdtemp(prefix=".dspy_stream-", dir=folder))
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: nothing can be made in {folder} ({error.strerror}); write elsewhere"
        ) from error


def sync_folder(path: str) -> None:
    """Make the name of a new file durable."""
    descriptor = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_free(path: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        if not _mine(fd):
            _claim(fd, path)
    finally:
        os.close(fd)  # which gives the claim back


# The files that this process has open to write, by descriptor, as device and inode.
_OPEN: dict[int, tuple[int, int]] = {}


def _left_by_parent() -> None:
    """A child that outlives its parent would keep the parent's locks, which go with the open file."""
    for descriptor in list(_OPEN):
        os.close(descriptor)
    _OPEN.clear()


os.register_at_fork(after_in_child=_left_by_parent)


def _place(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _mine(fd: int) -> list[int]:
    """The descriptors under which this process writes the same file."""
    here = _place(fd)
    return [other for other, place in list(_OPEN.items()) if place == here]


def _claim(fd: int, path: str) -> None:
    """Refuse a file that another process is writing; runs with state folders of their own may meet here.

    The lock is the open file's, so that reading the file elsewhere in this process does not undo it.
    What a run that broke off in this process has left open gives its lock up.
    """
    try:
        for other in _mine(fd):
            fcntl.flock(other, fcntl.LOCK_UN)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another run is writing {path}; wait for it, or write elsewhere") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # some network file systems have none
            raise unwritable(path, error) from error


class FileTape:
    """A regular file, never reached through a symbolic link, cut to ``length`` at once.

    Its folder is made where only that is missing.

    Raises:
        OutputError: it cannot be opened, or is shorter than ``length``.
    """

    __slots__ = ("_failed", "_fd", "_length", "_path", "_settled")

    def __init__(self, path: str, length: int) -> None:
        self._path = path
        self._length = length
        self._failed = False
        self._settled = False
        self._fd = -1
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            if not os.path.exists(folder := os.path.dirname(path) or os.curdir):
                os.mkdir(folder)
            self._fd = os.open(path, flags, 0o666)
            _OPEN[self._fd] = _place(self._fd)
            _claim(self._fd, path)
            self._cut(length)
        except OutputError:
            self.abandon()
            raise
        except OSError as error:
            self.abandon()
            raise unwritable(path, error) from error
        except ValueError as error:
            raise OutputError(f"cannot write {path!r}: {error}") from error

    def append(self, data: bytes) -> None:
        """Write at the end."""
        self._usable()
        self._undisturbed()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._failed = True
            raise unwritable(self._path, error) from error
        self._length += len(data)

    def sync(self) -> int:
        """Wait until the disk has it."""
        self._usable()
        try:
            os.fsync(self._fd)
            if not self._settled:
                sync_folder(self._path)
                self._settled = True
        except OSError as error:
            # After a failed fsync the kernel may have dropped the pages: a second one proves nothing.
            self._failed = True
            raise unwritable(self._path, error) from error
        self._undisturbed()
        return self._length

    def close(self) -> None:
        """Sync and close."""
        try:
            if self._fd in _OPEN and not self._failed:
                self.sync()
        finally:
            self.abandon()

    def _cut(self, length: int) -> None:
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(f"cannot write {self._path}: it is not a regular file")
        if found.st_size < length:
            raise OutputError(
                f"{self._path} has {found.st_size} bytes and {length} were committed: "
                "rows are missing from it; put the file back, or start a fresh run"
            )
        os.ftruncate(self._fd, length)
        os.lseek(self._fd, length, os.SEEK_SET)

    def _undisturbed(self) -> None:
        """See that the name still leads to what was written, and nothing but that.

        Before each write as well: into a file that was cut it would leave a hole and the right length.

        Raises:
            OutputError: the file was removed, replaced, cut or written to by somebody else.
        """
        mine = os.fstat(self._fd)
        try:
            named: os.stat_result | None = os.lstat(self._path)
        except OSError:
            named = None
        if named is None or not os.path.samestat(mine, named):
            what = "was removed or replaced"
        elif mine.st_size != self._length:
            what = f"has {mine.st_size:,} bytes and not the {self._length:,} that were written"
        else:
            return
        self._failed = True
        raise OutputError(
            f"{self._path} {what} by somebody else while it was being written; put it back as it was and run "
            "again to go on, or begin anew with --fresh"
        )

    def _usable(self) -> None:
        if self._failed or self._fd not in _OPEN:
            raise OutputError(f"cannot write {self._path}: an earlier write failed, or it is closed")

    def abandon(self) -> None:
        """Close without another word."""
        descriptor, self._fd = self._fd, -1
        if _OPEN.pop(descriptor, None) is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.abandon()  # a run that broke off may have left it open, and locked


class GzipTape:
    """Compresses onto a tape, one gzip member for all that is appended between two syncs.

    So a file cut back to any synced length is a whole gzip file.
    """

    __slots__ = ("_deflate", "_empty", "_tape")

    def __init__(self, tape: FileTape, *, empty: bool) -> None:
        self._tape = tape
        self._empty = empty
        self._deflate: zlib._Compress | None = None

    def append(self, data: bytes) -> None:
        """Compress at the end."""
        if self._deflate is None:
            self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._tape.append(self._deflate.compress(data))
        self._empty = False

    def sync(self) -> int:
        """End the member, and wait until the disk has it."""
        if self._deflate is not None:
            deflate, self._deflate = self._deflate, None
            self._tape.append(deflate.flush(zlib.Z_FINISH))
        return self._tape.sync()

    def close(self) -> None:
        """End the member, sync and close. An empty output gets an empty member."""
        try:
            if self._empty:
                self.append(b"")
            self.sync()
        finally:
            self._tape.abandon()

    def abandon(self) -> None:
        """Close as it is."""
        self._tape.abandon()
