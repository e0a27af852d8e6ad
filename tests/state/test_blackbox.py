from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.errors import ConfigurationError, StateCorrupt
from dspy_stream.state.blackbox import MAX_ATTEMPTS, SLOT, SLOTS, BlackBox
from dspy_stream.state.store import Store

DIE = """
import os, sys, threading
from dspy_stream.state.blackbox import BlackBox
from dspy_stream.state.store import Store
box = BlackBox(Store.open(sys.argv[1]))
def other():
    slot = box.claim()
    box.enter(slot, "answer", "fine")
    box.leave(slot)
thread = threading.Thread(target=other)
thread.start(); thread.join()
box.enter(box.claim(), "answer", "poison")
if sys.argv[2] == "exit":
    os._exit(1)
print("in", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_deaths_of_a_row_are_counted(
    folder: Path, child: Callable[..., subprocess.Popen[str]], how: str
) -> None:
    for death in range(1, MAX_ATTEMPTS + 1):
        process = child(DIE, folder, how)
        if how == "kill":
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            process.kill()
        process.wait(timeout=20)
        with Store.open(folder) as store:
            box = BlackBox(store)
            assert box.suspects == (("answer", "poison"),)
            assert box.attempts("answer", "poison") == death
            assert box.attempts("answer", "fine") == box.attempts("other", "poison") == 0
            box.close()
            box = BlackBox(store)
            assert box.suspects == ()
            assert box.attempts("answer", "poison") == death
            box.close()


@pytest.fixture
def died(store: Store) -> Callable[..., BlackBox]:
    def die(*names: tuple[str, str]) -> BlackBox:
        box = BlackBox(store)
        for step, row_id in names:
            box.enter(box.claim(), step, row_id)
        box.close()
        return BlackBox(store)

    return die


def test_a_clean_leave_accuses_nobody(store: Store) -> None:
    box = BlackBox(store)
    slot = box.claim()
    box.enter(slot, "answer", "row")
    box.leave(slot)
    box.enter(slot, "answer", "other")
    box.release(slot)
    box.close()
    assert BlackBox(store).suspects == ()
    assert sum(1 for _ in store.scan("suspects")) == 0


def test_every_thread_has_a_slot(store: Store, died: Callable[..., BlackBox]) -> None:
    names = [("s", f"row{n}") for n in range(SLOTS)]
    assert set(died(*names).suspects) == set(names)
    box = BlackBox(store)
    slots: list[int] = []
    threads = [threading.Thread(target=lambda: slots.append(box.claim())) for _ in range(SLOTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slots) == list(range(SLOTS))
    with pytest.raises(ConfigurationError, match="threads"):
        box.claim()
    with pytest.raises(ConfigurationError, match="threads"):
        box.enter(SLOTS, "s", "row")
    box.release(7)
    assert box.claim() == 7


def test_one_death_is_counted_once_however_often_counting_is_interrupted(store: Store) -> None:
    box = BlackBox(store)
    box.enter(box.claim(), "s", "row")
    box.close()
    before = box.path.read_bytes()
    assert BlackBox(store).attempts("s", "row") == 1
    box.path.write_bytes(before)  # as if the process had died after counting and before clearing
    again = BlackBox(store)
    assert again.attempts("s", "row") == 1
    again.enter(again.claim(), "s", "row")
    again.close()
    assert BlackBox(store).attempts("s", "row") == 2


def test_a_row_that_went_through_is_acquitted(died: Callable[..., BlackBox], store: Store) -> None:
    box = died(("s", "a"), ("s", "b"))
    box.acquit("s", "a")
    box.acquit("s", "nobody")
    box.close()
    box = BlackBox(store)
    assert (box.attempts("s", "a"), box.attempts("s", "b")) == (0, 1)


@settings(max_examples=30)
@given(
    step=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300),
    row=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
)
def test_any_name_is_recognized_again(died: Callable[..., BlackBox], step: str, row: str) -> None:
    box = died((step, row))
    assert box.attempts(step, row) == 1
    assert box.attempts(step, row + "x") == 0
    if len(step.encode()) + len(row.encode()) < SLOT - 1:
        assert box.suspects == ((step, row),)
    box.acquit(step, row)
    box.close()


def test_surrogates_do_not_stop_a_row(died: Callable[..., BlackBox]) -> None:
    assert died(("s", "\ud800")).attempts("s", "\ud800") == 1


def test_a_torn_entry_accuses_nobody(store: Store) -> None:
    box = BlackBox(store)
    box.close()
    data = bytearray(box.path.read_bytes())
    data[SLOT + 1 : SLOT + 9] = b"s\0half-w"  # the body was written, the length not yet
    box.path.write_bytes(data)
    assert BlackBox(store).suspects == ()


def test_damage_is_named(store: Store) -> None:
    box = BlackBox(store)
    box.close()
    good = box.path.read_bytes()
    for bad in (good[:-1], b"x" + good[1:], good[:SLOT] + b"\x05garba" + good[SLOT + 6 :]):
        box.path.write_bytes(bad)
        with pytest.raises(StateCorrupt, match="blackbox is damaged"):
            BlackBox(store)
    box.path.unlink()
    os.symlink("/dev/null", box.path)
    with pytest.raises(Exception, match="blackbox"):
        BlackBox(store)
    box.path.unlink()
    store.put("suspects", b"row/s\0r", b"x")
    with pytest.raises(StateCorrupt, match="count"):
        BlackBox(store)
