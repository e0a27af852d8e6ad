"""F1: kill -9 at random moments of a whole flow, until it is through."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.check import calls_of
from tests.chaos.crash import Place, crash_until_done, make_rows, model_server, pipeline_fate

KILLS = int(os.environ.get("CHAOS_KILLS", "30"))
CAPACITY = 8
STEPS = 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("output", "order", "workers", "id_column"),
    [
        ("out.jsonl", "unordered", 1, None),
        ("out.csv", "ordered", 1, "key"),
        ("out.jsonl.gz", "unordered", 2, "key"),
        ("out.jsonl", "ordered", 2, None),
    ],
)
def test_nothing_is_lost_and_nothing_paid_twice(
    folder: Path, rng: random.Random, output: str, order: str, workers: int, id_column: str | None
) -> None:
    rows = KILLS * 40
    make_rows(folder / "in.jsonl", rows)
    with model_server(folder, latency=0.04) as (api, log):
        env = {"CHAOS_ORDER": order, "CHAOS_ID": id_column or ""}
        place = Place(
            folder, api, output=output, env=env, args=("-w", str(workers), "--capacity", str(CAPACITY))
        )
        killed = crash_until_done(
            place,
            log,
            rng,
            kills=KILLS,
            window=(0.02, 0.6),
            launch=["--epoch", rng.choice(["0.1", "0.3", "1"])],
        )
    asked = calls_of(log)
    print(f"kills={killed} calls={asked.total()} repeated={asked.total() - len(asked)}")
    problems = place.verdict(pipeline_fate, ordered=order == "ordered").problems
    assert problems == {}
    repeated = asked.total() - len(asked)
    assert repeated <= killed * CAPACITY * STEPS
    assert killed >= KILLS // 2, "the flow was through before it could be killed often enough"
