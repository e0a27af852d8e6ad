"""F3: a stop is clean, in time, and costs nothing."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.check import calls_of
from tests.chaos.crash import Place, make_rows, model_server, pipeline_fate, until

CAPACITY = 8
ROWS = 400


def answered(log: Path, calls: int) -> bool:
    """True once more calls than that have been answered."""
    return calls_of(log).total() > calls


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)]
)
def test_a_stop_loses_nothing_and_repeats_no_call(
    folder: Path, rng: random.Random, number: signal.Signals, workers: int
) -> None:
    make_rows(folder / "in.jsonl", ROWS)
    stops = 0
    # By calls, since how many a run makes in a time is a matter of the machine.
    marks = [quarter * ROWS // 4 + rng.randrange(ROWS // 4) for quarter in range(3)]
    with model_server(folder, latency=0.08) as (api, log):
        place = Place(folder, api, args=("-w", str(workers), "--capacity", str(CAPACITY)))
        while True:
            process = place.start()
            if marks:
                process.until(partial(answered, log, marks.pop(0)), "the next calls")
                process.signal(number)
                asked_to = time.monotonic()
                assert process.wait(15.0) in (0, 143, -number), process.stderr
                print(f"stopped in {time.monotonic() - asked_to:.2f} s")
            code = process.wait()
            if code == 0:
                break
            # Once the engine is through, the few milliseconds that are left end as any process does.
            assert code in (143, -number), process.stderr
            stops += 1
    asked = calls_of(log)
    assert place.verdict(pipeline_fate).problems == {}
    assert stops >= 2
    assert asked.total() == len(asked), (
        f"{asked.total() - len(asked)} finished calls were repeated in {stops} stops"
    )


def held(place: Place, log: Path, rows: int = 60) -> None:
    """An input whose second half is never answered while the file ``hold`` is there."""
    make_rows(place.path("in.jsonl"), rows // 2)
    lines = place.path("in.jsonl").read_text().splitlines()
    make_rows(place.path("in.jsonl"), rows, order=" @hold")
    tail = place.path("in.jsonl").read_text().splitlines()[len(lines) :]
    place.path("in.jsonl").write_text("\n".join([*lines, *tail]) + "\n")
    place.path("hold").touch()
    place.args = ("--capacity", str(CAPACITY))


def test_a_stop_waits_no_longer_than_its_grace_for_a_model_that_hangs(place: Place, log: Path) -> None:
    held(place, log)
    process = place.start("--grace", "0.5")
    until(lambda: log.exists() and log.read_bytes().count(b"@hold") >= CAPACITY, "the model to hang")
    process.signal(signal.SIGTERM)
    asked_to = time.monotonic()
    assert process.wait(20.0) == 143, process.stderr
    seconds = time.monotonic() - asked_to
    print(f"stopped in {seconds:.2f} s with a grace of 0.5 s")
    assert seconds < 6.0
    place.path("hold").unlink()
    place.run()
    assert place.verdict(pipeline_fate).problems == {}
    asked = calls_of(log)
    assert asked.total() - len(asked) <= CAPACITY, "more than the calls in flight at the stop were repeated"


def test_a_second_signal_ends_it_at_once(place: Place, log: Path) -> None:
    held(place, log)
    process = place.start("--grace", "60")
    until(lambda: log.exists() and log.read_bytes().count(b"@hold") >= CAPACITY, "the model to hang")
    process.signal(signal.SIGTERM)
    assert process.alive_for(0.7), "the first signal must wait for the calls in flight"
    process.signal(signal.SIGTERM)
    asked_to = time.monotonic()
    assert process.wait(20.0) == 143
    assert time.monotonic() - asked_to < 10.0, "the grace is 60 s"
    place.path("hold").unlink()
    place.run()
    assert place.verdict(pipeline_fate).problems == {}


STUCK = """
import os, time
import dspy_stream as ds

class Slow(ds.Module):
    def forward(self, n):
        if n == 3:
            open(os.environ["CHAOS_MARK"], "w").close()
            time.sleep(60)
        return ds.Prediction(twice=n * 2)

rows = ds.Stream.read(os.environ["CHAOS_INPUT"], name="stuck")
flow = rows.through(Slow()).write(os.environ["CHAOS_OUTPUT"])
"""


def test_a_stop_is_in_time_though_user_code_is_stuck(folder: Path) -> None:
    make_rows(folder / "in.jsonl", 20, bad=False)
    (folder / "stuck.py").write_text(STUCK)
    mark = folder / "mark"
    place = Place(folder, flow=folder / "stuck.py", env={"CHAOS_MARK": str(mark)})
    process = place.start("--grace", "0.5", launch=["--stuck", "1"])
    process.until(mark.exists, "the row to get stuck")
    process.until(lambda: "stacks" in process.stderr, "the watchdog")
    process.signal(signal.SIGTERM)
    asked_to = time.monotonic()
    assert process.wait(12.0) == 143, process.stderr
    assert process.stderr.count("stuck.py") >= 1, "the stacks do not show where it is stuck"
    assert process.stderr.count("All stacks") == 1
    print(f"stopped in {time.monotonic() - asked_to:.2f} s")
