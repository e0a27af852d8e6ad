"""Takes away from a fresh process what code in it must not have, and says what holds."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from dspy_stream.interpreters.child import audit, landlock, seccomp
from dspy_stream.interpreters.child.kernel import drop_capabilities, mount, prctl, unshare

__all__ = ["confine", "die_with_parent", "readable"]

_USER, _MOUNTS, _IPC, _NETWORK = 0x10000000, 0x00020000, 0x08000000, 0x40000000
_NO_SUID, _NO_DEVICES, _NO_PROGRAMS = 2, 4, 8
_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38
_INSIDE: Final = 1000  # who the code seems to be
_FILES: Final = 1000  # how many may be in its folder

# What Python and the C library look at, wherever they are installed.
_SYSTEM: Final = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime"),
    *("/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"),
)


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends, by whatever end."""
    if sys.platform == "linux":
        prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def readable(extra: list[str]) -> list[str]:
    """Where code may read: the standard library, what it loads, and what the user names."""
    return [*(each for each in sys.path if each), os.path.join(sys.base_prefix, "lib"), *_SYSTEM, *extra]


def confine(wanted: Mapping[str, Any]) -> list[str]:
    """Do what this system can, and return the names of what holds from now on.

    ``wanted`` has ``network``, ``folder``, ``paths`` and the numbers of ``limits``. The order counts: each
    step takes away what the ones before it need.
    """
    network, folder = bool(wanted["network"]), str(wanted["folder"])
    held = _namespaces(network)
    own = _own_folder(folder, wanted, held)
    os.chdir(own)
    if _limits(wanted):
        held.append("limits")
    places = readable(list(wanted["paths"]))
    linux = sys.platform == "linux"
    if linux:
        _try(held, "no_privileges", _without_privileges)
        _try(held, "landlock", lambda: landlock.restrict(places, own, network=network))
        _try(held, "seccomp", lambda: seccomp.install(network=network))
    if "seccomp" not in held:
        # Threads count as processes; only the filter can tell them apart.
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # Packages load libraries by way of ctypes; where the kernel holds the process, they may.
    native = bool(wanted["paths"]) and {"seccomp", "landlock"} <= set(held)
    audit.watch(places, own, network=network, native=native)
    held.append("audit_hook")
    return held


def _try(held: list[str], name: str, step: Callable[[], None]) -> bool:
    try:
        step()
    except OSError:
        return False
    held.append(name)
    return True


def _namespaces(network: bool) -> list[str]:
    held: list[str] = []
    if sys.platform != "linux":
        return held
    user, group = os.getuid(), os.getgid()
    flags = _MOUNTS | _IPC | (0 if network else _NETWORK)
    mapped = True
    if _try(held, "user_namespace", lambda: unshare(flags | _USER)):
        # A process that has changed its user may write its maps only while it says that it may be traced.
        mapped = _try([], "maps", lambda: _map(user, group))
    elif not _try([], "namespaces", lambda: unshare(flags)):  # as root, where no new users are allowed
        return held
    if mapped:  # nobody can own a file there otherwise
        held.append("own_mounts")
    if not network:
        held.append("network_namespace")
    return held


def _map(user: int, group: int) -> None:
    prctl(_DUMPABLE, 1)
    _tell("setgroups", "deny")
    _tell("uid_map", f"{_INSIDE} {user} 1")
    _tell("gid_map", f"{_INSIDE} {group} 1")


def _tell(name: str, text: str) -> None:
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)


def _own_folder(folder: str, wanted: Mapping[str, Any], held: list[str]) -> str:
    """A folder of this process alone: in memory where it can be, and gone with the process."""
    options = f"size={wanted['folder_bytes']},nr_inodes={_FILES},mode=700"
    flags = _NO_SUID | _NO_DEVICES | _NO_PROGRAMS
    if "own_mounts" in held:
        held.remove("own_mounts")
        if _try(held, "folder_in_memory", lambda: mount("tmpfs", folder, "tmpfs", flags, options)):
            return folder
    own = os.path.join(folder, str(wanted["number"]))
    os.mkdir(own, 0o700)
    return own


def _limits(wanted: Mapping[str, Any]) -> bool:
    """True where the system takes all of them; macOS knows no limit of the address space."""
    taken = True
    seconds = int(wanted["cpu_seconds"])
    for kind, soft, hard in (
        (resource.RLIMIT_AS, wanted["memory_bytes"], wanted["memory_bytes"]),
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_FSIZE, wanted["file_bytes"], wanted["file_bytes"]),
        (resource.RLIMIT_NOFILE, wanted["open_files"], wanted["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        try:
            resource.setrlimit(kind, (int(soft), int(hard)))
        except (OSError, ValueError):  # noqa: PERF203 - five of them
            taken = False
    return taken


def _without_privileges() -> None:
    prctl(_NO_NEW_PRIVILEGES, 1)
    drop_capabilities()
    prctl(_DUMPABLE, 0)
