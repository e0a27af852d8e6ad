from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.clock import FakeClock
from dspy_stream.errors import StateCorrupt, StateError
from dspy_stream.lm import ScriptedLM
from dspy_stream.state.batch import Batch
from dspy_stream.state.journal import Journal, open_journal
from dspy_stream.state.lru import ByteLRU
from dspy_stream.state.memory_journal import MemoryJournal
from dspy_stream.state.recorder import private_key, row_prefix, run_prefix
from dspy_stream.state.spend import Spend
from dspy_stream.state.store import Store
from dspy_stream.types import Head, Message, Request, Usage


class Counting:
    """A store that counts its writes, and fails when told to."""

    def __init__(self, store: Store) -> None:
        self.store, self.writes, self.failure = store, 0, None
        self.path, self.get, self.scan, self.compact = store.path, store.get, store.scan, store.compact

    def write(self, batch: Batch) -> None:
        self.writes += 1
        if self.failure is not None:
            raise self.failure
        self.store.write(batch)


def put(journal: Journal | MemoryJournal, *pairs: tuple[bytes, bytes]) -> None:
    async def main() -> None:
        await asyncio.gather(*(journal.put(key, value) for key, value in pairs))

    asyncio.run(main())


def test_calls_of_one_turn_share_one_write(store: Store) -> None:
    counting = Counting(store)
    journal = Journal(counting)  # type: ignore[arg-type]
    put(journal, *((b"%d" % n, b"v%d" % n) for n in range(50)))
    assert counting.writes == 1
    assert [journal.get(b"%d" % n) for n in range(50)] == [b"v%d" % n for n in range(50)]
    fresh = Journal(store)
    assert fresh.get(b"49") == b"v49"
    assert fresh.get(b"50") is None


@pytest.mark.parametrize("cache", [True, False], ids=["shared", "private"])
def test_an_answer_that_is_not_at_hand_is_paid_once(store: Store, cache: bool) -> None:
    """Whatever was found a moment before; one larger than the memory, and a private one, never are."""

    async def main() -> None:
        journal = Journal(store, memory_bytes=1000)
        lm = ScriptedLM(["x" * 2000, "paid twice"])
        layer: Any = lm.connect(journal.recorder("run-1"))
        private = None if cache else private_key("run-1", "row", "ask", 0)
        ask = Request(Head("openai/x"), (Message("user", "hi"),), cache=cache, private=private)
        assert layer.peek(ask) is None
        other = lm.connect(journal.recorder("run-1"))  # as that of another flow in the process
        assert [(await by(ask)).text for by in (other, layer, layer)] == ["x" * 2000] * 3
        assert (lm.call_count, journal.spend("run-1").calls) == (1, 1)

    asyncio.run(main())


def test_an_answer_that_expired_between_two_looks_is_asked_for_again(store: Store) -> None:
    async def main() -> None:
        clock = FakeClock()
        journal = Journal(store, ttl=10.0, clock=clock)
        lm = ScriptedLM(["old", "new"])
        layer: Any = lm.connect(journal)
        ask = Request.of("openai/x", "hi")
        assert (await layer(ask)).text == "old"
        clock.advance(10.0)
        assert layer.peek(ask).text == "old"
        clock.advance(0.1)
        assert layer.peek(ask) is None
        assert (await layer(ask)).text == "new"
        assert [(await layer(ask)).text, Journal(store).get(ask.key()) is not None] == ["new", True]
        assert lm.call_count == 2

    asyncio.run(main())


def test_spend_is_written_with_the_answer_and_survives(store: Store) -> None:
    counting = Counting(store)
    recorder = Journal(counting).recorder("run-1")  # type: ignore[arg-type]

    async def main() -> None:
        await asyncio.gather(*(recorder.put(b"%d" % n, b"v", Usage(10, 3, 0.0000015)) for n in range(10)))
        await recorder.put(b"unknown", b"v")

    asyncio.run(main())
    expected = Spend(11, 100, 30, 15_000_000, priced=10)
    assert counting.writes == 2
    assert recorder.spend() == Journal(store).spend("run-1") == expected
    assert expected.cost == pytest.approx(0.000015)
    assert Journal(store).spend("run-2") == Spend()


def test_the_first_answer_stays_and_both_are_paid(store: Store) -> None:
    recorder = Journal(store).recorder("run-1")

    async def main() -> None:
        await asyncio.gather(
            recorder.put(b"k", b"first", Usage(1, 1)), recorder.put(b"k", b"second", Usage(1, 1))
        )
        await recorder.put(b"k", b"third", Usage(1, 1))

    asyncio.run(main())
    assert recorder.get(b"k") == b"first"
    assert Journal(store).get(b"k") == b"first"
    assert recorder.spend().calls == 3


def test_a_failed_write_raises_in_every_waiter_and_counts_nothing(store: Store) -> None:
    counting = Counting(store)
    journal = Journal(counting)  # type: ignore[arg-type]
    counting.failure = StateError("the disk is full")

    async def main() -> list[BaseException | None]:
        puts = (journal.put(b"%d" % n, b"v", Usage(1), run_id="r") for n in range(5))
        return await asyncio.gather(*puts, return_exceptions=True)

    assert [type(result) for result in asyncio.run(main())] == [StateError] * 5
    assert journal.get(b"0") is None
    assert journal.spend("r") == Spend()
    counting.failure = None
    put(journal, (b"0", b"now"))
    assert journal.get(b"0") == b"now"


def test_a_cancelled_caller_does_not_lose_what_was_paid(store: Store) -> None:
    journal = Journal(store)

    async def main() -> None:
        task = asyncio.create_task(journal.put(b"k", b"v", Usage(5), run_id="r"))
        other = asyncio.create_task(journal.put(b"l", b"w"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await other

    asyncio.run(main())
    assert journal.get(b"k") == b"v"
    assert journal.spend("r").prompt_tokens == 5


def test_entries_expire_after_the_ttl(store: Store) -> None:
    clock = FakeClock(1000.0)
    journal = Journal(store, ttl=60, clock=clock)
    put(journal, (b"k", b"old"))
    clock.advance(59)
    assert journal.get(b"k") == b"old"
    clock.advance(2)
    assert journal.get(b"k") is None
    assert Journal(store, ttl=60, clock=clock).get(b"k") is None
    put(journal, (b"k", b"new"))
    assert journal.get(b"k") == b"new"
    assert Journal(store, clock=clock).get(b"k") == b"new"
    clock.advance(-86_400)  # a clock that goes back expires nothing
    assert journal.get(b"k") == b"new"


def test_gc_removes_the_oldest(store: Store) -> None:
    clock = FakeClock(0.0)
    journal = Journal(store, clock=clock)
    for minute in range(10):
        put(journal, *((b"%d/%d" % (minute, n), b"x" * 89) for n in range(10)))  # 100 bytes each
        clock.advance(60)
    assert journal.gc(ttl=8 * 60.0) == (20, 2000)
    assert journal.get(b"1/0") is None
    assert journal.get(b"2/0") is not None
    assert journal.gc(max_bytes=5000) == (30, 3000)
    assert sorted({key[:1] for key, _ in store.scan("journal")}) == [b"5", b"6", b"7", b"8", b"9"]
    assert journal.gc() == (0, 0)
    assert journal.gc(max_bytes=0) == (50, 5000)


def test_private_answers_are_forgotten_by_row_and_by_run(store: Store) -> None:
    for journal in (Journal(store), MemoryJournal()):
        keys = [private_key("r1", row, "answer", n) for row in ("1", "12", "1/2:x") for n in range(100)]
        keys.append(private_key("r2", "1", "answer", 0))
        put(journal, (b"private-looking", b"shared"), *((key, b"v") for key in keys))
        journal.forget([row_prefix("r1", "1"), row_prefix("r1", "none")])
        assert [journal.get(key) for key in keys[:100]] == [None] * 100
        assert [journal.get(key) for key in keys[100:]] == [b"v"] * 201
        journal.forget([run_prefix("r1")])
        assert [journal.get(key) for key in keys[100:300]] == [None] * 200
        assert journal.get(keys[300]) == b"v"
        with pytest.raises(ValueError, match="private"):
            journal.forget([b"private-looking"])
        assert journal.get(b"private-looking") == b"shared"


@given(rows=st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_no_row_prefix_begins_another(rows: list[str]) -> None:
    first, second = (row_prefix("run", row) for row in rows)
    assert not first.startswith(second)
    assert not second.startswith(first)


def test_a_cut_entry_is_damage(store: Store) -> None:
    store.put("journal", b"k", b"1234567")
    with pytest.raises(StateCorrupt, match="cut short"):
        Journal(store).get(b"k")
    with pytest.raises(StateCorrupt, match="cut short"):
        Journal(store).gc(ttl=1)
    store.put("runs", b"spend/r", b'{"calls": -1}')
    with pytest.raises(StateCorrupt, match="totals of run r"):
        Journal(store).spend("r")


def test_the_journal_in_memory_behaves_alike() -> None:
    journal = MemoryJournal()
    recorder = journal.recorder("r")
    asyncio.run(recorder.put(b"k", b"v", Usage(2, 1, 0.5)))
    asyncio.run(recorder.put(b"k", b"w", Usage(2, 1, 0.5)))
    assert journal.get(b"k") == b"v"
    assert recorder.spend() == Spend(2, 4, 2, 10**12, priced=2)


def test_a_journal_of_its_own(folder: Path) -> None:
    journal = open_journal(folder)
    put(journal, (b"k", b"v"))
    journal.close()
    with Store.open(folder) as store:
        assert Journal(store).get(b"k") == b"v"


@given(
    limit=st.integers(0, 3000),
    puts=st.lists(st.tuples(st.binary(max_size=2), st.binary(max_size=600)), max_size=40),
)
def test_the_memory_is_bounded_and_keeps_what_was_used_last(
    limit: int, puts: list[tuple[bytes, bytes]]
) -> None:
    cache, known = ByteLRU(limit), {}
    for key, value in puts:
        cache.put(key, value)
        known[key] = value
        assert cache.size <= limit
        assert cache.get(key) in (value, None)
        if len(key) + len(value) + 200 <= limit:
            assert cache.get(key) == value
    assert all(cache.get(key) in (value, None) for key, value in known.items())
    for key in known:
        cache.drop(key)
    assert (cache.size, len(cache)) == (0, 0)


def test_what_is_read_often_stays_in_memory() -> None:
    cache = ByteLRU(1000)
    for n in range(20):
        cache.put(b"%d" % n, bytes(40))
        assert n == 0 or cache.get(b"0") is not None
        cache.get(b"0")
    assert cache.get(b"1") is None


@given(
    st.lists(
        st.builds(
            Usage,
            st.integers(-(10**30), 10**30),
            st.integers(-5, 10**9),
            st.none() | st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=8,
    )
)
def test_spend_takes_whatever_a_provider_claims(usages: list[Usage]) -> None:
    spend = Spend()
    for usage in usages:
        after = spend.plus(usage)
        assert after.calls == spend.calls + 1
        assert after.prompt_tokens >= spend.prompt_tokens
        assert after.cost_pico >= spend.cost_pico
        spend = after
    assert Spend.from_bytes(spend.to_bytes()) == spend


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}}", b'{"calls":"1"}', b'{"other":1}', b'{"calls":true}', b"1"]
)
def test_damaged_totals_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Spend.from_bytes(data)


CRASH = """
import asyncio, sys
from dspy_stream.state.journal import Journal
from dspy_stream.state.store import Store
from dspy_stream.types import Head, Message, Request, Usage
recorder = Journal(Store.open(sys.argv[1])).recorder("run")
first = int(sys.argv[2])
async def one(n):
    await recorder.put(b"%d" % n, b"answer %d" % n, Usage(1, 0, 0.25))
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
async def main():
    for start in range(first, first + 1_000_000, 7):
        await asyncio.gather(*(one(n) for n in range(start, start + 7)))
asyncio.run(main())
"""


def test_every_acknowledged_answer_survives_kill_9(
    folder: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    rng = random.Random(7)
    acknowledged: set[int] = set()
    for attempt in range(3):
        process = child(CRASH, folder, attempt * 1_000_000)
        assert process.stdout is not None
        for _ in range(rng.randrange(50, 2000)):
            acknowledged.add(int(process.stdout.readline()))
        process.kill()
        acknowledged.update(int(line) for line in process.stdout.read().split("\n")[:-1] if line)
        process.wait()
        with Store.open(folder) as store:
            journal = Journal(store)
            assert [n for n in acknowledged if journal.get(b"%d" % n) != b"answer %d" % n] == []
            stored = sum(1 for _ in store.scan("journal"))
            # Answers and totals are one write: they agree whatever the moment of the kill.
            assert journal.spend("run") == Spend(stored, stored, 0, stored * 250_000_000_000, stored)
            assert len(acknowledged) <= stored <= len(acknowledged) + 7 * (attempt + 1)
