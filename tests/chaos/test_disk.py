"""F26, F29, F30: disks that are full, failing or read-only, and folders that must not be used."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.check import calls_of
from tests.chaos.crash import Place, make_rows, model_server, pipeline_fate

ROWS = 400


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(b"\0" * max(0, free.f_bavail * free.f_frsize - leave))
    return filler


LEAVE = {
    "output": 32 << 10,
    "compressed output": 8 << 10,
    "dead letters": 8 << 10,
    "state": 480 << 10,
    "everything": 400 << 10,
}


@pytest.mark.parametrize("what", LEAVE)
def test_a_full_disk_stops_the_flow_and_the_next_run_completes_it(
    place: Place, log: Path, small_disk: Path, what: str
) -> None:
    make_rows(place.path("in.jsonl"), ROWS)
    place.args = ("--capacity", "8")
    if what in ("output", "everything"):
        place.output = "disk/out.jsonl"
    if what == "compressed output":
        place.output = "disk/out.jsonl.gz"
    if what in ("dead letters", "everything"):
        place.dead = "disk/dead.jsonl"
    if what in ("state", "everything"):
        place.state = "disk/state"
    filler = fill(small_disk, LEAVE[what])
    for _ in range(2):
        full(place)
    filler.unlink()
    place.run()
    assert place.verdict(pipeline_fate).problems == {}
    asked = calls_of(log)
    print(f"stops=2 repeated={asked.total() - len(asked)}")
    assert asked.total() - len(asked) <= 2 * 16


def full(place: Place) -> None:
    """A run that must stop because of the disk, and say so."""
    process = place.start(launch=["--epoch", "0.1"])
    code = process.wait()
    said = process.stderr.strip().splitlines()
    assert code == 74, f"exit {code}: {process.stderr[-2000:]}"
    assert "space" in said[-1], process.stderr[-2000:]
    assert "Traceback" not in process.stderr
    print(said[-1][:200])


@pytest.mark.parametrize("leave", [0, 40, 70, 90, 130, 200, 300])
def test_a_state_folder_without_room_is_resumed_wherever_it_stopped(
    place: Place, log: Path, small_disk: Path, leave: int
) -> None:
    make_rows(place.path("in.jsonl"), ROWS)
    place.args = ("--capacity", "8")
    place.state = "disk/state"
    filler = fill(small_disk, leave << 10)
    full(place)
    filler.unlink()
    place.run()
    assert place.verdict(pipeline_fate).problems == {}
    asked = calls_of(log)
    assert asked.total() - len(asked) <= 16


# While the file of its condition is there, what is done to files of that name fails as on a failing disk.
FAILING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd) {
    char link[64], path[4096];
    const char *part = getenv("FAILING_PART"), *when = getenv("FAILING_WHEN");
    if (!part || !when || access(when, F_OK)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, part)) return 0;
    int note = open(getenv("FAILING_NOTE"), O_WRONLY | O_CREAT, 0600);
    close(note);
    return 1;
}

#define FAILS(kind, name, types, args) \
    kind name types { \
        static kind (*real) types; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (fails(fd)) { errno = EIO; return -1; } \
        return real args; \
    }
FAILS(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
FAILS(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
FAILS(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
FAILS(int, fsync, (int fd), (fd))
FAILS(int, fdatasync, (int fd), (fd))
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes the C library's calls fail."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler, and Linux")
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing.c").write_text(FAILING)
    made = [compiler, "-shared", "-fPIC", "-o", str(folder / "failing.so"), str(folder / "failing.c"), "-ldl"]
    subprocess.run(made, check=True)
    return folder / "failing.so"


@pytest.mark.parametrize("what", ["/out.jsonl", "/dead.jsonl", "/state/db/", "/recovery/", "/state/stamp"])
def test_a_failing_disk_stops_the_flow_and_the_next_run_completes_it(
    place: Place, log: Path, failing: Path, what: str
) -> None:
    make_rows(place.path("in.jsonl"), ROWS, order=" @delay=0.005")
    place.args = ("--capacity", "8")
    when, note = place.path("failing"), place.path("failed")
    clean = dict(place.env)
    place.env |= {"LD_PRELOAD": str(failing), "FAILING_PART": what, "FAILING_WHEN": str(when)}
    place.env["FAILING_NOTE"] = str(note)
    process = place.start(launch=["--epoch", "0.1"])
    process.until(lambda: log.exists() and calls_of(log).total() > 100, "half of the calls")
    when.touch()
    code = process.wait()
    assert note.exists(), "nothing failed"
    assert code == 74, f"exit {code}: {process.stderr[-2000:]}"
    assert "Traceback" not in process.stderr
    print(process.stderr.strip().splitlines()[-1][:300])
    when.unlink()
    place.env = clean
    place.run()
    assert place.verdict(pipeline_fate).problems == {}
    asked = calls_of(log)
    assert asked.total() - len(asked) <= 16


def tree(folder: Path) -> str:
    """A digest of names and contents, without the lock, which every attempt may touch."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("lock", "LOCK"):
            state.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return state.hexdigest()


def refused(place: Place, log: Path, code: int, *words: str) -> None:
    """A run that must not get as far as its first call."""
    process = place.start()
    assert process.wait() == code, process.stderr
    assert "Traceback" not in process.stderr
    assert "panicked" not in process.stderr
    for word in words:
        assert word in process.stderr, process.stderr
    assert not log.exists() or not log.read_bytes(), "a call was made"


@pytest.mark.parametrize("what", ["state", "output", "dead"])
def test_a_read_only_disk_is_refused_before_any_call(
    place: Place, log: Path, small_disk: Path, what: str
) -> None:
    make_rows(place.path("in.jsonl"), 20)
    setattr(place, what, f"disk/{getattr(place, what)}")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(place, log, 74, "disk")


def test_a_file_is_no_state_folder(place: Place, log: Path) -> None:
    make_rows(place.path("in.jsonl"), 20)
    place.state_folder.write_text("mine")
    refused(place, log, 74, "not a folder")
    assert place.state_folder.read_text() == "mine"


def test_a_link_is_no_state_folder(place: Place, log: Path) -> None:
    make_rows(place.path("in.jsonl"), 20)
    place.path("elsewhere").mkdir(mode=0o700)
    place.state_folder.symlink_to(place.path("elsewhere"))
    refused(place, log, 78, "symbolic link")
    assert list(place.path("elsewhere").iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_state_folder_that_others_may_write_is_refused(place: Place, log: Path, mode: int) -> None:
    make_rows(place.path("in.jsonl"), 20)
    place.state_folder.mkdir()
    place.state_folder.chmod(mode)
    refused(place, log, 78, "chmod 700")


def test_a_state_folder_of_ours_is_private(place: Place) -> None:
    make_rows(place.path("in.jsonl"), 20)
    place.run()
    assert place.state_folder.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("what", ["a folder", "a link", "of unknown making"])
def test_an_output_that_cannot_be_used_is_refused_before_any_call(place: Place, log: Path, what: str) -> None:
    make_rows(place.path("in.jsonl"), 20)
    if what == "a folder":
        place.out_file.mkdir()
    elif what == "a link":
        place.out_file.symlink_to(place.path("precious"))
        place.path("precious").write_text("precious")
    else:
        place.out_file.write_text("precious\n")
    refused(place, log, 78 if what == "of unknown making" else 74)
    if what == "of unknown making":
        assert place.out_file.read_text() == "precious\n"


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.jsonl.gz", "new/out.parquet"])
def test_a_place_where_nothing_can_be_made_is_refused_before_any_call(
    place: Place, log: Path, name: str
) -> None:
    """Root has permission there, and the file system makes no files all the same."""
    make_rows(place.path("in.jsonl"), 20)
    place.output = f"/proc/{name}"
    refused(place, log, 74, f"/proc/{name}", "--output")
    (found,) = place.verb("state", "inspect", str(place.state_folder), "--json")
    assert found["runs"] == [], "no run is left unfinished"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
def test_a_state_folder_of_somebody_else_is_refused(place: Place, log: Path) -> None:
    make_rows(place.path("in.jsonl"), 20)
    place.state_folder.mkdir(mode=0o700)
    os.chown(place.state_folder, 12345, 12345)
    refused(place, log, 78, "12345")


@pytest.mark.parametrize("how", ["moved", "cut"])
def test_an_output_that_is_touched_while_it_runs_stops_the_flow(folder: Path, how: str) -> None:
    """It would end with 0 and rows that nobody finds."""
    make_rows(folder / "in.jsonl", 400)
    with model_server(folder, latency=0.02) as (api, log):
        place = Place(folder, api, args=("--capacity", "8"))
        process = place.start()
        process.until(lambda: place.out_file.exists() and place.out_file.stat().st_size > 4000, "rows")
        if how == "moved":
            place.out_file.rename(folder / "moved")
        else:
            os.truncate(place.out_file, 100)
        assert process.wait() == 74, process.stderr
        assert "by somebody else" in process.stderr
        assert "Traceback" not in process.stderr
        if how == "moved":
            (folder / "moved").replace(place.out_file)
            place.run()
        elif (code := place.start().wait()) != 0:  # what is missing had been committed
            assert code == 74
            place.run("--fresh")
        assert place.verdict(pipeline_fate).problems == {}
        asked = calls_of(log)
    assert asked.total() == len(asked), "calls were repeated"
