"""F7, F8, F15: a model that refuses, fails or is gone, under whole flows in processes of their own.

Times are compressed: the breaker's pauses are a fifth of the usual ones, so that an outage of a
few seconds is one of half a minute.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.check import Fate, calls_of, dead_of, read_rows
from tests.chaos.crash import HERE, Place, Process, make_rows, pipeline_fate, until

BREAKER = {"failures": 10, "pause": 0.2, "longest": 1.0}
SHORTEST = 0.5 * BREAKER["pause"]
# Five pauses after the last answer ten failures in a row open the circuit.
OPENS = 5 * BREAKER["pause"] + 0.5
CAPACITY = 32
STEPS = 2


class Patient:
    """A server process, and the file that makes it ill."""

    def __init__(self, folder: Path, name: str, latency: float) -> None:
        self.log = folder / f"{name}.calls.jsonl"
        self._file = folder / f"{name}.illness.json"
        self.be()
        command = [sys.executable, str(HERE / "sick_server.py"), "--log", str(self.log)]
        command += ["--illness", str(self._file), "--latency", str(latency)]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.child.stdout is not None
        self.api = f"http://127.0.0.1:{int(self.child.stdout.readline())}/v1"

    def be(self, **illness: Any) -> None:
        """Fall ill, or with nothing get well."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(illness))
        new.replace(self._file)

    @property
    def count(self) -> int:
        """How many requests there were."""
        return self.log.read_bytes().count(b'"op": "seen"') if self.log.exists() else 0

    @property
    def seen(self) -> list[dict[str, Any]]:
        """Every request, in the order they came."""
        lines = self.log.read_bytes().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if line["op"] == "seen"]

    def since(self, moment: float, until_: float = float("inf")) -> list[dict[str, Any]]:
        """The requests of a time."""
        return [line for line in self.seen if moment <= line["at"] < until_]


@contextmanager
def patient(folder: Path, name: str = "model", latency: float = 0.01) -> Iterator[Patient]:
    made = Patient(folder, name, latency)
    try:
        yield made
    finally:
        made.child.kill()
        made.child.communicate()


@pytest.fixture
def server(folder: Path) -> Iterator[Patient]:
    with patient(folder) as made:
        yield made


def place_of(folder: Path, server: Patient, *, order: str = "ordered", **settings: Any) -> Place:
    lm = {"api_base": server.api, "timeout": 30.0, "num_retries": 3, "breaker": BREAKER, **settings}
    env = {"CHAOS_LM": json.dumps(lm), "CHAOS_ORDER": order}
    return Place(folder, flow=HERE / "flows" / "model.py", env=env)


def start(place: Place, outage: float = 60.0) -> Process:
    return place.start(launch=["--epoch", "0.2", "--outage", str(outage)])


def finished(place: Place, process: Process, *, fate: Fate = pipeline_fate, ordered: bool = True) -> None:
    assert process.wait(90.0) == 0, process.stderr
    assert place.verdict(fate, ordered=ordered).problems == {}
    assert {stage for _, stage in dead_of(place.letters())} <= {"read", "map", "parse"}


def at_work(server: Patient, process: Process, calls: int = 100) -> None:
    process.until(lambda: server.count >= calls, "the first calls")
    assert process.child.poll() is None, process.stderr


# ------------------------------------------------------------------------------------------- F7


@pytest.mark.timeout(180)
def test_a_storm_of_429s_costs_no_row(folder: Path, server: Patient) -> None:
    make_rows(folder / "in.jsonl", 400)
    place = place_of(folder, server)
    waits = ["2", formatdate(time.time() + 3, usegmt=True), "0", "-5", "abc", None, "0.2"]
    server.be(status=429, share=0.9, retry_after=waits)
    process = start(place)
    at_work(server, process, 1)
    time.sleep(5.0)
    server.be()
    finished(place, process)
    seen = server.seen
    assert sum(line["became"] == 429 for line in seen) >= 10
    assert max(line["open"] for line in seen) <= CAPACITY * STEPS
    attempts: dict[str, int] = {}
    for line in seen:
        attempts[line["key"]] = attempts.get(line["key"], 0) + 1
    assert max(attempts.values()) <= 50
    assert sum(calls_of(server.log).values()) == len(calls_of(server.log))  # each was answered once
    assert "does not answer" not in process.stderr or process.stderr.count("does not answer") <= 1


# ------------------------------------------------------------------------------------------- F8

ILLNESSES: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "502": {"status": 502},
    "503": {"status": 503},
    "529": {"status": 529},
    "refused": {"closed": True},
    "reset": {"reset": True},
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ILLNESSES)
def test_an_outage_pauses_the_flow(folder: Path, server: Patient, kind: str) -> None:
    make_rows(folder / "in.jsonl", 1200)
    place = place_of(folder, server)
    process = start(place)
    at_work(server, process)
    server.be(**ILLNESSES[kind])
    ill = time.monotonic()
    time.sleep(4.5)
    read = len(read_rows(place.out_file))
    assert process.child.poll() is None
    time.sleep(1.0)
    assert len(read_rows(place.out_file)) == read  # nothing comes out, nothing is given up
    well = time.monotonic()
    server.be()
    finished(place, process)
    told = process.stderr.count("the model does not answer")
    assert told == process.stderr.count("the model answers again") == 1, process.stderr
    burst = [line for line in server.since(ill, ill + OPENS) if line["became"] != 200]
    assert len(burst) <= CAPACITY * STEPS * 4
    if kind != "refused":  # that one nobody sees
        assert_one_trial_at_a_time([line["at"] for line in server.since(ill + OPENS, well)])


def assert_one_trial_at_a_time(moments: list[float]) -> None:
    """Single calls, ever further apart, while the circuit is open."""
    # A connection that was kept may have died of age: where one is cut, the call is repeated at once.
    trials = [moments[0], *(b for a, b in itertools.pairwise(moments) if b - a > 0.05)]
    assert len(moments) <= 2 * len(trials)
    gaps = [b - a for a, b in itertools.pairwise(trials)]
    assert 4 <= len(trials) <= 5.5 / SHORTEST
    assert min(gaps) >= 0.9 * SHORTEST
    assert sum(gaps[-3:]) / 3 >= 0.4


@pytest.mark.timeout(180)
def test_a_server_that_stands_still_is_an_outage(folder: Path, server: Patient) -> None:
    make_rows(folder / "in.jsonl", 800)
    place = place_of(folder, server, timeout=1.0)
    process = start(place)
    at_work(server, process)
    os.kill(server.child.pid, signal.SIGSTOP)
    time.sleep(4.0)
    assert process.child.poll() is None
    os.kill(server.child.pid, signal.SIGCONT)
    finished(place, process)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_a_server_that_comes_and_goes_costs_no_row(
    folder: Path, server: Patient, rng: random.Random, order: str
) -> None:
    make_rows(folder / "in.jsonl", 1200)
    place = place_of(folder, server, order=order)
    process = start(place)
    at_work(server, process, 20)
    for _ in range(12):
        server.be(**rng.choice(list(ILLNESSES.values())))
        time.sleep(rng.uniform(0.2, 0.8))
        server.be()
        time.sleep(rng.uniform(0.1, 0.5))
    finished(place, process, ordered=order == "ordered")


@pytest.mark.timeout(180)
def test_most_calls_failing_costs_no_row(folder: Path, server: Patient) -> None:
    """Not down, but hardly up: two calls in three fail for as long as the flow runs."""
    make_rows(folder / "in.jsonl", 60)
    server.be(status=500, share=0.66)
    place = place_of(folder, server, num_retries=1)
    finished(place, start(place))
    assert sum(line["became"] == 500 for line in server.seen) >= 60


@pytest.mark.timeout(180)
def test_past_the_outage_budget_the_flow_ends_and_can_be_resumed(folder: Path, server: Patient) -> None:
    make_rows(folder / "in.jsonl", 1000)
    place = place_of(folder, server)
    process = start(place, outage=2.0)
    at_work(server, process)
    server.be(status=503)
    ill = time.monotonic()
    assert process.wait() == 69, process.stderr
    assert 2.0 < time.monotonic() - ill < 8.0
    assert "503" in process.stderr
    assert "Task was destroyed" not in process.stderr
    assert {stage for _, stage in dead_of(place.letters())} <= {"read", "map", "parse"}
    again = start(place, outage=2.0)  # still down: the same end, and nothing lost
    assert again.wait() == 69, again.stderr
    server.be()
    answered = calls_of(server.log)
    finished(place, start(place))
    asked = calls_of(server.log)
    # Calls in flight when it ended may repeat, and no others.
    assert sum(asked[ask] > 1 for ask in answered) <= CAPACITY * STEPS


@pytest.mark.timeout(180)
def test_rows_that_are_always_failed_at_the_end_of_the_input_are_dead_letters(
    folder: Path, server: Patient
) -> None:
    """All others were answered before; only another question can show that the model is up."""
    make_rows(folder / "in.jsonl", 60, bad=False)
    server.be(after={"what is 58\\n": 500})
    place = place_of(folder, server, num_retries=0)
    process = start(place, outage=10.0)
    assert process.wait(120.0) == 0, process.stderr
    verdict = place.verdict(lambda row: "call" if row["n"] == 58 else pipeline_fate(row), ordered=True)
    assert verdict.problems == {}
    assert [letter["model"]["status"] for letter in place.letters() if letter["stage"] == "call"] == [500]


@pytest.mark.timeout(180)
def test_the_outage_of_one_model_does_not_end_the_flow_of_another(folder: Path, server: Patient) -> None:
    make_rows(folder / "in.jsonl", 600)
    with patient(folder, "judge") as judge:
        place = place_of(folder, server)
        other = {"name": "openai/judge", "api_base": judge.api, "breaker": BREAKER, "timeout": 30.0}
        place.env["CHAOS_JUDGE_LM"] = json.dumps(other)
        judge.be(status=503)
        process = start(place, outage=30.0)
        at_work(server, process, 200)
        time.sleep(4.0)
        assert read_rows(place.out_file) == []
        judge.be()
        finished(place, process)
        judged = [line for line in judge.seen if line["became"] == 503]
        assert len(judged) <= CAPACITY * 4 + 4.0 / SHORTEST
        assert "judge: the model does not answer" in process.stderr


@pytest.mark.timeout(180)
def test_a_health_check_is_asked_before_any_row(folder: Path, server: Patient) -> None:
    make_rows(folder / "in.jsonl", 800)
    place = place_of(folder, server, health="/models")
    process = start(place)
    at_work(server, process)
    server.be(status=503)
    ill = time.monotonic()
    time.sleep(3.0)
    well = time.monotonic()
    server.be()
    finished(place, process)
    assert {line["method"] for line in server.since(ill + 0.5, well)} == {"GET"}
    assert len(server.since(ill + 0.5, well)) >= 8  # it does not wait ever longer


# ------------------------------------------------------------------------------------------- F15


@pytest.mark.parametrize(
    ("status", "code"), [(401, None), (403, None), (402, None), (404, None), (429, "insufficient_quota")]
)
def test_what_no_row_can_help_stops_the_flow_at_once(
    folder: Path, server: Patient, status: int, code: str | None
) -> None:
    make_rows(folder / "in.jsonl", 200)
    place = place_of(folder, server)
    server.be(status=status, code=code)
    process = start(place)
    assert process.wait() == 78, process.stderr
    assert str(status) in process.stderr
    assert len(server.seen) <= CAPACITY * STEPS
    assert {stage for _, stage in dead_of(place.letters())} <= {"read", "map"}
    server.be()  # the key was mended
    finished(place, start(place))


def test_a_prompt_that_is_too_long_is_that_row_s_own(folder: Path, server: Patient) -> None:
    make_rows(folder / "in.jsonl", 60, bad=False)
    long = {"what is 8\\n": 400, "what is 24\\n": 413}
    server.be(after=long, code="context_length_exceeded")
    place = place_of(folder, server)
    process = start(place)
    assert process.wait() == 0, process.stderr

    def fate(row: Any) -> Any:
        return "call" if row["n"] in (8, 24) else pipeline_fate(row)

    assert place.verdict(fate, ordered=True).problems == {}
    codes = {letter["error"]["code"] for letter in place.letters() if letter["stage"] == "call"}
    assert codes == {"context_window"}
    assert sum(line["became"] != 200 for line in server.seen) == 2
    until(lambda: process.child.poll() is not None, "its end")
