"""The steps of confinement where the system lacks some of its means: what is left holds, and is said."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means are Linux's")

SCRIPT = """
import fcntl, json, os, socket, sys
from dspy_stream.interpreters.child import confine, landlock, seccomp
from dspy_stream.interpreters.child.kernel import KernelError

folder, lacks, user = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
victim, (ours, _) = int(sys.argv[4]), socket.socketpair()

def refuse(*args, **kwargs):
    raise KernelError(1, "refused")

if "namespaces" in lacks: confine.unshare = refuse
if "mounts" in lacks: confine.mount = refuse
if "landlock" in lacks: landlock.restrict = refuse
if "seccomp" in lacks: seccomp.install = refuse
if "privileges" in lacks: confine.drop_capabilities = refuse
if user:
    os.chown(folder, user, user)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
held = confine.confine({
    "network": False, "folder": folder, "paths": [], "number": 7, "memory_bytes": 1 << 29, "cpu_seconds": 10,
    "file_bytes": 1 << 20, "folder_bytes": 1 << 20, "open_files": 64,
})

def tried(act):
    try:
        act()
        return "done"
    except OSError as error:
        return type(error).__name__

def signalled(own):
    # the kernel then signals whoever owns the pipe
    ends = os.pipe()
    own(ends[0])
    fcntl.fcntl(ends[0], fcntl.F_SETFL, os.O_ASYNC)
    os.write(ends[1], b"x")

print(json.dumps({
    "by_owner": tried(lambda: signalled(lambda end: fcntl.fcntl(end, fcntl.F_SETOWN, victim))),
    "by_number": tried(lambda: signalled(lambda end: fcntl.fcntl(end, 10, 9))),
    "by_socket": tried(lambda: fcntl.ioctl(ours, 0x8901, victim.to_bytes(4, sys.byteorder))),
    "held": held,
    "socket": tried(lambda: socket.socket()),
    "fork": tried(lambda: os.fork()),
    "read": tried(lambda: open("/etc/passwd")),
    "write": tried(lambda: open("mine", "w")),
    "out": tried(lambda: open(folder + "/../out", "w")),
    "where": os.getcwd(),
}))
"""


def confined(folder, lacks="", user=0):
    if user and os.geteuid() != 0:
        pytest.skip("only root may become another user")
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as victim:
        made = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), lacks, str(user), str(victim.pid)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
        )
        victim.communicate("\n")
    assert made.returncode == 0, made.stderr
    return {**json.loads(made.stdout), "victim": victim.returncode}


ALL = {
    *("user_namespace", "network_namespace", "folder_in_memory", "limits", "no_privileges"),
    *("landlock", "seccomp", "audit_hook"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """What this system has."""
    return set(confined(tmp_path_factory.mktemp("here") / "f")["held"])


@pytest.mark.parametrize(
    ("lacks", "gone"),
    [
        ("", set()),
        ("namespaces", {"user_namespace", "network_namespace", "folder_in_memory"}),
        ("mounts", {"folder_in_memory"}),
        ("landlock", {"landlock"}),
        ("seccomp", {"seccomp"}),
        ("privileges", {"no_privileges"}),
        ("namespaces,landlock,seccomp", ALL - {"limits", "audit_hook", "no_privileges"}),
    ],
)
def test_what_is_left_holds(tmp_path, here, lacks, gone):
    found = confined(tmp_path / "f", lacks)
    assert set(found["held"]) == here - gone
    assert found["socket"] == found["fork"] == found["read"] == found["out"] == "PermissionError"
    assert found["write"] == "done"
    if "seccomp" in found["held"]:
        assert {found[name] for name in ("by_owner", "by_number", "by_socket")} == {"PermissionError"}
    if {"seccomp", "landlock"} & set(found["held"]):
        assert found["victim"] == 0, "it was signalled"
    own = str(tmp_path / "f")
    assert found["where"] == (own if "folder_in_memory" in found["held"] else f"{own}/7")


def test_it_holds_for_an_ordinary_user_too(here):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chmod(folder, 0o755)
        found = confined(Path(folder) / "f", user=65534)
    if "user_namespace" in here:
        assert set(found["held"]) == here
    assert found["socket"] == found["fork"] == found["out"] == "PermissionError"
    assert found["write"] == "done"
