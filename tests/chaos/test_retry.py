"""``dlq retry`` that is killed: no row lost, none written twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.check import calls_of, dead_of, read_rows
from tests.chaos.crash import HERE, Place, make_rows, pipeline_fate

POINTS = (
    "sink-opened",
    "written-no-epoch",
    "flushed-epoch-not-committed",
    "finished-not-recorded",
    "recorded-not-closed",
)


@pytest.mark.parametrize("point", POINTS)
def test_rows_of_mended_code_are_added_once(place: Place, log: Path, point: str) -> None:
    make_rows(place.path("in.jsonl"), 120)
    text = place.flow.read_text()
    place.flow = place.path("mine.py")
    place.flow.write_text(text)
    place.run()
    before = calls_of(log)
    assert place.verdict(pipeline_fate).problems == {}
    done = {row["key"] for row in read_rows(place.out_file)}
    torn = {name for name, stage in dead_of(place.letters()) if stage == "read"}
    mended = {name for name, stage in dead_of(place.letters()) if stage == "map"}
    dropped = {name for name in mended if int(name[1:]) % 17 == 3}
    garbage = {name for name in mended if int(name[1:]) % 29 == 7}
    place.flow.write_text(text.replace("row.n % 13 == 5", "False"))
    lm = ["--lm", "openai/chaos"]
    place.env["OPENAI_API_BASE"] = place.api
    retry = [
        "dlq",
        "retry",
        str(place.flow),
        "--state",
        str(place.state_folder),
        "--json",
        *lm,
        "--stage",
        "map",
    ]
    fault = ["--die", f"{point}:1", "--hits", str(place.path("hits")), "--epoch", "0.05"]
    process = place.spawn(retry, launch=fault)
    assert process.wait() == 9, process.stderr
    process = place.spawn(retry, launch=["--epoch", "0.05"])
    assert process.wait() in (0, 65, 78), process.stderr  # 78: nothing was left to be retried
    out = Counter(row["key"] for row in read_rows(place.out_file))
    assert max(out.values()) == 1
    assert out.keys() == done | (mended - dropped - garbage)
    left = Counter(name for name, _ in dead_of(place.verb("dlq", "export", str(place.state_folder))))
    assert torn <= left.keys()
    assert garbage <= left.keys()
    assert not left.keys() & out.keys()
    asked = calls_of(log)
    assert all(asked[call] == count for call, count in before.items())


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("hit", [1, 2])
def test_rows_of_two_outputs_are_added_once_each_to_its_own(place: Place, point: str, hit: int) -> None:
    make_rows(place.path("in.jsonl"), 120, bad=False)
    text = (HERE / "flows" / "sides.py").read_text()
    place.flow = place.path("mine.py")
    place.flow.write_text(text)
    place.run()
    even, odd = place.out_file, place.path("out.jsonl.odd.jsonl")
    failed = {name for name, _ in dead_of(place.verb("dlq", "export", str(place.state_folder)))}
    assert {int(name[1:]) % 2 for name in failed} == {0, 1}
    place.flow.write_text(text.replace("row.n % 13 == 5", "False").replace("row.n % 7 == 1", "False"))
    place.env["OPENAI_API_BASE"] = place.api
    state = ["--state", str(place.state_folder), "--lm", "openai/chaos"]
    retry = ["dlq", "retry", str(place.flow), *state]
    fault = ["--die", f"{point}:{hit}", "--hits", str(place.path("hits")), "--epoch", "0.05"]
    process = place.spawn(retry, launch=fault)
    assert process.wait() in (9, 0), process.stderr  # 0: it came by there only once
    process = place.spawn(retry, launch=["--epoch", "0.05"])
    assert process.wait() in (0, 78), process.stderr  # 78: nothing was left to be retried
    for side, file in enumerate((even, odd)):
        keys = sorted(row["key"] for row in read_rows(file))
        assert keys == [f"k{n:05d}" for n in range(120) if n % 2 == side]
    assert place.verb("dlq", "export", str(place.state_folder)) == []
