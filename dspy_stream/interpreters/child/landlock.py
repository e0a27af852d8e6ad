"""Which folders a process may read and write, held by the kernel (Landlock, Linux 5.13 and later)."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final

from dspy_stream.interpreters.child.kernel import raw

__all__ = ["restrict"]

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION: Final = 1
_BENEATH: Final = 1

_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE = 1 << 4 | 1 << 5
_MAKE_FOLDER, _MAKE_FILE, _MAKE_LINK = 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# How many rights each version of the interface knows.
_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_LATER: Final = 16

_LOOK: Final = _READ | _LIST
_OWN: Final = _LOOK | _WRITE | _REMOVE | _MAKE_FOLDER | _MAKE_FILE | _MAKE_LINK | _REFER | _TRUNCATE
_OF_FILES: Final = _EXECUTE | _WRITE | _READ | _TRUNCATE
_TCP: Final = 0b11  # to bind, and to connect
_SCOPES: Final = 0b11  # sockets without a name in the file system, and signals


def restrict(readable: Iterable[str], own: str, *, network: bool) -> None:
    """Allow reading below some places and writing below one, and nothing else, for good.

    Places that do not exist are left out.

    Raises:
        OSError: the kernel has no Landlock, or it is off.
    """
    version = raw(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    handled = (1 << _RIGHTS.get(version, _LATER)) - 1
    words = [handled]
    if version >= 4:
        words.append(0 if network else _TCP)
    if version >= 6:
        words.append(_SCOPES)
    attributes = ctypes.create_string_buffer(struct.pack(f"={len(words)}Q", *words), 8 * len(words))
    rules = raw(_CREATE, attributes, ctypes.c_size_t(8 * len(words)), ctypes.c_uint32(0))
    try:
        for place in readable:
            _allow(rules, place, _LOOK & handled)
        _allow(rules, own, _OWN & handled)
        raw(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)


def _allow(rules: int, place: str, rights: int) -> None:
    try:
        beneath = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            rights &= _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, beneath), 12)
        raw(_ADD, ctypes.c_int(rules), ctypes.c_int(_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(beneath)
