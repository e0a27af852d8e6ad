"""What code in the sandbox cannot do, by real processes, with Python's own refusals and without them."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from dspy_stream.errors import ConfigurationError
from dspy_stream.interpreters import (
    CodeExecutionError,
    CodeInterpreterError,
    PythonInterpreter,
    Sandbox,
    SandboxLimits,
)
from dspy_stream.interpreters.child import seccomp

LINUX = sys.platform == "linux"

# Code that finds the list of refusals and empties it: what holds afterwards is held by the kernel.
UNHOOKED = """
import gc, types
def _unhook():
    for each in gc.get_objects():
        if isinstance(each, types.FunctionType) and each.__qualname__ == "watch.<locals>.hook":
            each.__code__ = (lambda event, args: None).__code__ if not each.__closure__ else _empty(each)
def _empty(function):
    names = function.__code__.co_freevars
    listed = ", ".join(names)
    source = f"def outer({listed}):\\n def hook(event, args):\\n  {listed}\\n return hook"
    space = {}
    exec(source, space)
    return space["outer"](*range(len(names))).__code__
_unhook()
"""


@pytest.fixture(scope="module")
def holds():
    return PythonInterpreter.describe().holds


@pytest.fixture(params=["as it is", "without Python's refusals"])
def python(request, holds):
    with PythonInterpreter() as made:
        if request.param != "as it is":
            if not {"seccomp", "landlock"} <= holds:
                pytest.skip("the kernel here has no means of its own")
            made.execute(UNHOOKED)
            made.execute("import ctypes")  # which the hook would refuse: it is off
        yield made


@pytest.fixture
def listener():
    """A port of this machine, and the connections that reached it."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        done = threading.Event()

        def accept():
            while not done.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                seen.append(connection)
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], seen
        done.set()
        thread.join()


def refused(python, code):
    with pytest.raises(CodeExecutionError, match=r"PermissionError|OSError|URLError|ImportError") as raised:
        python.execute(code)
    return str(raised.value)


class TestNetwork:
    @pytest.mark.parametrize(
        "code",
        [
            "import socket; socket.create_connection(('127.0.0.1', port), timeout=1)",
            "import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
            "import socket; socket.socket(socket.AF_UNIX)",
            "import socket; socket.socketpair()",
            "import urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{port}', timeout=1)",
            "import asyncio; asyncio.run(asyncio.sleep(0))",
        ],
    )
    def test_nothing_goes_out(self, python, listener, code):
        port, seen = listener
        python.execute("port = given", {"given": port})
        refused(python, code)
        assert seen == []

    def test_the_socket_to_the_host_cannot_be_made_another(self, python):
        python.execute("import os, socket")
        refused(python, "socket.socket(fileno=os.dup(3)).sendmsg([b'x'])")

    def test_it_goes_out_where_it_is_allowed(self, listener):
        port, seen = listener
        with PythonInterpreter(network=True) as python:
            assert python.sandbox.network
            assert not python.sandbox.network_is_off
            for code in ("os.fork()", "os.kill(os.getppid(), 0)", "os.execv('/bin/true', ['true'])"):
                refused(python, f"import os; {code}")
            python.execute(UNHOOKED)
            if "seccomp" in python.sandbox.holds:
                refused(python, "os.fork()")
            python.execute(f"import socket; socket.create_connection(('127.0.0.1', {port})).close()")
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert len(seen) == 1


class TestProcesses:
    @pytest.mark.parametrize(
        "code",
        [
            "import os; os.fork()",
            "import os\nif os.system('true') != 0: raise OSError('no shell')",
            "import subprocess; subprocess.run(['true'])",
            "import os; os.execv('/bin/true', ['true'])",
            "import os; os.posix_spawn('/bin/true', ['true'], {})",
            "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
            "import os\nwhile True: os.fork()",
        ],
    )
    def test_none_can_be_started(self, python, code):
        refused(python, code)
        assert python.execute("1") == 1

    def test_none_can_be_signalled(self, python):
        for process in ("os.getppid()", str(os.getpid()), "-1", "1"):
            for number in (9, 0):
                refused(python, f"import os; os.kill({process}, {number})")
        refused(python, f"import os; os.killpg({os.getpgid(0)}, 0)")
        assert python.execute("1") == 1
        with PythonInterpreter() as other:  # whoever starts them is there
            assert other.execute("2") == 2

    def test_none_can_be_looked_into(self, python):
        for name in ("environ", "mem", "maps", "cmdline"):
            refused(python, f"import os; open(f'/proc/{{os.getppid()}}/{name}', 'rb').read()")

    def test_raw_system_calls_are_refused_too(self, holds):
        if "seccomp" not in holds:
            pytest.skip("no filter of system calls here")
        with PythonInterpreter() as python:
            python.execute(UNHOOKED)
            python.execute("import ctypes; libc = ctypes.CDLL(None, use_errno=True)")
            machine = os.uname().machine
            column = {"x86_64": 0, "aarch64": 1}[machine]
            refused_calls = {**seccomp.NETWORK, **seccomp.REFUSED}
            numbers = [pair[column] for pair in refused_calls.values() if pair[column] is not None]
            made = python.execute(
                "found = []\n"
                "for number in numbers:\n"
                "    found.append((libc.syscall(number, -1, 0, 0, 0, 0, 0), ctypes.get_errno()))\n"
                "found",
                {"numbers": numbers},
            )
            assert made == [[-1, 1]] * len(numbers)
            newer = python.execute(
                "[(libc.syscall(n, 0, 0, 0, 0, 0, 0), ctypes.get_errno()) for n in range(424, 480)]"
            )
            assert newer == [[-1, 38]] * 56
            assert python.execute(f"libc.syscall({0x40000000}, 0, 0, 0), ctypes.get_errno()") == [-1, 1]
            # more memory, and more of anything else, cannot be had
            assert python.execute("import resource; resource.getrlimit(resource.RLIMIT_AS)")[0] == 512 << 20
            with pytest.raises(CodeExecutionError, match="not allowed"):
                python.execute("resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))")


class TestFiles:
    def test_what_is_not_its_own_cannot_be_read(self, python, tmp_path):
        (tmp_path / "secret.txt").write_text("secret")
        for path in (tmp_path / "secret.txt", "/etc/passwd", "/proc/self/environ", __file__):
            refused(python, f"open({str(path)!r}).read()")
        for path in (tmp_path, "/", "/etc", "/proc", Path.home()):
            refused(python, f"import os; os.listdir({str(path)!r})")

    def test_nothing_outside_can_be_written_or_removed(self, python, tmp_path):
        victim = tmp_path / "victim.txt"
        victim.write_text("as it was")
        for code in (
            f"open({str(victim)!r}, 'w').write('x')",
            f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
            f"open({str(victim)!r}, 'r+').write('x')",
            f"import os; os.remove({str(victim)!r})",
            f"import os; os.rename({str(victim)!r}, 'mine')",
            f"import os; os.truncate({str(victim)!r}, 0)",
            f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
            f"import os; os.link({str(victim)!r}, 'mine')",
            f"import os; os.symlink({str(victim)!r}, 'mine'); open('mine', 'w')",
            "open('/tmp/dspy_stream_should_not_exist', 'w')",
            "open('../up', 'w')",
            "import sys; open(sys.modules['json'].__file__, 'a')",
        ):
            refused(python, code)
        assert victim.read_text() == "as it was"
        assert list(tmp_path.iterdir()) == [victim]
        assert not Path("/tmp/dspy_stream_should_not_exist").exists()

    def test_its_own_folder_is_empty_and_its_own(self, python):
        made = python.execute(
            "import os, tempfile\nbefore = os.listdir('.')\nopen('a', 'w').write('x')\nos.mkdir('b')\n"
            "os.rename('a', 'b/c')\nbefore, open('b/c').read(), os.listdir('.')"
        )
        assert made == [[], "x", ["b"]]

    def test_nothing_of_it_is_left(self):
        with PythonInterpreter() as python:
            folder = python.execute("open('left', 'w').write('x')\nimport os; os.getcwd()")
            assert not (Path(folder) / "left").exists() or "folder_in_memory" not in python.sandbox.holds

    def test_paths_can_be_read_and_imported_from(self, tmp_path):
        (tmp_path / "own_module.py").write_text("value = 7")
        with PythonInterpreter(paths=[tmp_path]) as python:
            assert python.execute("import own_module; own_module.value") == 7
            refused(python, f"open({str(tmp_path / 'x')!r}, 'w')")
        with PythonInterpreter() as python, pytest.raises(CodeExecutionError, match="ModuleNotFoundError"):
            python.execute("import own_module")

    def test_packages_that_load_libraries_can_be_used_where_the_kernel_holds_them(self, holds):
        if not {"seccomp", "landlock"} <= holds:
            pytest.skip("the kernel here has no means of its own")
        packages = Path(numpy.__file__).parents[1]
        with PythonInterpreter(paths=[packages], limits=SandboxLimits(memory_bytes=2 << 30)) as python:
            assert python.execute("import numpy as np; float(np.linalg.inv(np.eye(3)).sum())") == 3.0
            python.execute("import ctypes; libc = ctypes.CDLL(None, use_errno=True)")
            assert python.execute("libc.fork(), ctypes.get_errno()") == [-1, 1]
            refused(python, "open('/etc/passwd')")


class TestSecrets:
    def test_the_environment_is_empty(self, python, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        found = python.execute("import os; dict(os.environ)")
        assert set(found) <= {"LC_CTYPE"}

    def test_neither_our_modules_nor_others_can_be_imported(self):
        with PythonInterpreter() as python:
            for name in ("dspy_stream", "orjson", "httpx", "pytest"):
                with pytest.raises(CodeExecutionError, match="ModuleNotFoundError"):
                    python.execute(f"import {name}")

    def test_ctypes_is_refused(self):
        with PythonInterpreter() as python:
            for code in ("import ctypes", "import _ctypes", "from ctypes import CDLL"):
                assert "the sandbox has no" in refused(python, code)

    def test_no_file_of_ours_is_open(self, python):
        with open(__file__):
            made = python.execute(
                "import os\nfound = []\nfor n in range(64):\n"
                "    try: os.fstat(n); found.append(n)\n    except OSError: pass\nfound"
            )
        assert made == [0, 1, 2, 3]


class TestDescription:
    def test_it_says_what_holds_and_what_does_not(self, holds):
        found = PythonInterpreter.describe()
        assert found.network_is_off
        assert len(found.stops()) == len(found.holds)
        assert "Not stopped:\n- " in str(found)
        for words in ("faults of the kernel", "many threads"):
            assert any(words in line for line in found.does_not_stop())
        if LINUX:
            assert {"limits", "audit_hook"} <= holds

    def test_what_a_system_lacks_is_said(self):
        bare = Sandbox(frozenset({"limits", "audit_hook"}))
        assert not bare.network_is_off
        assert not bare.files_are_closed
        gaps = " ".join(bare.does_not_stop())
        for word in ("the network", "reading any file", "signals", "filling the disk", "sockets in the file"):
            assert word in gaps
        assert "it was allowed" in " ".join(Sandbox(frozenset(), network=True).does_not_stop())

    def test_without_means_against_the_network_it_does_not_start(self, monkeypatch):
        from dspy_stream.interpreters import session

        async def hello(self, seconds, late):
            return {"holds": ["limits", "audit_hook"]}

        monkeypatch.setattr(session.Session, "_heard", hello)
        python = PythonInterpreter()
        with pytest.raises(ConfigurationError, match=r"PythonInterpreter\(network=True\)"):
            python.start()
        with pytest.raises(CodeInterpreterError):
            python.execute("1")

    def test_a_filter_is_a_program_the_kernel_can_read(self):
        for machine in ("x86_64", "aarch64"):
            for network in (False, True):
                code = seccomp.program(machine, 7, network=network)
                assert len(code) % 8 == 0
                assert len(code) // 8 < 255


ALLOWED, REFUSED, UNKNOWN, KILLED_AT_ONCE = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def decided(code, architecture, number, arguments=()):
    """What a filter says of a call, by the kernel's rules for such programs."""
    shown = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    steps = list(struct.iter_unpack("=HBBI", code))
    place = value = 0
    while True:
        kind, yes, no, constant = steps[place]
        place += 1
        if kind == 0x06:
            return constant
        if kind == 0x20:
            value = int.from_bytes(shown[constant : constant + 4], "little")
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[kind]
            place += yes if holds else no


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
@pytest.mark.parametrize("network", [False, True])
def test_what_the_filter_decides_on_each_machine(machine, column, network):
    code = seccomp.program(machine, 7, network=network)
    own = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]

    def call(number, *arguments):
        return decided(code, own, number, arguments)

    for pair in seccomp.REFUSED.values():
        assert pair[column] is None or call(pair[column]) == REFUSED
    for pair in seccomp.NETWORK.values():
        assert call(pair[column]) == (ALLOWED if network else REFUSED)
    read, getpid, clone = {"x86_64": (0, 39, 56), "aarch64": (63, 172, 220)}[machine]
    assert call(read) == call(getpid) == ALLOWED
    assert (call(clone, 0x10000), call(clone, 17)) == (ALLOWED, REFUSED)  # a thread, and a process
    tgkill, prlimit = seccomp._TGKILL[column], seccomp._PRLIMIT[column]
    assert (call(tgkill, 7, 8, 9), call(tgkill, 8, 8, 9)) == (ALLOWED, REFUSED)
    assert (call(prlimit, 0, 7), call(prlimit, 0, 7, 1), call(prlimit, 0, 7, 1 << 40)) == (
        *(ALLOWED, REFUSED, REFUSED),
    )
    fcntl, ioctl = seccomp._FCNTL[column], seccomp._IOCTL[column]
    assert {call(fcntl, 3, each) for each in (8, 10, 15, 8 | 1 << 32)} == {REFUSED}
    assert {call(fcntl, 3, each) for each in (1, 2, 3, 4, 1030)} == {ALLOWED}
    assert {call(ioctl, 3, each) for each in (0x8901, 0x8902)} == {REFUSED}
    assert call(ioctl, 3, 0x5401) == ALLOWED
    assert {call(number) for number in (424, 435, 460)} == {UNKNOWN}
    assert call(0x40000000 | read) == REFUSED
    assert decided(code, 0x40000003, read) == KILLED_AT_ONCE


def test_a_machine_without_a_table_has_no_filter(monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    assert not seccomp.supported()
    with pytest.raises(OSError, match="no table of system calls for this machine"):
        seccomp.install(network=False)


HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_of_system_calls_are_the_kernels(machine):
    import re

    path = Path(HEADERS[machine])
    if not path.exists():
        pytest.skip("no headers of the kernel here")
    found = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text(), re.MULTILINE))
    column = list(HEADERS).index(machine)
    for name, pair in {**seccomp.NETWORK, **seccomp.REFUSED}.items():
        if pair[column] is not None:
            assert int(found[name]) == pair[column], name
    assert int(found["clone"]) == seccomp._CLONE[column]
    assert int(found["tgkill"]) == seccomp._TGKILL[column]
    assert int(found["prlimit64"]) == seccomp._PRLIMIT[column]
    assert int(found["fcntl"]) == seccomp._FCNTL[column]
    assert int(found["ioctl"]) == seccomp._IOCTL[column]


KILLED = """
import os, sys, time
from dspy_stream.interpreters import PythonInterpreter
from dspy_stream.interpreters import server
python = PythonInterpreter()
python.execute("1")
other = PythonInterpreter(tools={"ready": lambda: print("RUNNING", flush=True)})
print(server._current._process, server._current._folder, flush=True)
other.execute("ready()\\nwhile True: pass")
"""


def test_where_the_host_is_killed_nothing_is_left(tmp_path):
    script = tmp_path / "host.py"
    script.write_text(KILLED)
    host = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    process, folder = host.stdout.readline().split()
    assert host.stdout.readline() == "RUNNING\n"
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    assert len(children) == 2
    host.kill()
    host.wait()
    host.stdout.close()
    deadline = time.monotonic() + 10
    left = [process, *children]
    while left and time.monotonic() < deadline:
        left = [each for each in left if _runs(each)]
        threading.Event().wait(0.01)
    assert left == []
    assert not Path(folder).exists()


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
