"""Flows with a batch step: in process, against a server in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dspy_stream as ds
from dspy_stream.errors import FlowError, LMBatchHalted
from dspy_stream.lm import LM
from dspy_stream.lm.batch import BatchOptions
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.state import Store
from dspy_stream.state.batches import Ledger
from dspy_stream.state.verify import gc, inspect, verify
from dspy_stream.types import BatchRecord
from tests.chaos.oracle import answer_to
from tests.lm.batch.server import KEYS, BatchServer

QUICK = BatchOptions(linger=0.05, poll=(0.02, 0.1), doubt=0.2)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    """On a loop of its own; plain attributes are set from here."""
    made = BatchServer(looks=2)
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with made:
            ready.set()
            while not done.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    yield made
    done.set()
    thread.join()


def rows(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "question": f"what is {n}"} for n in range(count)]


def lm(server: BatchServer, **settings: Any) -> LM:
    return LM("openai/gpt-4o-mini", api_base=server.url, api_key=KEYS[0], **settings)


def right(question: str) -> str:
    return answer_to("answer", {"question": question})


def flow(data: list[dict[str, Any]], out: Path, lane: Any = QUICK, **how: Any) -> Any:
    step = ds.Stream.from_iterable(data, name="batched").through(
        ds.Predict("question -> answer"), name="answer", lane=lane, **how
    )
    return step.write(out)


def written(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_same_flow_through_batches(server, tmp_path, provider):
    model = LM(
        {"openai": "openai/gpt-4o-mini", "anthropic": "anthropic/claude-sonnet-4-5"}[provider],
        api_base=server.url,
        api_key=KEYS[0],
        max_tokens=100,
    )
    report = flow(rows(300), tmp_path / "out.jsonl").run(lm=model, state=tmp_path / "state", quiet=True)
    found = written(tmp_path / "out.jsonl")
    assert {row["n"]: row["answer"] for row in found} == {n: right(f"what is {n}") for n in range(300)}
    assert (report.rows_out, report.calls, report.waiting) == (300, 300, ())
    assert sum(server.asked.values()) == 300
    assert len(server.batches) <= 2
    assert inspect(tmp_path / "state").batches == ()
    assert verify(tmp_path / "state").ok


def test_two_calls_a_row_are_two_batches_and_what_cannot_be_read_is_repaired(server, tmp_path):
    data = [*rows(10), {"n": 10, "question": "what is 10 @garbage"}]
    step = (
        ds.Stream.from_iterable(data, name="batched")
        .through(ds.Predict("question -> answer"), lane=QUICK)
        .through(ds.Predict("question, answer -> verdict"), lane=QUICK)
    )
    report = step.write(tmp_path / "out.jsonl").run(lm=lm(server), state=tmp_path / "state", quiet=True)
    assert (report.rows_out, report.dead_letters) == (10, 1)
    wanted = answer_to("verdict", {"question": "what is 3", "answer": right("what is 3")})
    assert next(row for row in written(tmp_path / "out.jsonl") if row["n"] == 3)["verdict"] == wanted


def test_without_a_state_folder_it_works_as_well(server):
    step = ds.Stream.from_iterable(rows(5)).through(ds.Predict("question -> answer"), lane=QUICK)
    assert [row["answer"] for row in step.to_list(lm=lm(server))] == [right(f"what is {n}") for n in range(5)]


def test_a_stop_leaves_the_batch_and_the_next_run_fetches_it(server, tmp_path):
    server.held = True
    out, state = tmp_path / "out.jsonl", tmp_path / "state"

    def watch(job: Any) -> Any:
        def stop() -> None:
            while not any("GET" in call for call in server.calls):
                time.sleep(0.01)
            job.stop(30.0)

        threading.Thread(target=stop, daemon=True).start()
        return lambda: None

    started = time.monotonic()
    report = flow(rows(50), out).run(lm=lm(server), state=state, quiet=True, watch=watch, epoch=0.1)
    assert time.monotonic() - started < 10, "a stop does not wait for a batch"
    assert report.status == "stopped"
    assert report.rows_out == 0
    assert [line.startswith("50 rows wait for batch_0000") for line in report.waiting] == [True]
    (batch,) = inspect(state).batches
    assert (batch.batch_id, batch.phase, batch.requests) == ("batch_0000", "created", 50)
    assert verify(state).ok
    server.held = False
    report = flow(rows(50), out).run(lm=lm(server), state=state, quiet=True)
    assert (report.status, report.rows_out, report.resumed) == ("finished", 50, True)
    assert {row["answer"] for row in written(out)} == {right(f"what is {n}") for n in range(50)}
    assert set(server.asked.values()) == {1}
    assert inspect(state).batches == ()


def test_a_batch_that_is_being_sent_does_not_outlast_the_grace(server, tmp_path):
    from tests.lm.batch.server import Fault

    server.faults.append(Fault("POST /v1/batches", after=True, delay=30))
    out, state, grace = tmp_path / "out.jsonl", tmp_path / "state", 1.0

    def watch(job: Any) -> Any:
        def stop() -> None:
            while "POST /v1/batches" not in server.calls:
                time.sleep(0.01)
            job.stop(grace)
            stopped.append(time.monotonic())

        threading.Thread(target=stop, daemon=True).start()
        return lambda: None

    stopped: list[float] = []
    report = flow(rows(5), out).run(lm=lm(server), state=state, quiet=True, watch=watch, epoch=0.1)
    assert time.monotonic() - stopped[0] < grace + 3.0
    assert report.waiting == ("5 rows: sending a batch",)
    assert flow(rows(5), out).run(lm=lm(server), state=state, quiet=True).rows_out == 5
    assert set(server.asked.values()) == {1}


def test_waiting_longer_than_an_outage_is_none(server, tmp_path):
    server.seconds = 1.5
    report = flow(rows(5), tmp_path / "out.jsonl").run(
        lm=lm(server), state=tmp_path / "state", quiet=True, outage=0.5
    )
    assert report.rows_out == 5


def test_an_outage_ends_the_flow_with_69_and_another_run_goes_on(server, tmp_path):
    from tests.lm.batch.server import Fault

    server.faults.append(Fault("GET", status=503, times=10**9))
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    with pytest.raises(LMBatchHalted) as caught:
        flow(rows(5), out).run(lm=lm(server), state=state, quiet=True, outage=0.5)
    assert caught.value.exit_code == 69
    server.faults.clear()
    assert flow(rows(5), out).run(lm=lm(server), state=state, quiet=True).rows_out == 5
    assert set(server.asked.values()) == {1}


def test_rows_refused_or_given_up_are_dead_letters(server, tmp_path):
    data = [*rows(4), {"n": 4, "question": "bad @400"}, {"n": 5, "question": "never @429"}]
    report = flow(data, tmp_path / "out.jsonl").run(lm=lm(server), state=tmp_path / "state", quiet=True)
    assert (report.rows_out, report.dead_letters) == (4, 2)
    asked = {n for text, n in server.asked.items() if "@429" in text}
    assert asked == {3}


def test_models_without_batches_and_unknown_lanes_are_refused_before_the_start(server, tmp_path):
    with pytest.raises(FlowError, match="no such lane; 'batch' is one"):
        flow(rows(1), tmp_path / "out.jsonl", lane="slow")
    with pytest.raises(FlowError, match="local/nearest has no batch API"):
        flow(rows(1), tmp_path / "out.jsonl", lane="batch").run(
            lm="local/nearest", state=tmp_path / "state", quiet=True
        )
    step = ds.Stream.from_iterable(rows(1)).through(ds.Predict("question -> answer"), lane=QUICK)
    step = step.through(ds.Predict("question -> verdict"), lane="batch")
    with pytest.raises(FlowError, match="share their batches"):
        step.write(tmp_path / "out.jsonl").run(lm=lm(server), state=tmp_path / "state", quiet=True)
    assert not server.calls


def test_the_lane_is_no_part_of_the_program(tmp_path):
    plain = flow(rows(1), tmp_path / "out.jsonl", lane=None)
    assert plain.spec.digest(None) == flow(rows(1), tmp_path / "out.jsonl", lane="batch").spec.digest(None)


def test_a_batch_step_takes_ten_thousand_rows_unless_told_otherwise():
    stream = ds.Stream.from_iterable(rows(1))
    module = ds.Predict("question -> answer")
    capacity = [
        stream.through(module, **how).node.operation.capacity
        for how in ({}, {"lane": "batch"}, {"lane": "batch", "capacity": 7})
    ]
    assert capacity == [128, 10_000, 7]


# ------------------------------------------------------------------------------------------- the ledger


def test_the_ledger_survives_and_is_checked(tmp_path):
    with Store.open(tmp_path / "state") as store:
        ledger = Ledger(store)
        ledger.intend(BatchRecord("b2", "lane", 2.0, 2), [b"\x00\xff", b"private/r/1:x/s/0"])
        ledger.intend(BatchRecord("b1", "lane", 1.0, 1), [b"k"])
        ledger.intend(BatchRecord("b0", "another", 0.0, 1), [b"k"])
        ledger.update(BatchRecord("b2", "lane", 2.0, 2, "created", 2.5, "file-1", "batch_1"))
    with Store.open(tmp_path / "state") as store:
        found = Ledger(store).open("lane")
        assert [(record.id, record.phase, keys) for record, keys in found] == [
            ("b1", "intended", (b"k",)),
            ("b2", "created", (b"\x00\xff", b"private/r/1:x/s/0")),
        ]
    assert verify(tmp_path / "state").ok
    assert [batch["id"] for batch in inspect(tmp_path / "state").to_json()["batches"]] == ["b0", "b1", "b2"]
    with Store.open(tmp_path / "state") as store:
        store.put("runs", b"batch/b1", b'{"id":"b2"}')
        store.put("runs", b"batchkeys/b2", b"[1]")
        store.put("runs", b"batch/b0", b'{"id":"b0","lane":1,"created":0,"requests":1}')
    assert len(verify(tmp_path / "state").problems) == 3


def test_a_folder_without_batches_opens_as_ever_and_gc_forgets_what_no_provider_has(tmp_path):
    now = time.time()
    with Store.open(tmp_path / "state") as store:
        ledger = Ledger(store)
        ledger.intend(BatchRecord("old", "lane", now - 40 * 86400, 1), [b"k"])
        ledger.intend(BatchRecord("new", "lane", now - 20 * 86400, 1), [b"k"])
    gc(tmp_path / "state")
    assert [batch.id for batch in inspect(tmp_path / "state").batches] == ["new"]


def test_answers_of_a_batch_count_as_paid_once(server, tmp_path):
    report = flow(rows(20), tmp_path / "out.jsonl").run(lm=lm(server), state=tmp_path / "state", quiet=True)
    (spend,) = inspect(tmp_path / "state").spend.values()
    assert (spend.calls, spend.prompt_tokens, spend.completion_tokens) == (20, 2000, 400)
    assert report.prompt_tokens == 2000
    assert Counter(server.calls)["POST /v1/batches"] == 1


def test_several_answers_of_a_provider_that_gives_one_go_in_two_batches(server, tmp_path):
    model = LM("anthropic/claude-sonnet-4-5", api_base=server.url, api_key=KEYS[0], max_tokens=100, n=3)
    for _ in range(2):  # the second time from the journal
        report = flow(rows(20), tmp_path / "out.jsonl").run(lm=model, state=tmp_path / "state", quiet=True)
        found = written(tmp_path / "out.jsonl")
        assert {row["n"]: row["answer"] for row in found} == {n: right(f"what is {n}") for n in range(20)}
        assert sum(server.asked.values()) == 60
        assert len(server.batches) == 2
    assert report.calls == 0


# ------------------------------------------------------------------------------------------- the budget


def stopped(server, data, out, state, **limits):
    """A run that is stopped while its batch is at the provider, which then goes on."""
    server.held = True

    def watch(job: Any) -> Any:
        def stop() -> None:
            while not any("GET" in call for call in server.calls):
                time.sleep(0.01)
            job.stop(30.0)

        threading.Thread(target=stop, daemon=True).start()
        return lambda: None

    report = flow(data, out).run(lm=lm(server), state=state, quiet=True, watch=watch, epoch=0.1, **limits)
    server.held = False
    return report


def test_rows_that_wait_for_a_batch_when_the_run_stops_are_not_lost_calls(server, tmp_path):
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    report = stopped(server, rows(20), out, state, max_calls=20)
    assert (report.status, report.calls, report.lost) == ("stopped", 0, 0)
    report = flow(rows(20), out).run(lm=lm(server), state=state, quiet=True, max_calls=20)
    assert (report.status, report.rows_out, report.calls, report.lost) == ("finished", 20, 20, 0)
    assert set(server.asked.values()) == {1}


def test_without_a_state_folder_they_are_since_nothing_remembers_the_batch(server, tmp_path):
    report = stopped(server, rows(20), tmp_path / "out.jsonl", None)
    assert (report.status, report.calls, report.lost) == ("stopped", 0, 20)


@pytest.mark.parametrize(("limits", "sizes"), [({"max_tokens": 50}, [40]), ({}, [1, 39])])
def test_a_budget_of_money_lets_a_batch_go_at_once_where_answers_are_limited(server, tmp_path, limits, sizes):
    report = flow(rows(40), tmp_path / "out.jsonl").run(
        lm=lm(server, **limits), state=tmp_path / "state", quiet=True, max_cost=1.0
    )
    assert report.rows_out == 40
    assert [len(made.lines) for made in server.batches.values()] == sizes


def test_a_budget_of_money_reckons_with_the_price_of_a_batch(server, tmp_path):
    # At the price of single calls only twenty would fit into the first batch.
    prices = {"openai/gpt-4o-mini": ds.Price(1.0, 1.0, batch=0.5)}
    report = flow(rows(40), tmp_path / "out.jsonl").run(
        lm=lm(server, prices=prices, max_tokens=20), state=tmp_path / "state", quiet=True, max_cost=0.0055
    )
    assert (report.rows_out, report.cost) == (40, pytest.approx(40 * 60e-6))
    assert [len(made.lines) for made in server.batches.values()] == [40]


def test_a_run_that_leaves_a_batch_at_the_provider_says_so(server, tmp_path, caplog):
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    stopped(server, rows(5), out, state)
    assert caplog.messages == []
    plain = ScriptedLM({"": {"answer": "x"}}, model="openai/gpt-4o-mini")
    flow(rows(5), out, lane=None).run(lm=plain, state=state, quiet=True, fresh=True)
    (said,) = caplog.messages
    assert said.startswith("batch batch_0000 with 5 requests is at its provider (openai http://127.0.0.1")
    (batch,) = inspect(state).batches
    assert said.endswith(f"state forget-batch FOLDER {batch.id}")
    caplog.clear()
    assert flow(rows(5), out).run(lm=lm(server), state=state, quiet=True, fresh=True).rows_out == 5
    assert not [message for message in caplog.messages if "provider" in message]
    assert inspect(state).batches == ()
