"""``dspy-stream state``: inspect, verify, gc."""

import pytest

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
