"""Every file in flows/ runs both ways, from any folder, without key or server, and says what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOP = ROOT / "datasets" / "office_shop"
PARTS = {"stand_ins"}  # no flow of its own

# Rows out, dead letters, and for each measure what it must come to.
EXPECTED = {
    "banking": (300, 0, {"accuracy": 0.5}),
    "help_desk": (70, 0, {"accuracy": 0.8, "page_found": 0.9, "passed_on": 0.1}),
    "order_mails": (75, 5, {"accuracy": 1.0}),
    "order_agent": (60, 0, {"accuracy": 1.0}),
}


def run(tmp_path, *command, **environment):
    settings = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**settings, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def stream(tmp_path, name, *options, **environment):
    flow = str(ROOT / "flows" / f"{name}.py")
    code = "from dspy_stream.cli.main import main; main()"
    return run(tmp_path, "-c", code, "run", flow, *options, **environment)


def rows(path):
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["row_id"]: row for row in found}


def test_every_flow_is_run_here_or_where_dspy_is_installed():
    names = {path.stem for path in (ROOT / "flows").glob("*.py")}
    assert names == {*EXPECTED, *PARTS, "dspy_program"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A function from a flow's name to the folder and the report of its run, made once."""
    made = {}

    def ran(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            done = stream(folder, name, "--json")
            assert (done.returncode, done.stderr) == (0, "")
            made[name] = folder, json.loads(done.stdout)
        return made[name]

    return ran


@pytest.mark.parametrize("name", EXPECTED)
def test_a_flow_runs_both_ways_to_the_same_rows(name, ran, tmp_path):
    count, dead, measures = EXPECTED[name]
    folder, report = ran(name)
    assert (report["rows_out"], report["dead_letters"]) == (count, dead)
    assert {key for key, least in measures.items() if report["measures"][key] >= least} == measures.keys()
    found = rows(folder / "out" / f"{name}.jsonl")
    assert len(found) == count
    assert len((folder / "out" / f"{name}.dead.jsonl").read_text(encoding="utf-8").splitlines()) == dead

    done = run(tmp_path, "-m", "bytewax.run", f"flows.{name}")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "out" / f"{name}.jsonl") == found


def test_the_second_run_asks_nothing(ran):
    folder, _ = ran("order_agent")
    report = json.loads(stream(folder, "order_agent", "--json").stdout)
    assert (report["calls"], report["rows_out"]) == (0, 60)


def test_what_no_help_page_covers_is_passed_on_without_a_call(tmp_path):
    (tmp_path / "mine.csv").write_text("question\nwho won the football match last night\n", encoding="utf-8")
    done = stream(tmp_path, "help_desk", "--input", "mine.csv", "--output", "-", "--json")
    assert json.loads(done.stdout)["answer"] == "A colleague will write to you."
    report = json.loads(done.stderr)  # beside rows on standard output
    assert (report["rows_out"], report["calls"], report["measures"]["passed_on"]) == (1, 0, 1.0)


@pytest.mark.parametrize(
    ("name", "column", "text", "wanted"),
    [
        ("banking", "text", "where is my new card", "intent"),
        ("help_desk", "question", "How long does the delivery of an order take?", "answer"),
        ("order_mails", "mail", "Good morning, our office is short of one notebook.", "total"),
        ("order_agent", "question", "When will order 70352 get here?", "status"),
    ],
)
def test_an_input_of_ones_own_needs_no_labels(tmp_path, name, column, text, wanted):
    (tmp_path / "mine.csv").write_text(f'{column}\n"{text}"\n', encoding="utf-8")
    done = stream(tmp_path, name, "--input", "mine.csv", "--output", "-", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[wanted]


def test_help_pages_that_are_not_there_are_said_to_be_missing(tmp_path):
    done = stream(tmp_path, "help_desk", HELP_PAGES=str(tmp_path))
    assert done.returncode == 78
    assert "HELP_PAGES" in done.stderr


def test_orders_that_stay_wrong_after_the_repair_are_the_dead_letters(ran):
    folder, _ = ran("order_mails")
    letters = (folder / "out" / "order_mails.dead.jsonl").read_text(encoding="utf-8").splitlines()
    given = (SHOP / "mails.jsonl").read_text(encoding="utf-8").splitlines()
    impossible = {number for number, line in enumerate(given, 1) if json.loads(line)["ordered"] is None}
    assert {json.loads(letter)["source"]["line"] for letter in letters} == impossible


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("help_desk", ("desk_search", "desk_answer_True", "then Format")),
        ("order_mails", ("orders_read", "orders_price", "orders_reply", "scripted/rules")),
        ("order_agent", ("desk_agent", "desk_reply_unknown", "scripted/rules")),
    ],
)
def test_every_part_is_an_operator_and_the_model_says_what_it_is(name, steps, tmp_path):
    done = run(tmp_path, "-c", f"from flows.{name} import flow; print(flow.explain())")
    assert [step for step in steps if step not in done.stdout] == [], done.stderr or done.stdout


@pytest.mark.parametrize("name", EXPECTED)
def test_a_flow_is_estimated_without_a_call_or_a_trace(name, tmp_path):
    done = stream(tmp_path, name, "--dry-run", "--json", "--lm", "openai/gpt-4o-mini")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["calls"] > 0
    assert found["cost"]["expected"] > 0
    assert found["notes"] == []
    assert list(tmp_path.iterdir()) == []
