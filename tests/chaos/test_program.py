"""F32: a program that was edited between two runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.check import calls_of
from tests.chaos.crash import Place, make_rows, pipeline_fate

EDITS = {
    "instructions": ('"""Answer the question."""', '"""Answer the question well."""'),
    "a function": ("row.n % 10}", "row.n % 100}"),
    "a field": ("    verdict: str = ds.OutputField()", "    verdict: str = ds.OutputField(desc='yes or no')"),
    "the order": ('else "unordered"', 'else "ordered"'),
}


def died(place: Place) -> None:
    """A copy of the flow that may be edited, killed in the middle."""
    place.flow.read_text()
    place.path("mine.py").write_text(place.flow.read_text())
    place.flow = place.path("mine.py")
    make_rows(place.path("in.jsonl"), 150)
    place.args = ("--capacity", "8")
    point = ["--die", "flushed-epoch-not-committed:2", "--hits", str(place.path("hits")), "--epoch", "0.05"]
    process = place.start(launch=point)
    assert process.wait() == 9, process.stderr


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_program_is_continued_only_on_request(place: Place, log: Path, what: str) -> None:
    died(place)
    before = calls_of(log)
    text = place.flow.read_text()
    old, new = EDITS[what]
    assert old in text
    place.flow.write_text(text.replace(old, new))
    process = place.start()
    assert process.wait() == 78, process.stderr
    assert "--accept-program-change" in process.stderr
    assert calls_of(log) == before
    place.flow.write_text(text)
    place.run()
    assert place.verdict(pipeline_fate).problems == {}


def test_old_answers_are_not_given_to_an_edited_prompt(place: Place, log: Path) -> None:
    died(place)
    place.run()
    first = calls_of(log)
    place.flow.write_text(place.flow.read_text().replace(*EDITS["instructions"]))
    report = place.run()
    again = calls_of(log)
    # The second step's question is the same, as the answers are, so its calls are not paid again.
    assert report["calls"] == again.total() - first.total()
    assert len(again) - len(first) >= 100, "the edited prompt was answered from the journal"
    assert place.verdict(pipeline_fate).problems == {}


def test_the_same_program_is_the_same_in_every_process(place: Place, log: Path) -> None:
    died(place)
    for hashseed in ("0", "1", "12345"):
        place.env["PYTHONHASHSEED"] = hashseed
        process = place.start(
            launch=["--die", "engine-set-up-no-row:1", "--hits", str(place.path("hits")), "--epoch", "0.05"]
        )
        assert process.wait() == 9, process.stderr
    place.run()
    assert place.verdict(pipeline_fate).problems == {}


def test_another_input_or_output_is_not_mixed_into_a_run(place: Place, log: Path) -> None:
    died(place)
    before = calls_of(log)
    make_rows(place.path("other.jsonl"), 20)
    for arguments in (
        ("--input", str(place.path("other.jsonl"))),
        ("--output", str(place.path("else.jsonl"))),
    ):
        process = place.start(*arguments)
        assert process.wait() == 78, process.stderr
    assert calls_of(log) == before
    place.run()
    assert place.verdict(pipeline_fate).problems == {}
