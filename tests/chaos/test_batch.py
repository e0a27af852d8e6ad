"""The batch lane under kill -9: at every point where it could pay twice or lose a row, and at random."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.crash import HERE, ROOT, Place, make_rows, until
from tests.chaos.oracle import answer_to

SERVER = ROOT / "tests" / "lm" / "batch" / "server.py"
MODELS = {"openai": "openai/chaos", "anthropic": "anthropic/claude-chaos"}
ROWS = 120


@contextmanager
def batch_server(folder: Path, seconds: float = 0.0) -> Iterator[str]:
    """A server process that outlives the flows; its base URL."""
    command = [sys.executable, str(SERVER), "--log", str(folder / "calls.jsonl")]
    command += ["--hold", str(folder / "hold"), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(child.stdout.readline())}/v1"
        finally:
            child.kill()


def entries(place: Place) -> list[dict[str, Any]]:
    """The server's log."""
    log = place.path("calls.jsonl")
    return [json.loads(line) for line in log.read_bytes().splitlines()] if log.exists() else []


def submitted(place: Place) -> Counter[str]:
    """How often each prompt was in a batch: the oracle."""
    return Counter(ask for entry in entries(place) if entry["op"] == "created" for ask in entry["asks"])


def calls(place: Place, part: str) -> int:
    """How often a call was made."""
    return sum(part in entry.get("call", "") for entry in entries(place))


def fate(row: Mapping[str, Any]) -> Mapping[str, str]:
    """What flows/batch.py must make of a row."""
    return {"answer": answer_to("answer", {"question": row["question"]})}


def batch_place(folder: Path, api: str, provider: str, rows: int = ROWS) -> Place:
    """The flow over a new input."""
    place = Place(folder, api, flow=HERE / "flows" / "batch.py")
    place.env = {"ANTHROPIC_API_KEY": "sk-chaos"}
    place.args = ("--lm", MODELS[provider])
    make_rows(place.path(place.input), rows, bad=False)
    return place


def assert_all_right(place: Place, rows: int = ROWS) -> None:
    """Every row came out once with its own answer, and every prompt was in one batch."""
    assert place.verdict(fate).problems == {}
    asked = submitted(place)
    assert len(asked) == rows
    assert set(asked.values()) == {1}, f"submitted twice: {[ask for ask, n in asked.items() if n > 1][:5]}"
    (report,) = place.verb("state", "inspect", str(place.state_folder), "--json")
    assert report["batches"] == []
    # Every answer was counted as paid, and none twice.
    assert sum(spend["calls"] for spend in report["spend"].values()) == rows


def die(point: str, place: Place) -> list[str]:
    return ["--die", point, "--kill", "--hits", str(place.path("hits")), "--epoch", "0.2"]


POINTS = {
    "openai": [
        "batch-intended:1",
        "batch-step-not-noted:1",  # uploaded, and nobody knows
        "batch-step-noted:1",  # uploaded, about to be created
        "batch-step-not-noted:2",  # created, and nobody knows
        "batch-step-noted:2",
        "batch-looked-at:2",
        "batch-fetched-not-journaled:1",
        "batch-fetched-not-journaled:70",
        "batch-journaled-not-forgotten:1",
    ],
    "anthropic": [
        "batch-intended:1",  # about to be created
        "batch-step-not-noted:1",  # created, and nobody knows
        "batch-step-noted:1",
        "batch-looked-at:2",
        "batch-fetched-not-journaled:70",
        "batch-journaled-not-forgotten:1",
    ],
}


@pytest.mark.parametrize(
    ("provider", "point"), [(provider, point) for provider, points in POINTS.items() for point in points]
)
def test_killed_at_a_point_nothing_is_sent_twice(folder: Path, provider: str, point: str) -> None:
    with batch_server(folder) as api:
        place = batch_place(folder, api, provider)
        assert place.start(launch=die(point, place)).wait() == -signal.SIGKILL
        assert place.path("hits").read_text() == f"{point.split(':')[0]}\n"
        place.run()
        assert_all_right(place)


def test_killed_when_some_of_a_large_batch_is_journaled_nothing_counts_twice(folder: Path) -> None:
    rows = 2000
    with batch_server(folder) as api:
        place = batch_place(folder, api, "openai", rows)
        place.env |= {"CHAOS_BATCH": "50000"}
        assert place.start(launch=die("batch-fetched-not-journaled:1700", place)).wait() == -signal.SIGKILL
        print(f"{len(place.journaled())} answers were journaled")
        place.run()
        assert_all_right(place, rows)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_killed_from_outside_while_it_polls(folder: Path, provider: str) -> None:
    with batch_server(folder) as api:
        place = batch_place(folder, api, provider)
        place.path("hold").touch()
        looked = "GET /v1/batches/" if provider == "openai" else "GET /v1/messages/batches/"
        for kill in range(1, 4):
            process = place.start()
            until(lambda kill=kill: calls(place, looked) >= 3 * kill, "it polls")  # type: ignore[misc]
            process.signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        place.path("hold").unlink()
        place.run()
        assert_all_right(place)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_killed_at_random_until_it_is_done(folder: Path, provider: str, rng: random.Random) -> None:
    rows, killed = 600, 0
    with batch_server(folder, seconds=1.0) as api:
        place = batch_place(folder, api, provider, rows)
        place.env |= {"CHAOS_BATCH": "60"}
        while True:
            process = place.start("--capacity", "150", launch=["--epoch", "0.2"])
            if killed < 12 and process.alive_for(rng.uniform(0.8, 2.2)):
                process.signal(signal.SIGKILL)
            code = process.wait(60.0)
            if code == 0:
                break
            assert code == -signal.SIGKILL, process.stderr
            killed += 1
        print(f"killed {killed} times, {calls(place, 'POST')} posts")
        assert killed >= 2
        assert_all_right(place, rows)


def test_sigterm_leaves_the_batch_at_the_provider_and_the_next_run_fetches_it(folder: Path) -> None:
    with batch_server(folder) as api:
        place = batch_place(folder, api, "openai")
        place.path("hold").touch()
        process = place.start("--grace", "60", launch=["--epoch", "0.2"])
        until(lambda: calls(place, "GET /v1/batches/") >= 2, "it polls")
        stopped = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 143, process.stderr
        assert time.monotonic() - stopped < 15, "a stop does not wait for a batch"
        report = json.loads(process.out.read_bytes())
        assert report["status"] == "stopped"
        assert report["waiting"] == [f"{ROWS} rows wait for batch_0000 (validating, 0/0)"]
        (state,) = place.verb("state", "inspect", str(place.state_folder), "--json")
        assert [batch["batch_id"] for batch in state["batches"]] == ["batch_0000"]
        place.path("hold").unlink()
        assert place.run()["waiting"] == []
        assert_all_right(place)


def test_a_batch_that_is_given_up_is_sent_again(folder: Path) -> None:
    with batch_server(folder) as api:
        place = batch_place(folder, api, "openai", 20)
        assert place.start(launch=die("batch-looked-at:1", place)).wait() == -signal.SIGKILL
        (state,) = place.verb("state", "inspect", str(place.state_folder), "--json")
        (batch,) = state["batches"]
        assert place.spawn(["state", "forget-batch", str(place.state_folder), "none"]).wait() == 74
        assert place.spawn(["state", "forget-batch", str(place.state_folder), batch["id"]]).wait() == 0
        place.run()
        assert place.verdict(fate).problems == {}
        assert set(submitted(place).values()) == {2}
