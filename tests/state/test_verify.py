from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from dspy_stream.clock import FakeClock
from dspy_stream.errors import StateCorrupt, StateError, StateLocked
from dspy_stream.rows import DeadLetter, Origin
from dspy_stream.state.blackbox import BlackBox
from dspy_stream.state.dead_letters import DeadLetterBox
from dspy_stream.state.journal import Journal
from dspy_stream.state.runs import Runs, RunSpec
from dspy_stream.state.store import Store
from dspy_stream.state.verify import gc, inspect, verify
from dspy_stream.types import Usage


@pytest.fixture
def busy(store: Store) -> Store:
    """A store in which everything has been used."""
    run, _ = Runs(store).begin(RunSpec("triage"))

    async def calls() -> None:
        recorder = Journal(store).recorder(run.run_id)
        await asyncio.gather(*(recorder.put(b"%d" % n, b"answer", Usage(1, 2, 0.5)) for n in range(20)))

    asyncio.run(calls())
    box = DeadLetterBox(store)
    box.open(run.run_id, 0)
    box.append([DeadLetter(f"r{n}", Origin("f", "0", n), b"raw", "read", {"code": "c"}) for n in range(3)])
    box.resolve("r0", stamp="2026-01-01")
    store.put("ids", b"seen\0run\0row", b"\xff digest")
    black = BlackBox(store)
    black.enter(black.claim(), "s", "row")
    black.close()
    BlackBox(store).close()
    return store


def test_a_healthy_folder_is_reported_beside_its_owner(busy: Store) -> None:
    for report in (inspect(busy.path), verify(busy.path)):
        assert report.ok
        assert (report.layout, report.path) == (1, str(busy.path))
        (run,) = report.runs
        assert run.flow == "triage"
        spend = report.spend[run.run_id]
        assert (spend.calls, spend.cost) == (20, 10.0)
        assert (report.dead_letters_open, report.dead_letters_resolved) == (2, 1)
        assert report.families["journal"].keys == 20
        assert report.disk_bytes > 0
        back = orjson.loads(orjson.dumps(report.to_json()))
        assert back["runs"][0]["run_id"] == run.run_id
        assert back["spend"][run.run_id]["cost"] == 10.0
    assert verify(busy.path).verified
    assert verify(busy.path).families["journal"].bytes == sum(len(b"%d" % n) + 8 + 6 for n in range(20))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("journal", b"k", b"short"),
        ("runs", b"run/x", b"{}"),
        ("runs", b"spend/x", b"[]"),
        ("runs", b"other", b""),
        ("dead", b"x/00000001", b"{}"),
        ("dead", b"no number", b"{}"),
        ("ids", b"strange", b""),
        ("meta", b"dead_letters/x", b"many"),
        ("suspects", b"row/a", b"-1"),
    ],
)
def test_a_damaged_entry_is_listed(busy: Store, family: str, key: bytes, value: bytes) -> None:
    busy.put(family, key, value)  # type: ignore[arg-type]
    report = verify(busy.path)
    assert not report.ok
    assert any(family in problem and repr(key) in problem for problem in report.problems)
    assert orjson.loads(orjson.dumps(report.to_json()))["problems"]


def test_a_flipped_bit_is_listed(folder: Path) -> None:
    with Store.open(folder) as store:
        for n in range(2000):
            store.put("journal", b"%06d" % n, b"12345678" + bytes(100))
        store.compact("journal")
    table = max((folder / "db").glob("*.sst"), key=lambda file: file.stat().st_size)
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    try:
        report = verify(folder)
        assert any(problem.startswith("journal after") for problem in report.problems)
    except StateCorrupt:
        pass  # the flip hit what is read while opening


def test_gc_needs_the_folder_and_says_what_it_removed(folder: Path) -> None:
    with Store.open(folder) as store:
        journal, runs = Journal(store, clock=FakeClock(1000.0)), Runs(store)
        asyncio.run(journal.put(b"old", b"answer"))
        asyncio.run(Journal(store).put(b"new", b"answer"))
        for _ in range(4):
            runs.finish(runs.begin(RunSpec("f"))[0])
    cleared = gc(folder, ttl=3600, runs=2)
    assert (cleared.entries, cleared.runs) == (1, 2)
    assert set(cleared.to_json()) == {"entries", "bytes", "runs", "disk_before", "disk_after"}
    with Store.open(folder) as store:
        assert [key for key, _ in store.scan("journal")] == [b"new"]
        assert len(Runs(store).list()) == 2


def test_what_is_not_a_state_folder_is_said_to_be_none(tmp_path: Path) -> None:
    for look in (inspect, verify):
        with pytest.raises(StateError, match="no state"):
            look(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert issubclass(StateLocked, StateError)
