from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dspy_stream.errors import EXIT_CONFIG, EXIT_IO, ConfigurationError, StateError, StateLocked
from dspy_stream.state import folder as folders
from dspy_stream.state.store import Store

Child = Callable[..., "subprocess.Popen[str]"]
AS_ROOT = os.geteuid() == 0

HOLD = """
import sys
from dspy_stream.errors import DSPyStreamError
from dspy_stream.state.store import Store
try:
    store = Store.open(sys.argv[1])
except DSPyStreamError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
store.put("meta", b"k", b"v")
print("open", flush=True)
sys.stdin.readline()
store.close()
"""


def test_a_new_folder_is_ours_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Store.open(tmp_path / "a" / "b") as store:
            assert stat.S_IMODE(store.path.stat().st_mode) == 0o700
            assert stat.S_IMODE((store.path / "db").stat().st_mode) == 0o700
            assert stat.S_IMODE((store.path / "lock").stat().st_mode) == 0o600
    finally:
        os.umask(old)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o720])
def test_a_folder_others_can_write_is_refused_untouched(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"mode {mode:04o}.*chmod 700") as caught:
        Store.open(tmp_path)
    assert caught.value.exit_code == EXIT_CONFIG
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(ConfigurationError, match="symbolic link"):
            Store.open(tmp_path / name)
    assert list((tmp_path / "real").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    for target in (path, path / "below"):
        with pytest.raises(StateError) as caught:
            Store.open(target)
        assert caught.value.exit_code == EXIT_IO
    assert path.read_text() == "mine"


def test_a_name_with_nul_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be a state folder"):
        Store.open("a\0b")


@pytest.mark.skipif(not AS_ROOT, reason="only root can give a folder to somebody else")
def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(ConfigurationError, match="belongs to user 12345"):
        Store.open(tmp_path)


@pytest.mark.skipif(AS_ROOT, reason="root may write in spite of the mode")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StateError, match="not writable") as caught:
        Store.open(tmp_path)
    assert caught.value.exit_code == EXIT_IO


def test_the_second_process_is_told_who_has_the_folder(folder: Path, child: Child) -> None:
    first = child(HOLD, folder)
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    started = time.monotonic()
    second = child(HOLD, folder)
    said, _ = second.communicate(timeout=10)
    assert second.returncode == 75
    assert f"process {first.pid}" in said
    assert str(folder) in said
    with pytest.raises(StateLocked, match=f"process {first.pid}"):
        Store.open(folder)
    assert time.monotonic() - started < 4  # two attempts, one of them a whole Python start
    first.communicate("\n", timeout=10)
    assert first.returncode == 0
    with Store.open(folder) as store:
        assert store.get("meta", b"k") == b"v"


def test_after_kill_9_no_lock_is_left(folder: Path, child: Child) -> None:
    first = child(HOLD, folder)
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    first.kill()
    first.wait()
    with Store.open(folder) as store:
        assert store.get("meta", b"k") == b"v"


def test_of_two_that_start_together_exactly_one_runs(folder: Path, child: Child) -> None:
    both = [child(HOLD, folder), child(HOLD, folder)]
    said = [process.stdout.readline() for process in both if process.stdout is not None]
    assert sorted(line == "open\n" for line in said) == [False, True]
    winner = both[said.index("open\n")]
    loser = both[1 - said.index("open\n")]
    loser.wait(timeout=10)
    assert loser.returncode == 75
    assert f"process {winner.pid}" in "".join(said)


def test_a_lock_on_the_database_alone_is_noticed(folder: Path, child: Child) -> None:
    with Store.open(folder):
        pass
    other = child(
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.readline()",
        folder / "db" / "LOCK",
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(StateLocked, match="another process"):
        Store.open(folder)
    other.communicate("\n", timeout=10)
    with Store.open(folder) as store:
        store.put("meta", b"k", b"v")


def test_a_stale_pid_in_the_lock_file_hurts_nobody(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "lock").write_bytes(b'{"pid": 1}')
    with Store.open(folder) as store:
        assert (store.path / "lock").exists()
    assert folders._alive(os.getpid())
    assert not folders._alive(2**22 + 12345)


def refused_elsewhere(folder: Path, child: Child) -> bool:
    other = child(HOLD, folder)
    other.communicate("\n", timeout=20)
    return other.returncode == 75


def test_copying_the_folder_in_the_same_process_does_not_free_it(
    folder: Path, tmp_path: Path, child: Child
) -> None:
    with Store.open(folder) as store:
        store.put("meta", b"k", b"v")
        shutil.copytree(folder, tmp_path / "copy")
        assert refused_elsewhere(folder, child)


def test_a_forked_child_neither_frees_the_folder_nor_holds_it(folder: Path, child: Child) -> None:
    code = HOLD.replace(
        'print("open", flush=True)\n',
        'import os\nif os.fork() == 0:\n    sys.stdin.readline(); os._exit(0)\nprint("open", flush=True)\n',
    )
    parent = child(code, folder)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "open\n"
    assert refused_elsewhere(folder, child)
    parent.kill()
    parent.wait()
    with Store.open(folder) as store:  # while the child of the dead one still waits
        assert store.get("meta", b"k") == b"v"
