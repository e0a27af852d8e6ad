"""The account of a run: exact totals, by step and model, readable by whoever wrote it."""

import asyncio
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.state.journal import Journal, MemoryJournal
from dspy_stream.state.recorder import spend_key
from dspy_stream.state.spend import OTHERS, Account, Spend
from dspy_stream.state.store import Store
from dspy_stream.types import Usage

COUNTS = st.integers(0, 10**12)
USAGES = st.builds(Usage, COUNTS, COUNTS, st.none() | st.floats(0, 1000), COUNTS, COUNTS, COUNTS)
PARTS = st.tuples(st.sampled_from(["a", "b", "ü"]), st.sampled_from(["m", "n"]))


@pytest.fixture
def store(tmp_path: Path):
    with Store.open(tmp_path / "state") as opened:
        yield opened


@given(st.lists(st.tuples(PARTS, st.none() | USAGES), max_size=30))
def test_parts_add_up_to_the_total(calls) -> None:
    account = Account()
    for part, usage in calls:
        account.paid(part, usage)
    assert account.rest() == Spend()
    assert account.total.calls == len(calls)
    assert account.total.priced == sum(usage is not None and usage.cost is not None for _, usage in calls)
    read = Account.from_bytes(account.to_bytes())
    assert (read.total, dict(read.parts)) == (account.total, dict(account.parts))


ABSURD = st.builds(
    Usage,
    *[st.integers(-(2**70), 2**70)] * 2,
    st.none() | st.floats() | st.integers(-(10**400), 10**400),
    *[st.integers(-(2**70), 2**70)] * 3,
)


@given(st.lists(st.none() | ABSURD, min_size=1, max_size=20), st.none() | ABSURD)
def test_a_group_adds_up_to_what_its_calls_do_one_by_one(usages, before) -> None:
    part, at_once, singly = ("a", "x"), Account(), Account()
    for account in (at_once, singly):
        account.paid(part, before)
    at_once.paid_all(part, usages)
    for usage in usages:
        singly.paid(part, usage)
    assert at_once.to_bytes() == singly.to_bytes()
    assert Account.from_bytes(at_once.to_bytes()).total == singly.total


def test_more_parts_than_are_told_apart_are_counted_together() -> None:
    account = Account()
    for number in range(100):
        account.paid((f"step{number}", "m"), Usage(1, 1))
    assert len(account.parts) == 65
    assert account.parts[OTHERS].calls == 36
    assert account.total.calls == 100


def test_a_record_from_before_parts_is_read() -> None:
    old = b'{"calls":3,"prompt_tokens":30,"completion_tokens":6,"cost_pico":12}'
    account = Account.from_bytes(old)
    assert account.total == Spend(3, 30, 6, 12) == Spend.from_bytes(old)
    account.paid(("ask", "m"), Usage(10, 2, 0.5))
    assert account.rest() == Spend(3, 30, 6, 12)
    assert account.total.calls == 4


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b'{"parts":[["a"]]}',
        b'{"parts":[[1,"m",{}]]}',
        b'{"parts":[["a","m",{"calls":-1}]]}',
        b'{"parts":7}',
        b'{"unknown":1}',
    ],
)
def test_damage_is_found(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a spend record"):
        Account.from_bytes(data)


@pytest.mark.parametrize("kept", [True, False])
def test_the_journal_counts_by_step_and_model(store: Store, kept: bool) -> None:
    journal = Journal(store) if kept else MemoryJournal()
    step = ["first"]
    recorder = journal.recorder("run", lambda: step[0])

    async def main() -> None:
        await recorder.put(b"1", b"v", Usage(10, 1, 0.25, 4, 1, 2), "m")
        await asyncio.gather(*[recorder.put(b"%d" % n, b"v", Usage(10, 1), "n") for n in range(2, 5)])
        step[0] = "second"
        await recorder.put(b"9", b"v", None, "m")

    asyncio.run(main())
    recorder.tally({("second", "m"): Spend(lost=1)}, now=False)
    recorder.tally({("first", "m"): Spend(hits=7)})
    account = recorder.account()
    assert account.parts == {
        ("first", "m"): Spend(1, 10, 1, 250_000_000_000, 1, 4, 1, 2, 7),
        ("first", "n"): Spend(3, 30, 3),
        ("second", "m"): Spend(1, lost=1),
    }
    assert recorder.spend() == account.total
    if kept:
        again = Journal(store).account("run")
        assert (again.total, again.parts) == (account.total, account.parts)


def test_what_was_lost_is_stored_with_the_next_answer(store: Store) -> None:
    recorder = Journal(store).recorder("run")
    recorder.tally({("", "m"): Spend(lost=1)}, now=False)
    assert store.get("runs", spend_key("run")) is None
    asyncio.run(recorder.put(b"1", b"v", Usage(1, 1), "m"))
    stored = orjson.loads(store.get("runs", spend_key("run")) or b"")
    assert (stored["lost"], stored["parts"]) == (
        1,
        [["", "m", {"calls": 1, "prompt_tokens": 1, "completion_tokens": 1, "cost_pico": 0, "lost": 1}]],
    )
