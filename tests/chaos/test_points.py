"""F2: the process ends at one named point, at its first and a later pass; then the flow is finished."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.check import calls_of
from tests.chaos.crash import PaidOnce, Place, make_rows, model_server, pipeline_fate
from tests.chaos.launch import POINTS

CAPACITY = 8
STEPS = 2
ROWS = 300
# Passed once or a few times in a run, so that a later pass would never come.
RARE = (
    "database-made-not-stamped",
    "run-recorded-no-folder",
    "recovery-folder-no-engine",
    "engine-set-up-no-row",
    "sink-opened",
    "engine-done-not-finished",
    "finished-not-recorded",
    "recorded-not-closed",
)


# Those of the batch lane are no points of this flow; test_batch.py goes through them.
@pytest.mark.parametrize("point", [point for point in POINTS if not point.startswith("batch-")])
def test_the_flow_survives_its_end_at(point: str, folder: Path, rng: random.Random) -> None:
    make_rows(folder / "in.jsonl", ROWS)
    with model_server(folder, latency=0.01) as (api, log):
        place = Place(folder, api, args=("--capacity", str(CAPACITY), "-w", rng.choice("12")))
        _die_and_finish(place, log, point)


def _die_and_finish(place: Place, log: Path, point: str) -> None:
    hits = place.path("hits")
    passes = [1] if point in RARE else [1, 2]
    once = PaidOnce(place, log)
    for count, nth in enumerate(passes, 1):
        process = place.start(launch=["--die", f"{point}:{nth}", "--hits", str(hits), "--epoch", "0.05"])
        code = process.wait()
        assert code == 9, f"{point}:{nth} was not reached: exit {code}: {process.stderr}"
        assert hits.read_text().count(point) == count
        once.died()
    place.run(launch=["--epoch", "0.05"])
    assert place.verdict(pipeline_fate).problems == {}
    asked = calls_of(log)
    repeated = asked.total() - len(asked)
    print(f"kills={len(passes)} repeated={repeated} journaled={once.journaled}")
    # What was journaled at a death is never paid again; what was in flight, once at most.
    assert once.paid_again() == {}
    assert repeated <= len(passes) * CAPACITY * STEPS
