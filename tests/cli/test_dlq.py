"""``dspy-stream dlq``: list, show, export, resolve, retry."""

import base64
from pathlib import Path

import orjson
import pytest

from dspy_stream.rows import DeadLetter, Origin
from dspy_stream.state import DeadLetterBox, Runs, Store

STATE = ".dspy_stream/demo"


@pytest.fixture
def dead(cli, here):
    """After a run that left two dead letters."""
    assert cli("run", "flow.py", "-q").code == 0
    return here


def letters(cli, *arguments):
    said = cli("dlq", "list", STATE, "--json", *arguments)
    assert said.code == 0
    found = [orjson.loads(line) for line in said.out.splitlines()]
    return sorted(found, key=lambda letter: letter["source"]["offset"])


def questions():
    return sorted(orjson.loads(line)["question"] for line in Path("out.jsonl").read_bytes().splitlines())


class TestList:
    def test_as_a_table(self, cli, dead):
        said = cli("dlq", "list", STATE)
        lines = said.out.splitlines()
        assert len(lines) == 3
        assert lines[0].split()[:3] == ["ref", "row", "id"]
        assert "line 4" in said.out
        assert "line 7" in said.out
        assert all("parse" in line for line in lines[1:])

    def test_what_is_wrong_is_not_cut_off_behind_what_is_always_the_same(self, cli, dead):
        lines = cli("dlq", "list", STATE).out.splitlines()
        (whole,) = {letter["error"]["message"] for letter in letters(cli)}
        reason = whole.partition("could not read the answer: ")[2].partition(". Expected to find")[0]
        assert 0 < len(reason) < 80
        assert all(line.endswith(reason) for line in lines[1:])

    def test_nothing_there_is_said(self, cli, dead):
        said = cli("dlq", "list", STATE, "--stage", "call")
        assert (said.code, said.out, said.err) == (0, "", "no open dead letters of that kind\n")

    def test_as_json_lines(self, cli, dead):
        found = letters(cli)
        assert [base64.b64decode(letter["raw"]) for letter in found] == [
            b'{"question":"bad 3"}',
            b'{"question":"bad 6"}',
        ]
        assert found[0]["step"] == "01_ask"
        assert found[0]["flow"] == "demo"

    def test_chosen(self, cli, dead):
        assert len(letters(cli, "--limit", "1")) == 1
        assert len(letters(cli, "--stage", "parse", "--code", "parse")) == 2
        assert letters(cli, "--stage", "call") == []
        assert letters(cli, "--code", "timeout") == []


class TestShow:
    def test_one_whole_by_ref_or_row_id(self, cli, dead):
        letter = letters(cli)[0]
        by_id = cli("dlq", "show", STATE, letter["row_id"]).json()
        assert by_id["row"] == '{"question":"bad 3"}'
        assert by_id["error"]["code"] == "parse"
        assert cli("dlq", "show", STATE, letter["ref"]).json() == by_id

    def test_one_that_is_not_there(self, cli, dead):
        said = cli("dlq", "show", STATE, "nobody")
        assert said.code == 78
        assert "no dead letter 'nobody'" in said.err

    def test_control_characters_never_reach_the_terminal(self, cli, here):
        evil = "bad \x1b[31m\x1b]0;owned\x07\r\x9b2J"
        (here / "in.jsonl").write_bytes(
            orjson.dumps({"question": evil, "id": "\x1b[2Jid"}) + b"\n\x1b[2Jnot json\n"
        )
        (here / "flow.py").write_text(
            (here / "flow.py").read_text().replace('name="demo")', 'name="demo", id="id")')
        )
        said = cli("run", "flow.py")
        assert said.code == 65, "no row passed"
        shown = [
            said.err,
            cli("dlq", "list", STATE).out,
            cli("dlq", "list", STATE, "--json").out,
            cli("state", "inspect", STATE).out,
            *(cli("dlq", "show", STATE, letter["ref"]).out for letter in letters(cli)),
            cli("dlq", "show", STATE, "\x1b[2Jnobody").err,
        ]
        for text in shown:
            assert not [c for c in text if not c.isprintable() and c != "\n"], text


class TestExport:
    def test_to_a_new_file(self, cli, dead):
        said = cli("dlq", "export", STATE, "letters.jsonl")
        assert said.code == 0
        assert "2 dead letters" in said.err
        assert len((dead / "letters.jsonl").read_bytes().splitlines()) == 2

    def test_an_old_file_is_not_touched(self, cli, dead):
        (dead / "letters.jsonl").write_text("precious\n")
        said = cli("dlq", "export", STATE, "letters.jsonl")
        assert said.code != 0
        assert "Traceback" not in said.err
        assert (dead / "letters.jsonl").read_text() == "precious\n"

    @pytest.mark.parametrize("name", ["", "nowhere/x.jsonl", ".", "/proc/x.jsonl"])
    def test_to_what_is_no_place_for_a_file(self, cli, dead, name):
        said = cli("dlq", "export", STATE, name)
        assert said.code == 74
        assert said.err.count("\n") == 1
        assert ".part" not in said.err

    def test_to_standard_output(self, cli, dead):
        said = cli("dlq", "export", STATE, "-", "--stage", "parse")
        assert len([orjson.loads(line) for line in said.out.splitlines()]) == 2


class TestResolve:
    def test_one_by_its_row_id(self, cli, dead):
        letter = letters(cli)[0]
        said = cli("dlq", "resolve", STATE, letter["row_id"], "--note", "spam")
        assert (said.code, said.err) == (0, "1 resolved\n")
        assert [left["row_id"] for left in letters(cli)] != [letter["row_id"]]
        assert len(letters(cli)) == 1
        assert len(letters(cli, "--all")) == 2

    def test_one_that_is_not_open(self, cli, dead):
        said = cli("dlq", "resolve", STATE, "nobody")
        assert said.code == 78
        assert "no open dead letter" in said.err


class TestRetry:
    def test_it_keeps_to_a_budget_and_goes_on_with_more(self, cli, dead):
        (dead / "prices.json").write_text('{"scripted/demo": {"prompt": 1.0, "completion": 2.0}}')
        budget = ("dlq", "retry", "healthy.py", "--prices", "prices.json", "--max-cost", "1", "--max-calls")
        said = cli(*budget, "1")
        assert said.code == 77
        assert "max_calls" in said.err
        assert len(letters(cli)) == 2
        assert cli(*budget, "2").code == 0
        assert letters(cli) == []
        assert questions() == sorted(["bad 3", "bad 6", *(f"q{n}" for n in range(10) if n not in (3, 6))])

    def test_rows_that_pass_are_added_once_and_their_letters_resolved(self, cli, dead):
        said = cli("dlq", "retry", "healthy.py", "--json")
        assert (said.code, said.json()["rows_out"]) == (0, 2)
        assert questions() == sorted([*(f"q{n}" for n in range(10) if n not in (3, 6)), "bad 3", "bad 6"])
        assert letters(cli) == []
        again = cli("dlq", "retry", "healthy.py")
        assert again.code == 78
        assert "no open dead letters" in again.err
        assert len(questions()) == 10

    def test_65_where_rows_fail_again(self, cli, dead):
        said = cli("dlq", "retry", "flow.py", "--json")
        assert (said.code, said.json()["dead_letters"]) == (65, 2)
        assert len(letters(cli)) == 2
        assert len(questions()) == 8
        assert cli("dlq", "retry", "healthy.py").code == 0
        assert len(questions()) == 10

    def test_chosen_ones(self, cli, dead):
        ref = letters(cli)[0]["ref"]
        assert cli("dlq", "retry", "healthy.py", ref, "--json").json()["rows_out"] == 1
        assert len(letters(cli)) == 1

    def test_with_other_output_and_state(self, cli, here):
        cli("run", "flow.py", "-o", "mine.csv", "--state", "s", "-q")
        said = cli("dlq", "retry", "healthy.py", "-o", "mine.csv", "--state", "s", "--json")
        assert (said.code, said.json()["rows_out"]) == (0, 2)
        assert len((here / "mine.csv").read_text().splitlines()) == 11

    def test_where_the_rows_went_elsewhere_it_asks_for_the_file(self, cli, here):
        cli("run", "flow.py", "-o", "mine.jsonl", "-q")
        said = cli("dlq", "retry", "healthy.py")
        assert said.code == 78
        assert "wrote mine.jsonl, and no run wrote out.jsonl" in said.err
        assert "--output" in said.err
        assert not (here / "out.jsonl").exists()
        assert len(letters(cli)) == 2
        assert cli("dlq", "retry", "healthy.py", "-o", "mine.jsonl").code == 0
        assert len((here / "mine.jsonl").read_bytes().splitlines()) == 10

    def test_says_how_it_went(self, cli, dead):
        said = cli("dlq", "retry", "healthy.py")
        assert "demo.retry: finished" in said.err
        assert said.out == ""


OPEN = """
import dspy_stream as ds

flow = (
    ds.Stream.read("in.jsonl", name="demo")
    .through(ds.Predict("question -> number: int"), name="ask")
    .limit_failures(consecutive=None, ratio=None)
    .write("out.jsonl")
)
"""


class TestTheModelOfARetry:
    """The flow names none; the run was given one, and a retry asks the same."""

    @pytest.fixture
    def given(self, cli, here):
        (here / "open.py").write_text(OPEN)
        cli("run", "open.py", "-q", "--lm", "local/nearest")
        assert letters(cli)
        return here

    def test_is_that_of_the_run_and_said_to_be(self, cli, given):
        said = cli("dlq", "retry", "open.py", "--json")
        assert said.code == 65, said.err
        assert "the model is that of run " in said.err
        assert ": local/nearest; --lm names another" in said.err
        assert said.json()["rows_in"] == 10

    def test_may_be_another(self, cli, given):
        said = cli("dlq", "retry", "open.py", "--lm", "nobody/knows")
        assert said.code == 78
        assert "nobody" in said.err
        assert "the model is that" not in said.err

    def test_at_a_server_is_asked_for_again_and_no_key_is_kept(self, cli, here, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
        (here / "open.py").write_text(OPEN)
        monkeypatch.setattr("dspy_stream.stream.run._drive", lambda *_: None)
        cli("run", "open.py", "-q", "--lm", "openai/own", "--api-base", "http://127.0.0.1:9/v1")
        with Store.open(STATE) as store:
            box = DeadLetterBox(store)
            run = Runs(store).newest("demo")
            box.open(run.run_id, 0)
            box.append([DeadLetter("r", Origin("f", "0", 1), b'{"question":"q"}', "parse", {"code": "c"})])
        said = cli("dlq", "retry", "open.py")
        assert said.code == 78
        assert f"run {run.run_id} asked openai/own at http://127.0.0.1:9" in said.err
        assert "--api-base again" in said.err
        kept = b"".join(path.read_bytes() for path in Path(STATE).rglob("*") if path.is_file())
        assert b"canary" not in kept
        said = cli("dlq", "retry", "open.py", "--api-base", "http://127.0.0.1:9/v1")
        assert "the model is that of run" in said.err
        assert ": openai/own" in said.err
