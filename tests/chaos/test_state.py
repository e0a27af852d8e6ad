"""F27, F28, F31, F33: damaged, foreign, mixed and missing state, as a run meets it."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.check import calls_of
from tests.chaos.crash import Place, make_rows, pipeline_fate
from tests.chaos.test_disk import tree

ROWS = 300


def killed_in_the_middle(place: Place, point: str = "flushed-epoch-not-committed:4") -> None:
    """A run that died after some epochs, with much in the journal."""
    make_rows(
        place.path("in.jsonl"), ROWS, order=" @delay=0.01"
    )  # a server at once would leave no fourth epoch
    place.args = ("--capacity", "8")
    process = place.start(launch=["--die", point, "--hits", str(place.path("hits")), "--epoch", "0.05"])
    assert process.wait() == 9, process.stderr


def newest(place: Place, pattern: str) -> Path:
    """The largest file of a kind in the database."""
    return max((place.state_folder / "db").glob(pattern), key=lambda path: path.stat().st_size)


def cut(path: Path, count: int) -> None:
    """Take bytes from its end."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size - count])


def flip(path: Path, place: float) -> None:
    """Change one bit of one byte."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(bytes(data))


def refused(place: Place, log: Path) -> str:
    """A run that must end with 76 and make no call; what it said."""
    before = log.read_bytes()
    process = place.start()
    assert process.wait() == 76, process.stderr
    assert "Traceback" not in process.stderr
    assert log.read_bytes() == before, "a call was made"
    print(process.stderr.strip())
    return process.stderr


def test_a_log_torn_at_its_end_is_filled_by_replay(place: Place, log: Path, rng: random.Random) -> None:
    killed_in_the_middle(place)
    lost = rng.randint(1, 200)
    cut(newest(place, "*.log"), lost)
    place.run()
    print(f"{lost} bytes cut")
    assert place.verdict(pipeline_fate).problems == {}
    asked = calls_of(log)
    assert asked.total() - len(asked) <= 16 + 8


def test_a_log_flipped_in_its_middle_is_refused(place: Place, log: Path, rng: random.Random) -> None:
    killed_in_the_middle(place)
    flip(newest(place, "*.log"), rng.uniform(0.2, 0.6))
    assert "restore" in refused(place, log)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "manifest cut": lambda db: cut(max(db.glob("MANIFEST-*")), 40),
    "CURRENT empty": lambda db: (db / "CURRENT").write_bytes(b""),
    "CURRENT gone": lambda db: (db / "CURRENT").unlink(),
    "table gone": lambda db: max(db.glob("*.sst"), key=lambda path: path.stat().st_size).unlink(),
    "log gone": lambda db: max(db.glob("*.log"), key=lambda path: path.stat().st_size).unlink(),
    "stamp damaged": lambda db: flip(db.parent / "stamp", 0.5),
    "black box damaged": lambda db: flip(db.parent / "blackbox", 0.0),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused(place: Place, log: Path, what: str) -> None:
    killed_in_the_middle(place)
    # A second death: by then the first one's entries are in a table, the newer ones in a log.
    again = place.start(
        launch=["--die", "written-no-epoch:3", "--hits", str(place.path("hits")), "--epoch", "0.05"]
    )
    assert again.wait() == 9, again.stderr
    DAMAGE[what](place.state_folder / "db")
    refused(place, log)


def test_a_flipped_table_is_refused_or_harmless(place: Place, log: Path, rng: random.Random) -> None:
    killed_in_the_middle(place)
    again = place.start(
        launch=["--die", "written-no-epoch:3", "--hits", str(place.path("hits")), "--epoch", "0.05"]
    )
    assert again.wait() == 9
    where = rng.uniform(0.0, 0.9)
    flip(newest(place, "*.sst"), where)
    process = place.start()
    code = process.wait()
    print(f"flipped at {where:.2f}: exit {code} {process.stderr.strip()[:200]}")
    assert code in (0, 76), process.stderr
    assert "Traceback" not in process.stderr
    if code == 0 and verified(
        place
    ):  # else the run read none of the damaged blocks, and whoever reads them is told
        assert place.verdict(pipeline_fate).problems == {}


def verified(place: Place) -> bool:
    """Whether `state verify` finds nothing; it must say so where it does."""
    process = place.spawn(("state", "verify", str(place.state_folder)))
    code = process.wait()
    assert code in (0, 76), process.stderr
    return code == 0


def test_options_that_are_gone_are_written_anew(place: Place, log: Path) -> None:
    killed_in_the_middle(place)
    for path in (place.state_folder / "db").glob("OPTIONS-*"):
        path.unlink()
    place.run()
    assert place.verdict(pipeline_fate).problems == {}


WRITE_STAMP = """
import sys
from dspy_stream.state.store import Store
with Store.open(sys.argv[1]) as store:
    store.put("meta", b"layout", sys.argv[2].encode())
"""


@pytest.mark.parametrize(
    "stamp", ['{"layout":99,"package":"9.0"}', '{"layout":0,"package":"0.0"}', "\x01\x02 noise", "null"]
)
def test_state_of_another_version_is_left_as_it_is(place: Place, log: Path, stamp: str) -> None:
    killed_in_the_middle(place)
    subprocess.run(
        [sys.executable, "-c", WRITE_STAMP, str(place.state_folder), stamp],
        check=True,
        env=place.environment(),
    )
    before = tree(place.state_folder)
    refused(place, log)
    assert tree(place.state_folder) == before


def test_without_recovery_files_all_is_replayed_for_free(place: Place, log: Path) -> None:
    killed_in_the_middle(place, "engine-done-not-finished:1")
    before = calls_of(log)
    for run in (place.state_folder / "runs").iterdir():
        shutil.rmtree(run)
    report = place.run()
    assert place.verdict(pipeline_fate).problems == {}
    assert calls_of(log) == before, "calls were paid again"
    assert report["calls"] == 0


def test_recovery_files_that_were_swapped_are_refused(place: Place, log: Path) -> None:
    killed_in_the_middle(place)
    text = place.flow.read_text()
    place.path("other.py").write_text(text.replace('name="pipeline"', 'name="other"'))
    other = Place(
        place.folder, place.api, flow=place.path("other.py"), output="other.jsonl", dead="other.dead.jsonl"
    )
    other._count = 50
    process = other.start(
        launch=["--die", "written-no-epoch:3", "--hits", str(place.path("hits")), "--epoch", "0.05"]
    )
    assert process.wait() == 9, process.stderr
    one, two = sorted((place.state_folder / "runs").iterdir())
    (one / "recovery").rename(place.path("kept"))
    (two / "recovery").rename(one / "recovery")
    place.path("kept").rename(two / "recovery")
    refused(place, log)
    refused(other, log)


def test_recovery_files_of_no_known_run_are_refused(place: Place, log: Path) -> None:
    killed_in_the_middle(place)
    (run,) = (place.state_folder / "runs").iterdir()
    shutil.copytree(run, run.with_name("0000000aaaa-00000000"))
    refused(place, log)


@pytest.mark.parametrize("how", ["flipped head", "noise", "cut", "empty"])
def test_damaged_recovery_files_are_refused_or_harmless(place: Place, log: Path, how: str) -> None:
    killed_in_the_middle(place)
    (part,) = (place.state_folder / "runs").glob("*/recovery/part-0.sqlite3")
    if how == "flipped head":
        flip(part, 0.0)
    elif how == "noise":
        part.write_bytes(b"noise " * 4000)
    elif how == "cut":
        cut(part, part.stat().st_size // 2)
    else:
        part.write_bytes(b"")
    process = place.start()
    code = process.wait()
    print(f"{how}: exit {code} {process.stderr.strip().splitlines()[-1:]}")
    assert code in (0, 76), process.stderr
    if code == 0:  # the engine's own log beside the file had it all
        assert place.verdict(pipeline_fate).problems == {}


def test_recovery_files_without_their_database_are_refused(place: Place, log: Path) -> None:
    killed_in_the_middle(place)
    shutil.rmtree(place.state_folder / "db")
    (place.state_folder / "stamp").unlink()
    for name in (place.output, place.dead):
        place.path(name).unlink()
    refused(place, log)


@pytest.mark.parametrize("workers", [1, 2])
def test_recovery_files_that_were_never_complete_do_not_hold_the_flow_up(
    place: Place, log: Path, workers: int
) -> None:
    make_rows(place.path("in.jsonl"), 60)
    place.args = ("--capacity", "8", "-w", str(workers))
    hits = str(place.path("hits"))
    assert place.start(launch=["--die", "engine-set-up-no-row:1", "--hits", hits]).wait() == 9
    # As if the process had died while the engine made its files: part 0 is there last.
    (recovery,) = (place.state_folder / "runs").glob("*/recovery")
    (recovery / "part-0.sqlite3").unlink()
    place.run()
    assert place.verdict(pipeline_fate).problems == {}


def died_twice(place: Place) -> None:
    """Killed, gone on and killed again: the first one's entries are in a table, the newer ones in a log."""
    killed_in_the_middle(place)
    again = place.start(
        launch=["--die", "written-no-epoch:3", "--hits", str(place.path("hits")), "--epoch", "0.05"]
    )
    assert again.wait() == 9, again.stderr


REBUILT: dict[str, Callable[[Path, random.Random], object]] = {
    "log flipped": lambda db, rng: flip(max(db.glob("*.log")), rng.uniform(0.1, 0.6)),
    "table flipped": lambda db, rng: flip(largest(db, "*.sst"), rng.uniform(0.0, 0.99)),
    "table gone": lambda db, _: largest(db, "*.sst").unlink(),
    "manifest cut": lambda db, rng: cut(max(db.glob("MANIFEST-*")), rng.randint(1, 400)),
    "CURRENT empty": lambda db, _: (db / "CURRENT").write_bytes(b""),
}


def largest(db: Path, pattern: str) -> Path:
    return max(db.glob(pattern), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("what", REBUILT)
def test_rebuilt_state_loses_no_row_and_pays_for_no_saved_call(
    place: Place, log: Path, rng: random.Random, what: str, killed: bool
) -> None:
    died_twice(place)
    REBUILT[what](place.state_folder / "db", rng)
    command = ("state", "rebuild", str(place.state_folder), "--json")
    if killed:
        process = place.spawn(command)
        if process.alive_for(rng.uniform(0.3, 1.2)):
            process.signal(signal.SIGKILL)
        process.wait()
    process = place.spawn(command)
    # A bit that nothing reads may be flipped: then the folder is sound.
    assert process.wait() == 0, process.stderr
    print(process.out.read_text())
    place.verb("state", "verify", str(place.state_folder), "--json")
    saved, asked = place.journaled(), calls_of(log, "recv")
    place.run()
    assert place.verdict(pipeline_fate).problems == {}
    again = calls_of(log, "recv") - asked
    assert not saved & again.keys(), "a call that was saved was paid again"
    place.verb("state", "verify", str(place.state_folder), "--json")
