"""kill -9 at random moments of a program whose parts are operators: every row once, and whole."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.crash import HERE, Place, crash_until_done, make_rows, model_server
from tests.chaos.oracle import answer_to

KILLS = int(os.environ.get("CHAOS_KILLS", "30")) // 2


def fate(row: Mapping[str, Any]) -> Mapping[str, str] | str:
    """What flows/composed.py must make of a row."""
    question = row["question"]
    if "@garbage" in question:
        return "parse"
    if row["n"] % 13 == 5:
        return "module"
    answer = answer_to("answer", {"question": question})
    verdict = answer_to("verdict", {"question": question, "answer": answer})
    last = {"odd": verdict} if row["n"] % 2 else {"even": answer_to("even", {"verdict": verdict})}
    return {"question": question, "answer": answer, "verdict": verdict, **last}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("order", "workers"), [("unordered", 1), ("ordered", 1), ("unordered", 2), ("ordered", 2)]
)
def test_halves_of_rows_find_each_other_after_every_death(
    folder: Path, rng: random.Random, order: str, workers: int
) -> None:
    make_rows(folder / "in.jsonl", KILLS * 40)
    with model_server(folder, latency=0.04) as (api, log):
        place = Place(
            folder,
            api,
            flow=HERE / "flows" / "composed.py",
            env={"CHAOS_ORDER": order},
            args=("-w", str(workers), "--capacity", "8"),
        )
        killed = crash_until_done(
            place,
            log,
            rng,
            kills=KILLS,
            window=(0.02, 0.6),
            launch=["--epoch", rng.choice(["0.1", "0.3"])],
        )
        assert place.verdict(fate, ordered=order == "ordered").problems == {}
    assert killed >= KILLS // 2, "the flow was through before it could be killed often enough"
