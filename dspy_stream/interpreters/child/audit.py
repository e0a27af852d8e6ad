"""A hook that refuses, in words, what the sandbox does not allow.

It is there for clear errors, and for systems without the kernel's means. It is no wall: it is made
of Python objects, and code in the same process can find and change them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["watch"]

_NETWORK: Final = ("socket.",)
_PROCESSES: Final = (
    *("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "pty."),
    *("signal.pthread_kill", "resource.setrlimit", "resource.prlimit", "os.startfile"),
)
_LIBRARIES: Final = ("ctypes.",)
_MODULES: Final = ("ctypes", "_ctypes")
_CHANGES: Final = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr", "sqlite3.connect"),
)
_LOOKS: Final = ("os.listdir", "os.scandir", "os.chdir", "os.getxattr", "os.listxattr")
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def watch(readable: Sequence[str], own: str, *, network: bool, native: bool) -> None:
    """Refuse it from now on, in this process; with ``native`` not the loading of libraries."""
    refused = _PROCESSES if network else (*_NETWORK, *_PROCESSES)
    modules: tuple[str, ...] = () if native else _MODULES
    if not native:
        refused = (*refused, *_LIBRARIES)
    inside = _Places([own])
    visible = _Places([*readable, own])

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            _opened(args, inside, visible)
        elif event == "import":
            if args[0] in modules:
                raise ImportError(f"the sandbox has no {args[0]}")
        elif event.startswith(refused):
            raise PermissionError(f"the sandbox does not allow {event}")
        elif event in _CHANGES:
            for place in args[: 2 if event in ("os.rename", "os.link") else 1]:
                inside.check(place, f"{event} outside of its own folder")
        elif event in _LOOKS:
            visible.check(args[0], event)

    sys.addaudithook(hook)


def _opened(args: tuple[Any, ...], inside: _Places, visible: _Places) -> None:
    path, _, flags = args
    if isinstance(flags, int) and flags & _WRITING:
        inside.check(path, "writing outside of its own folder")
    else:
        visible.check(path, "reading")


class _Places:
    """Folders, and what lies below them."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._real: Callable[[Any], str] = os.path.realpath
        self._roots = tuple(self._real(folder) for folder in folders)

    def check(self, path: Any, what: str) -> None:
        if path is None or isinstance(path, int):
            return
        real = self._real(os.fsdecode(path))
        if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in self._roots):
            raise PermissionError(f"the sandbox does not allow {what}: {os.fsdecode(path)!r}")
