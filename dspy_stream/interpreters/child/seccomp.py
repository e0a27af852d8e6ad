"""A filter of system calls: no new programs or processes, no reach into other processes, and no network.

The kernel runs it before every call of this process and what it starts; it cannot be taken off.
What it refuses fails with EPERM. Calls that are newer than the table fail as unknown, and so does
what would create processes in ways that a filter cannot look into.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Final

from dspy_stream.interpreters.child.kernel import prctl

__all__ = ["NETWORK", "REFUSED", "install", "program", "supported"]

# Number on x86_64 and on aarch64; None where there is no such call.
_Numbers = dict[str, tuple[int | None, int | None]]

# The network, sockets in the file system, and passing open files to others.
NETWORK: Final[_Numbers] = {
    **{"socket": (41, 198), "socketpair": (53, 199), "bind": (49, 200), "listen": (50, 201)},
    **{"accept": (43, 202), "accept4": (288, 242), "connect": (42, 203), "sendto": (44, 206)},
    **{"recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212), "sendmmsg": (307, 269)},
    **{"recvmmsg": (299, 243), "setsockopt": (54, 208)},
}

# Refused with a network, too.
REFUSED: Final[_Numbers] = {
    # other programs and processes
    **{"execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None)},
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"kcmp": (312, 272), "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138)},
    **{"rt_tgsigqueueinfo": (297, 240), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119)},
    **{"sched_setparam": (142, 118), "sched_setattr": (314, 274), "setpriority": (141, 140)},
    **{"ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239)},
    # a way out of what this process was put into
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39)},
    **{"pivot_root": (155, 41), "chroot": (161, 51), "setrlimit": (160, 164)},
    **{"open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264)},
    **{"mknod": (133, None), "mknodat": (259, 33), "personality": (135, 92)},
    # memory that no limit counts
    **{"memfd_create": (319, 279), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195)},
    **{"msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180)},
    # parts of the kernel that no program of this kind needs
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    **{"fanotify_init": (300, 262), "inotify_init": (253, None), "inotify_init1": (294, 26)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105)},
    **{"finit_module": (313, 273), "delete_module": (176, 106), "quotactl": (179, 60)},
    **{"swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161)},
    **{"setdomainname": (171, 162), "acct": (163, 89), "syslog": (103, 116), "iopl": (172, None)},
    **{"ioperm": (173, None), "modify_ldt": (154, None), "settimeofday": (164, 170)},
    **{"clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266)},
    **{"mbind": (237, 235), "set_mempolicy": (238, 237)},
}

# Of these only some uses are refused.
_CLONE: Final = (56, 220)
_TGKILL: Final = (234, 131)
_PRLIMIT: Final = (302, 261)
_FCNTL: Final = (72, 25)
_IOCTL: Final = (16, 29)

# Who is to be signalled by a pipe or a socket, and with what: F_SETOWN, F_SETSIG, F_SETOWN_EX of fcntl;
# FIOSETOWN, SIOCSPGRP of ioctl. The kernel would send any signal to any process of this user.
_OWNERS: Final = (8, 10, 15)
_SOCKET_OWNERS: Final = (0x8901, 0x8902)

_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# From here on the numbers are the same everywhere, and the calls newer than Python 3.10 needs.
_NEWER: Final = 424
_X32: Final = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCH, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32  # offsets of what the filter is shown
_CLONE_THREAD: Final = 0x00010000

_PR_SET_SECCOMP, _FILTER = 22, 2


def supported() -> bool:
    """True where the numbers of the system's calls are known here."""
    return sys.platform == "linux" and os.uname().machine in _MACHINES


def program(machine: str, process: int, *, network: bool) -> bytes:
    """The filter for a machine, and for the process of that id."""
    column, architecture = _MACHINES[machine]
    refused = REFUSED if network else {**NETWORK, **REFUSED}
    numbers = sorted(number for pair in refused.values() if (number := pair[column]) is not None)
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),  # 32-bit calls have other numbers
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_AT_LEAST, 0, 1, _NEWER),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        *_when(_CLONE[column], [(_LOAD, 0, 0, _FIRST), (_ANY_BIT, 0, 1, _CLONE_THREAD)]),
        *_when(_TGKILL[column], [(_LOAD, 0, 0, _FIRST), (_EQUAL, 0, 1, process)]),
    ]
    halves = [(_LOAD, 0, 0, _THIRD), (_EQUAL, 0, 3, 0), (_LOAD, 0, 0, _THIRD + 4), (_EQUAL, 0, 1, 0)]
    code += _when(_PRLIMIT[column], halves)  # to ask for a limit, and not to set one
    code += _when(_FCNTL[column], _none_of(_OWNERS))
    code += _when(_IOCTL[column], _none_of(_SOCKET_OWNERS))
    for place, number in enumerate(numbers):
        code.append((_EQUAL, len(numbers) - place, 0, number))
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def _when(number: int, test: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """For one call: allowed where the test falls through, refused where it jumps past what allows."""
    body = [*test, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    return [(_EQUAL, 0, len(body), number), *body]


def _none_of(values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """A test that falls through where the second argument, of 32 bits, is none of these."""
    tests = [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [(_LOAD, 0, 0, _SECOND), *tests]


def install(*, network: bool) -> None:
    """Put the filter on this process, for good.

    Raises:
        OSError: the kernel has no filters, or does not allow one.
    """
    if not supported():
        raise OSError("no table of system calls for this machine")
    code = program(os.uname().machine, os.getpid(), network=network)
    buffer = ctypes.create_string_buffer(code, len(code))
    count = len(code) // 8
    # struct sock_fprog: a count, and a pointer to the instructions
    prog = ctypes.create_string_buffer(struct.pack("@HP", count, ctypes.addressof(buffer)))
    prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(prog))
