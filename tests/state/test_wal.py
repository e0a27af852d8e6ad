from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.rows import DeadLetter, Origin
from dspy_stream.state.batch import FAMILIES, Batch
from dspy_stream.state.dead_letters import DeadLetterBox
from dspy_stream.state.runs import Runs, RunSpec
from dspy_stream.state.store import Store
from dspy_stream.state.wal import batches, census, changes


def logs(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "db").glob("*.log"))]


def filled(folder: Path, sizes: list[int]) -> bytes:
    with Store.open(folder) as store:
        for number, size in enumerate(sizes):
            batch = Batch()
            batch.put("journal", b"%020d" % number, bytes(size))
            batch.delete("suspects", b"row/gone")
            batch.delete_range("ids", b"seen\0a", b"seen\0b")
            store.write(batch)
        (log,) = logs(folder)
    return log


def test_the_database_s_own_log_is_read_whole(folder: Path) -> None:
    # Around the size of a block, so that batches are cut at every place of it.
    sizes = [0, 1, *range(32_640, 32_760), 100_000, 5]
    log = filled(folder, sizes)
    found = [change for batch in batches(log) for change in changes(batch or b"")[1]]
    ours = [change for change in found if change.key.isdigit()]
    assert [len(change.value or b"") for change in ours] == sizes
    assert [change.value for change in found if change.key == b"row/gone"] == [None] * len(sizes)
    result = census([log])
    assert result.lost == 0
    assert "journal" in result.families.values()
    assert "meta" in result.families.values()


def test_families_are_told_by_what_their_keys_look_like(folder: Path) -> None:
    letter = DeadLetter("r1", Origin("f", "0", 1), b"{}", "parse", {"code": "parse"})
    with Store.open(folder) as store:
        run, _ = Runs(store).begin(RunSpec("flow"))
        box = DeadLetterBox(store)
        box.open(run.run_id, 0)
        box.append([letter])
        store.put("suspects", b"row/step\0r1", b"1")
        store.put("journal", bytes(range(20)), b"12345678")
        log = logs(folder)
    assert sorted(census(log).families.values()) == sorted(FAMILIES)


def test_a_flipped_bit_costs_its_block_and_is_counted(folder: Path) -> None:
    log = bytearray(filled(folder, [1000] * 200))
    whole = read(bytes(log))
    log[70_000] ^= 1
    assert 0 < whole - read(bytes(log)) <= 3 * 34
    assert census([bytes(log)]).lost == whole - read(bytes(log))


def read(log: bytes) -> int:
    return sum(len(changes(batch)[1]) for batch in batches(log) if batch is not None)


def test_a_flipped_bit_behind_which_nothing_can_be_read_is_counted(folder: Path) -> None:
    log = bytearray(filled(folder, [100] * 20))
    whole = read(bytes(log))
    assert census([bytes(log)], durable=whole).lost == 0
    log[-700] ^= 1
    assert census([bytes(log)], durable=whole).lost == whole - read(bytes(log)) > 0
    assert census([bytes(log)]).lost == 1, "at least one"


@pytest.mark.parametrize("length", [1, 50, 500])
def test_a_torn_end_is_no_damage(folder: Path, length: int) -> None:
    log = filled(folder, [100] * 20)
    assert census([log[:-length]], durable=60).lost == 0


def test_a_missing_log_between_two_is_counted(folder: Path) -> None:
    with Store.open(folder) as store:
        for _ in range(3):
            store.put("journal", b"%020d" % 1, b"value")
            store.put("dead", b"run/00000001", b"{}")
            store._families["journal"].flush()
        found = logs(folder)
    assert census(found).lost == 0
    assert census([found[0], *found[2:]]).lost == 2


@given(st.binary(max_size=300))
def test_noise_is_no_log(data: bytes) -> None:
    for batch in batches(data):
        try:
            changes(batch or b"")
        except ValueError:
            pass
    census([data])


@given(st.binary(max_size=200))
def test_noise_is_no_batch(data: bytes) -> None:
    try:
        first, found = changes(data)
    except ValueError:
        return
    assert first >= 0
    assert len(found) >= 0
