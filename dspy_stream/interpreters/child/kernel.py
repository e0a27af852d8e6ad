"""Calls to the kernel that Python has no words for."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

__all__ = ["KernelError", "prctl", "raw", "unshare"]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


class KernelError(OSError):
    """The kernel refuses, or does not know the call."""


def raw(number: int, *arguments: Any) -> int:
    """A system call by its number.

    Raises:
        KernelError: it failed.
    """
    return _checked(_LIBC.syscall(ctypes.c_long(number), *arguments))


def prctl(option: int, value: int, pointer: Any = 0) -> None:
    """Change something about this process.

    Raises:
        KernelError: it is not allowed.
    """
    number = ctypes.c_ulong
    last = number(pointer) if isinstance(pointer, int) else pointer
    _checked(_LIBC.prctl(ctypes.c_int(option), number(value), last, number(0), number(0)))


def unshare(flags: int) -> None:
    """Leave namespaces for new ones.

    Raises:
        KernelError: it is not allowed.
    """
    _checked(_LIBC.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """Mount a file system.

    Raises:
        KernelError: it is not allowed.
    """
    words = (source.encode(), os.fsencode(target), kind.encode())
    _checked(_LIBC.mount(*words, ctypes.c_ulong(flags), options.encode()))


def drop_capabilities() -> None:
    """Give up every capability, for good.

    Raises:
        KernelError: it is not allowed.
    """
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version of the call, this process
    nothing = (ctypes.c_uint32 * 6)()
    _checked(_LIBC.capset(header, nothing))


def _checked(result: Any) -> int:
    if int(result) < 0:
        number = ctypes.get_errno()
        raise KernelError(number, os.strerror(number))
    return int(result)
