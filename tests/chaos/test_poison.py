"""F24, F6: rows whose own code raises, ends the process, or eats its memory."""

from __future__ import annotations

import base64
import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.chaos.check import read_rows
from tests.chaos.crash import Place, make_rows

FLOW = """
import os
import dspy_stream as ds

def bad(n):
    {body}

class Twice(ds.Module):
    def forward(self, n):
        {in_module}
        return ds.Prediction(twice=n * 2)

def prepare(row):
    {in_map}
    return dict(row.fields)

rows, _ = (
    ds.Stream.read(os.environ["CHAOS_INPUT"], name="poison")
    .map(prepare)
    .filter(lambda row: {in_filter})
    .branch(lambda row: {in_branch})
)
flow = (
    rows.through(Twice())
    .measure(one=lambda row: {in_measure})
    .write(os.environ["CHAOS_OUTPUT"], dead_letters=os.environ["CHAOS_DEAD"])
)
"""
JUDGES = ("in_filter", "in_branch", "in_measure")
DIES = "if n == 7: os._exit(1)"


def poison(folder: Path, where: str, body: str, rows: int = 40) -> Place:
    """A flow of ``rows`` rows of which number 7 is bad in one place."""
    make_rows(folder / "in.jsonl", rows, bad=False)
    calls = {"in_module": "pass", "in_map": "pass", **dict.fromkeys(JUDGES, "True")}
    bad = {"in_module": "bad(n)", "in_map": "bad(row.n)", **dict.fromkeys(JUDGES, "bad(row.n) or True")}
    calls[where] = bad[where]
    (folder / "poison.py").write_text(FLOW.format(body=body, **calls))
    return Place(folder, flow=folder / "poison.py")


def all_but_seven(place: Place, stage: str, rows: int = 40) -> None:
    """Every row is out, but for number 7, which is a dead letter."""
    assert sorted(row["n"] for row in read_rows(place.out_file)) == [n for n in range(rows) if n != 7]
    assert all(row["twice"] == row["n"] * 2 for row in read_rows(place.out_file))
    letters = place.letters()
    assert [letter["stage"] for letter in letters] == [stage], letters
    assert [letter["row_id"] for letter in read_rows(place.path(place.dead))] == [letters[0]["row_id"]]


@pytest.mark.parametrize(
    ("where", "stage"),
    [("in_module", "module"), ("in_map", "map"), ("in_filter", "map"), ("in_branch", "map")],
)
def test_a_row_that_raises_is_a_dead_letter_and_the_flow_goes_on(
    folder: Path, where: str, stage: str
) -> None:
    place = poison(folder, where, "if n == 7: raise KeyError('seven')")
    place.run()
    all_but_seven(place, stage)


@pytest.mark.parametrize("where", ["in_module", "in_map", "in_filter", "in_branch"])
def test_a_row_that_ends_the_process_is_a_dead_letter_at_its_fourth_try(folder: Path, where: str) -> None:
    place = poison(folder, where, DIES)
    for _ in range(3):
        place.run(expect=1)
    place.run()
    all_but_seven(place, "process")


def test_a_row_that_ends_the_process_in_a_measure_is_written_without_it(folder: Path) -> None:
    place = poison(folder, "in_measure", DIES)
    for _ in range(3):
        place.run(expect=1)
    place.run()
    assert sorted(row["n"] for row in read_rows(place.out_file)) == list(range(40))
    assert place.letters() == []


def test_a_row_that_ended_the_process_passes_once_its_code_is_mended(folder: Path) -> None:
    place = poison(folder, "in_module", DIES)
    for _ in range(3):
        place.run(expect=1)
    place.run()
    place.flow.write_text(place.flow.read_text().replace(DIES, "pass"))
    process = place.spawn(["dlq", "retry", str(place.flow), "--state", str(place.state_folder), "--json"])
    assert process.wait() == 0, process.out.read_text() + process.stderr
    assert sorted(row["n"] for row in read_rows(place.out_file)) == list(range(40))


def test_a_new_run_of_a_mended_program_does_not_remember_the_deaths(folder: Path) -> None:
    place = poison(folder, "in_module", DIES)
    for _ in range(3):
        place.run(expect=1)
    place.run()
    place.flow.write_text(place.flow.read_text().replace(DIES, "pass # mended"))
    place.run()
    assert sorted(row["n"] for row in read_rows(place.out_file)) == list(range(40))


def test_rows_that_were_only_near_a_killed_process_are_not_blamed(folder: Path, rng: random.Random) -> None:
    place = poison(folder, "in_module", "import time; time.sleep(0.02)", rows=150)
    for _ in range(5):
        process = place.start(launch=["--epoch", "0.2"])
        process.alive_for(rng.uniform(0.8, 2.0))
        process.signal(signal.SIGKILL)
        process.wait()
    place.run()
    assert place.letters() == []
    assert sorted(row["n"] for row in read_rows(place.out_file)) == list(range(150))


needs_prlimit = pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit(1) is not installed")


@needs_prlimit
def test_a_row_that_wants_too_much_memory_is_a_dead_letter(folder: Path) -> None:
    place = poison(folder, "in_module", "if n == 7: bytearray(40 << 30)")
    place.run(before=["prlimit", f"--as={8 << 30}"])
    all_but_seven(place, "module")
    assert "MemoryError" in json.dumps(place.letters())


LEAK = "if os.environ.get('CHAOS_LEAK'): bad.kept = getattr(bad, 'kept', []) + [bytearray(8 << 20)]"


@needs_prlimit
def test_a_process_that_ran_out_of_memory_is_resumed(folder: Path, rng: random.Random) -> None:
    place = poison(folder, "in_module", LEAK, rows=200)
    place.env["CHAOS_LEAK"] = "1"
    code, starts = 1, 0
    while code != 0 and starts < 3:
        limit = rng.randrange(600, 1200)
        process = place.start(before=["prlimit", f"--as={limit << 20}"], launch=["--epoch", "0.1"])
        code, starts = process.wait(), starts + 1
        print(f"limit={limit} MB exit={code} {process.stderr[-200:]!r}")
    del place.env["CHAOS_LEAK"]
    if code != 0:
        place.run()
    out = [row["n"] for row in read_rows(place.out_file)]
    dead = [json.loads(base64.b64decode(letter["raw"]))["n"] for letter in place.letters()]
    print(f"{len(dead)} rows were blamed for the lack of memory")
    assert sorted(out + dead) == list(range(200))
