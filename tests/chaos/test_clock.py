"""F4: the wall clock is set while the flow runs; nothing expires, nothing is lost, nothing hangs.

The clock is that of libfaketime (package ``faketime``), read from a file anew at every look. Its
monotonic clock is left alone, as a real clock's is when somebody sets the time.
"""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.chaos.check import calls_of, read_rows
from tests.chaos.crash import Place, make_rows, model_server, pipeline_fate, until
from tests.chaos.test_model import at_work, finished, patient, place_of, start

LIBRARIES = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
CAPACITY = 16
ROWS = 400

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs libfaketime: apt-get install faketime")


class Clock:
    """The clock of a flow's processes."""

    def __init__(self, place: Place) -> None:
        self._file = place.path("clock")
        self.set("+0")
        place.env |= {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_RESET": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead: str) -> None:
        """Set it so far ahead of the real one, in one step."""
        new = self._file.with_suffix(".new")
        new.write_text(ahead + "\n")
        new.replace(self._file)


def run_under(place: Place, log: Path, steps: list[str]) -> str:
    """One run during which the clock is set so often; what it said."""
    clock = Clock(place)
    process = place.start()
    for number, ahead in enumerate(steps, 1):
        due = ROWS * number // (len(steps) + 1)
        process.until(lambda due=due: log.exists() and calls_of(log).total() >= due, "calls")  # type: ignore[misc]
        clock.set(ahead)
    assert process.wait(45.0) == 0, process.stderr
    return process.stderr


@pytest.mark.parametrize(
    ("steps", "workers"),
    [(["+2h"], 1), (["-1d"], 1), (["+2h", "-1d", "+3d", "-5"], 2)],
)
def test_no_row_is_lost_and_no_call_repeated(folder: Path, steps: list[str], workers: int) -> None:
    make_rows(folder / "in.jsonl", ROWS)
    with model_server(folder, latency=0.04) as (api, log):
        place = Place(folder, api, args=("--capacity", str(CAPACITY), "-w", str(workers)))
        said = run_under(place, log, steps)
        asked = calls_of(log)
        verdict = place.verdict(pipeline_fate)
    assert verdict.problems == {}
    assert asked.total() == len(asked), "calls were repeated"
    assert "Traceback" not in said
    back = sum(later < earlier for earlier, later in pairwise([0.0, *map(hours, steps)]))
    assert said.count("clock was set back by") == back
    again = Place(folder, place.api, output="again.jsonl", dead="again-dead.jsonl", state="again")
    with model_server(folder) as (again.api, _):
        again.run()
    ids = [{row["key"]: row["row_id"] for row in read_rows(which.out_file)} for which in (place, again)]
    assert ids[0] == ids[1]


def hours(ahead: str) -> float:
    """A step of less than a minute is none."""
    return float(ahead[:-1]) * {"h": 1, "d": 24}.get(ahead[-1], 0) if ahead[-1] in "hd" else 0.0


@pytest.mark.parametrize("ahead", ["+2h", "-1d"])
def test_a_call_in_flight_neither_expires_nor_is_asked_again(folder: Path, ahead: str) -> None:
    """Its time is that of a clock that nobody sets."""
    make_rows(folder / "in.jsonl", CAPACITY, order=" @delay=2", bad=False)
    with model_server(folder) as (api, log):
        place = Place(folder, api, args=("--capacity", str(CAPACITY)))
        clock = Clock(place)
        process = place.start()
        until(lambda: log.exists() and log.stat().st_size > 0, "a call")
        clock.set(ahead)
        assert process.wait(45.0) == 0, process.stderr
        asked = calls_of(log)
        assert place.verdict(pipeline_fate).problems == {}
    assert asked.total() == len(asked)


def test_a_stop_is_in_time_though_the_clock_was_set_back(folder: Path, rng: random.Random) -> None:
    make_rows(folder / "in.jsonl", ROWS)
    with model_server(folder, latency=0.04) as (api, log):
        place = Place(folder, api, args=("--capacity", str(CAPACITY)))
        clock = Clock(place)
        process = place.start("--grace", "2")
        until(lambda: log.exists() and calls_of(log).total() >= CAPACITY, "calls")
        clock.set("-1d")
        process.alive_for(rng.uniform(0.0, 1.0))
        process.child.terminate()
        assert process.wait(12.0) in (143, -15), process.stderr
        place.run()
        assert place.verdict(pipeline_fate).problems == {}
        report = json.loads(place.path(f"stdout.{place._count - 1}").read_text() or "{}")
        assert report.get("status") == "finished"


@pytest.mark.parametrize("ahead", ["+2h", "-1d"])
def test_an_open_circuit_is_tried_no_sooner_and_no_later(folder: Path, ahead: str) -> None:
    """Its pauses are those of a clock that nobody sets; so is the outage budget."""
    make_rows(folder / "in.jsonl", 100)
    with patient(folder) as server:
        server.be(status=503)
        place = place_of(folder, server)
        clock = Clock(place)
        process = start(place, outage=40.0)
        at_work(server, process, CAPACITY)
        time.sleep(3.0)  # the pauses have their full length by now
        moment = time.monotonic()
        clock.set(ahead)
        time.sleep(4.0)
        tried = [line["at"] for line in server.since(moment)]
        assert process.child.poll() is None, process.stderr
        server.be()
        finished(place, process)
    # Trials come half to all of a second apart, one at a time.
    assert 2 <= len(tried) <= 10
    assert min(later - earlier for earlier, later in pairwise(tried)) >= 0.4


@pytest.mark.parametrize("ahead", ["+2h", "-1d"])
def test_a_storm_of_429s_goes_on_as_before(folder: Path, ahead: str) -> None:
    """No wait that a server asked for ends early, and none becomes a day."""
    make_rows(folder / "in.jsonl", 100)
    with patient(folder) as server:
        server.be(status=429, share=0.9, retry_after=["2"])
        place = place_of(folder, server)
        clock = Clock(place)
        process = start(place)
        at_work(server, process, 3)
        moment = time.monotonic()
        clock.set(ahead)
        time.sleep(5.0)
        server.be()
        finished(place, process)
        seen = server.seen
    stormy = [line for line in seen if moment <= line["at"] < moment + 5.0]
    # After a refusal nothing goes for two seconds, whatever the clock on the wall says.
    assert 1 <= len(stormy) <= 2 * 16
    refused = [line["at"] for line in stormy if line["became"] == 429]
    early = [
        line
        for line in stormy
        for at in refused
        if at + 0.2 < line["at"] < at + 1.8  # 0.2 s: those that were on their way
    ]
    assert early == []
