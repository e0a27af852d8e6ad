"""``dspy-stream state``: inspect, verify, gc."""

import pytest

from dspy_stream.cli import state
from dspy_stream.state.store import Store

STATE = ".dspy_stream/demo"


@pytest.fixture
def used(cli, here):
    assert cli("run", "flow.py", "-q").code == 0
    return here


def test_inspect_shows_runs_journal_and_letters(cli, used):
    value = cli("state", "inspect", STATE, "--json").json()
    text = str(value)
    assert "demo" in text
    assert "finished" in text
    shown = cli("state", "inspect", STATE)
    assert shown.code == 0
    assert "demo" in shown.out


def test_verify_finds_a_sound_folder_sound(cli, used):
    said = cli("state", "verify", STATE, "--json")
    assert said.code == 0
    assert said.json()["verified"] is True
    assert said.json()["problems"] == []
    assert cli("state", "verify", STATE).code == 0


def test_verify_ends_with_76_where_a_file_is_damaged(cli, used):
    store = used / STATE
    files = list(store.rglob("*.sst")) or list(store.rglob("*.log"))
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 8 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 8)
        path.write_bytes(bytes(data))
    said = cli("state", "verify", STATE, "--json")
    assert said.code == 76
    assert "Traceback" not in said.err


def test_gc_forgets_old_calls(cli, used):
    said = cli("state", "gc", STATE, "--ttl-days", "0", "--keep-runs", "1", "--json")
    assert said.code == 0
    assert cli("run", "flow.py", "--json").json()["calls"] > 0, "nothing is left to answer from"


def test_gc_keeps_what_is_young(cli, used):
    assert cli("state", "gc", STATE, "--ttl-days", "30").code == 0
    assert cli("run", "flow.py", "--json").json()["calls"] == 0


def test_inspect_tells_a_reader_of_runs_in_words(cli, used):
    shown = cli("state", "inspect", STATE).out
    assert "{" not in shown
    assert '"' not in shown
    for words in ("in.jsonl", "out.jsonl", "finished", "rows_in 10, rows_out 8, dead_letters 2"):
        assert words in " ".join(shown.split())


def test_costs_are_told_in_dollars_and_times_as_times(capsys):
    spent = {"calls": 2, "cost_pico": 1_523_507_000_000, "priced": 2}
    batch = {"id": "b", "created": 1796124190.6, "tried": 0.0}
    state._print({"path": "p", "spend": {"r": spent}, "batches": [batch]}, False)
    shown = capsys.readouterr().out
    assert "calls 2, cost $1.5235, priced 2" in shown
    assert "2026-12-01T11:23:10Z" in shown
    assert shown.startswith("path"), "no line of empty headings"


def test_inspect_says_what_a_retry_read(cli, used):
    assert cli("dlq", "retry", "healthy.py").code == 0
    shown = cli("state", "inspect", STATE).out
    assert "2 dead letters" in shown
    assert "None" not in shown


@pytest.mark.parametrize(
    "verb",
    [
        *(
            ("state", "gc", "nowhere"),
            ("state", "rebuild", "nowhere"),
            ("state", "forget-batch", "nowhere", "b"),
        ),
        *(("dlq", "resolve", "nowhere", "r"), ("dlq", "retry", "flow.py", "--state", "nowhere")),
        *(("state", "inspect", "nowhere"), ("state", "verify", "nowhere"), ("dlq", "list", "nowhere")),
    ],
)
def test_no_verb_makes_a_state_folder_where_there_is_none(cli, here, verb):
    said = cli(*verb)
    assert said.code == 74
    assert "there is no state folder nowhere" in said.err
    assert not (here / "nowhere").exists()


class TestRebuild:
    def test_a_sound_folder_is_said_to_be_sound(self, cli, used):
        said = cli("state", "rebuild", STATE)
        assert (said.code, "is sound; nothing was done" in said.out) == (0, True)

    def test_what_can_be_read_is_kept_and_serves_the_next_run(self, cli, used):
        (used / STATE / "db" / "CURRENT").write_bytes(b"")
        refused = cli("run", "flow.py")
        assert refused.code == 76
        assert "dspy-stream state rebuild" in refused.err
        said = cli("state", "rebuild", STATE)
        assert said.code == 0
        words = " ".join(said.out.split())
        assert "finished calls" in words
        assert "dead letters 2" in words
        assert "damaged-1" in words
        assert cli("state", "verify", STATE).code == 0
        assert cli("run", "flow.py", "--json").json()["calls"] == 0

    def test_65_and_a_loud_line_where_letters_are_lost(self, cli, used):
        with Store.open(used / STATE) as store:
            (ref, *_), *_ = store.scan("dead")
            store.delete_prefix("dead", ref)
        (used / STATE / "db" / "CURRENT").write_bytes(b"")
        said = cli("state", "rebuild", STATE)
        assert said.code == 65
        assert "LOST: 1 dead letters of run" in said.out
        assert "run the flow again" in " ".join(said.out.split())

    def test_as_json(self, cli, used):
        (used / STATE / "stamp").unlink()
        found = cli("state", "rebuild", STATE, "--json").json()
        assert found["aside"].endswith("damaged-1")
        assert found["kept"]["dead letters"] == 2

    def test_where_there_is_none(self, cli, here):
        assert cli("state", "rebuild", "nowhere").code == 74


def test_a_retry_leaves_a_folder_that_verifies(cli, used):
    assert cli("dlq", "retry", "healthy.py").code == 0
    said = cli("state", "verify", STATE, "--json")
    assert (said.code, said.json()["problems"]) == (0, [])
