"""The batch lane against a real server of both providers: what goes well, and what does not."""

import asyncio
import json
import sys
from collections import Counter

import pytest

from dspy_stream.errors import (
    FlowError,
    LMAuthError,
    LMBatchError,
    LMBatchHalted,
    LMBillingError,
    LMConfigurationError,
    LMInvalidRequestError,
    LMProviderError,
    LMUnsupportedModelError,
)
from dspy_stream.lm import LM, LocalLM, Price
from dspy_stream.lm.batch.lane import BatchLane
from dspy_stream.lm.batch.ledger import MemoryLedger
from dspy_stream.lm.batch.plan import BatchOptions
from dspy_stream.lm.cache import DictJournal
from dspy_stream.types import BatchRecord, Choice, Request, Response, Usage
from tests.lm.batch.server import KEYS, BatchServer, Fault

QUICK = BatchOptions(linger=0.03, age=5, poll=(0.01, 0.05), doubt=0.1)
PRICES = {
    "openai/gpt-4o-mini": Price(1.0, 2.0, batch=0.5),
    "anthropic/claude-sonnet-4-5": Price(1.0, 2.0, batch=0.5),
}
MODELS = {"openai": "openai/gpt-4o-mini", "anthropic": "anthropic/claude-sonnet-4-5"}
both = pytest.mark.parametrize("provider", ["openai", "anthropic"])


class Bench:
    """A server, a journal, a ledger, and lanes that come and go like processes."""

    def __init__(self, provider="openai", options=QUICK, outage=5.0, **server):
        self.model_name = MODELS[provider]
        self.server = BatchServer(**server)
        self.journal = CountingJournal()
        self.ledger = MemoryLedger()
        self.options = options
        self.outage = outage
        self.layers = []

    async def __aenter__(self):
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *_):
        await self.close()
        await self.server.__aexit__()

    @property
    def model(self):
        return LM(self.model_name, api_base=self.server.url, api_key=KEYS[0], prices=PRICES, max_tokens=50)

    def start(self):
        """A new process: nothing is left but journal and ledger."""
        self.lane = BatchLane(self.journal, self.ledger, self.options, outage=self.outage)
        layer = self.model.connect(self.journal, lane=self.lane)
        self.layers.append(layer)
        return layer

    async def close(self):
        while self.layers:
            await self.layers.pop().aclose()

    def request(self, text, **options):
        return Request.of(self.model_name, text, max_tokens=50, **options)

    async def ask(self, layer, texts, **options):
        asked = (layer(self.request(text, **options)) for text in texts)
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)


class CountingJournal(DictJournal):
    __slots__ = ("paid",)

    def __init__(self):
        super().__init__()
        self.paid = Counter()

    async def put(self, key, value, usage=None, model=""):
        await super().put(key, value, usage, model)
        if usage is not None and usage.prompt_tokens:
            self.paid[key] += 1


async def until(true, what):
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"not in time: {what}")


def run(test):
    asyncio.run(asyncio.wait_for(test(), 60))


TEXTS = [f"question {n}" for n in range(40)]


@both
def test_many_requests_are_one_batch_and_every_answer_is_its_own(provider):
    async def test():
        async with Bench(provider, looks=3) as bench:
            answers = await bench.ask(bench.start(), TEXTS)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS]
            assert len(bench.server.batches) == 1
            assert bench.server.asked == Counter(TEXTS)
            assert all(not answer.cached for answer in answers)
            assert answers[0].usage.cost == pytest.approx((100 * 0.5 + 20 * 1.0) / 1e6)
            await until(lambda: not bench.ledger.entries, "the ledger is empty again")
            assert len(bench.journal.entries) == 40
            assert set(bench.journal.paid.values()) == {1}

    run(test)


def test_the_log_tells_when_a_batch_begins_and_ends(caplog):
    async def test():
        async with Bench() as bench:
            with caplog.at_level("INFO", "dspy_stream"):
                await bench.ask(bench.start(), TEXTS)
            assert caplog.messages == [
                "batch batch_0000 with 40 requests is at the provider",
                "batch batch_0000 has ended: completed, 40 of 40",
            ]

    run(test)


def test_the_key_goes_to_the_server_alone_and_every_call_has_it():
    async def test():
        async with Bench() as bench:
            await bench.ask(bench.start(), TEXTS[:2])
            assert all(head["authorization"] == f"Bearer {KEYS[0]}" for head in bench.server.heads)
            entries = json.dumps([str(entry) for entry in bench.ledger.entries.values()])
            assert KEYS[0] not in entries

    run(test)


@both
def test_the_same_question_is_in_a_batch_once(provider):
    async def test():
        async with Bench(provider) as bench:
            answers = await bench.ask(bench.start(), ["one"] * 20)
            assert {answer.text for answer in answers} == {"echo: one"}
            assert bench.server.asked == Counter({"one": 1})
            assert sorted(answer.cached for answer in answers) == [False] + [True] * 19

    run(test)


def test_answers_that_are_not_shared_are_asked_for_each():
    async def test():
        async with Bench() as bench:
            layer = bench.start()
            requests = [
                Request(bench.request("one").head, bench.request("one").tail, None, False, b"private/%d" % n)
                for n in range(3)
            ]
            await asyncio.gather(*(layer(request) for request in requests))
            assert bench.server.asked == Counter({"one": 3})
            assert set(bench.journal.entries) == {b"private/0", b"private/1", b"private/2"}

    run(test)


def test_a_full_batch_goes_at_once_and_sizes_hold():
    async def test():
        async with Bench(options=BatchOptions(linger=0.05, poll=(0.01, 0.05), max_requests=15)) as bench:
            await bench.ask(bench.start(), TEXTS)
            assert [len(made.lines) for made in bench.server.batches.values()] == [15, 15, 10]

    run(test)


@both
@pytest.mark.parametrize("order", ["@429-once", "@500-once", "@expired-once", "@missing-once"])
def test_what_may_pass_is_tried_again_in_a_later_batch(provider, order):
    async def test():
        async with Bench(provider) as bench:
            texts = [*TEXTS[:5], f"this one {order}"]
            answers = await bench.ask(bench.start(), texts)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in texts]
            assert bench.server.asked == Counter({**dict.fromkeys(TEXTS[:5], 1), texts[5]: 2})
            assert [len(made.lines) for made in bench.server.batches.values()] == [6, 1]

    run(test)


@both
@pytest.mark.parametrize("order", ["@429", "@missing"])
def test_what_does_not_pass_ends_as_an_error_of_its_own_row(provider, order):
    async def test():
        async with Bench(provider) as bench:
            *good, bad = await bench.ask(bench.start(), [*TEXTS[:3], f"never {order}"])
            assert [answer.text for answer in good] == [f"echo: {text}" for text in TEXTS[:3]]
            assert isinstance(bad, LMBatchError)
            assert str(bad).startswith("failed in 3 batches, in the last one with: ")
            assert (bad.scope, bad.retryable, bad.model) == ("row", False, bench.model_name)
            assert bench.server.asked[f"never {order}"] == 3

    run(test)


@both
def test_a_request_that_is_refused_is_not_sent_again(provider):
    async def test():
        async with Bench(provider) as bench:
            good, bad = await bench.ask(bench.start(), ["fine", "bad @400"])
            assert good.text == "echo: fine"
            assert isinstance(bad, LMInvalidRequestError)
            assert "400" in str(bad)
            assert "told to" in str(bad)
            assert bench.server.asked["bad @400"] == 1

    run(test)


@both
def test_an_answer_that_no_json_may_hold_is_an_error_of_its_row_and_paid_once(provider, monkeypatch):
    from tests.lm.batch import server

    content = server._content
    monkeypatch.setattr(server, "_content", lambda line: content(line).replace("half", "\ud83d"))

    async def test():
        async with Bench(provider) as bench:
            good, bad = await bench.ask(bench.start(), ["fine", "half"])
            assert good.text == "echo: fine"
            assert isinstance(bad, LMProviderError)
            assert "the answer is whole, but no valid JSON" in str(bad)
            assert bench.server.asked == Counter(["fine", "half"])

    run(test)


def test_an_expired_batch_keeps_what_was_done_and_the_rest_goes_again():
    async def test():
        async with Bench() as bench:
            bench.server.fate = lambda number: "expired" if number == 0 else "completed"
            answers = await bench.ask(bench.start(), TEXTS)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS]
            assert [len(made.lines) for made in bench.server.batches.values()] == [40, 39]
            assert set(bench.journal.paid.values()) == {1}

    run(test)


@both
def test_a_cancelled_batch_stops_the_flow_after_its_answers_are_safe(provider):
    async def test():
        async with Bench(provider) as bench:
            bench.server.fate = lambda _number: "cancelled"
            layer = bench.start()
            answers = await bench.ask(layer, TEXTS)
            assert answers[0].text == "echo: question 0"
            assert all(isinstance(error, LMBatchHalted) for error in answers[1:])
            assert "was cancelled at the provider" in str(answers[1])
            await until(lambda: not bench.ledger.entries, "the batch is forgotten")
            assert bench.journal.get(bench.request("question 0").key()) is not None

    run(test)


def test_a_refused_line_is_blamed_and_the_others_are_sent_again():
    async def test():
        async with Bench() as bench:
            bench.server.fate = lambda number: "failed:invalid_json_line:2" if number == 0 else "completed"
            one, two, three = await bench.ask(bench.start(), ["one", "two", "three"])
            assert (one.text, three.text) == ("echo: one", "echo: three")
            assert isinstance(two, LMInvalidRequestError)
            assert [len(made.lines) for made in bench.server.batches.values()] == [3, 2]

    run(test)


def test_a_batch_that_fails_as_a_whole_is_tried_again_and_given_up_in_the_end():
    async def test():
        async with Bench() as bench:
            bench.server.fate = lambda number: "failed:strange" if number == 0 else "completed"
            layer = bench.start()
            answers = await bench.ask(layer, TEXTS[:3])
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS[:3]]
            bench.server.fate = lambda _number: "failed:strange"
            errors = await bench.ask(layer, ["more", "yet more"])
            assert all(isinstance(error, LMBatchError) for error in errors)
            assert len(bench.server.batches) == 5

    run(test)


def test_a_batch_that_failed_for_money_stops_the_flow():
    async def test():
        async with Bench() as bench:
            bench.server.fate = lambda _number: "failed:billing_hard_limit_reached"
            (error,) = await bench.ask(bench.start(), ["one"])
            assert isinstance(error, LMBillingError)
            assert error.scope == "flow"

    run(test)


def test_where_the_account_has_no_room_batches_become_smaller():
    async def test():
        async with Bench(options=BatchOptions(linger=0.02, poll=(0.001, 0.02))) as bench:
            bench.server.most_lines = 12
            answers = await bench.ask(bench.start(), TEXTS)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS]
            sizes = [len(made.lines) for made in bench.server.batches.values() if made.fate == "completed"]
            assert sizes == [10, 10, 10, 10]

    run(test)


def test_a_batch_that_is_too_large_to_be_taken_is_split():
    async def test():
        async with Bench("anthropic") as bench:
            bench.server.most_lines = 11
            answers = await bench.ask(bench.start(), TEXTS)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS]
            assert bench.server.asked == Counter(TEXTS)

    run(test)


CALLS = {
    "openai": ["POST /v1/files", "POST /v1/batches", "GET /v1/batches/", "GET /v1/files/.*content"],
    "anthropic": ["POST /v1/messages/batches", r"GET /v1/messages/batches/\w+$", "GET .*/results"],
}


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": (("retry-after-ms", "20"),)},
        {"status": 500},
        {"status": 503, "times": 3},
        {"reset": True},
        {"reset": True, "after": True},
        {"status": 500, "after": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("call", [call for calls in CALLS.values() for call in calls])
def test_every_call_may_fail_and_nothing_is_sent_twice(call, fault):
    provider = "openai" if call in CALLS["openai"] else "anthropic"

    async def test():
        async with Bench(provider) as bench:
            bench.server.faults.append(Fault(f"{call}", **fault))
            answers = await bench.ask(bench.start(), TEXTS[:6])
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS[:6]]
            assert bench.server.asked == Counter(TEXTS[:6])
            assert set(bench.journal.paid.values()) == {1}

    run(test)


def test_an_upload_that_is_cut_is_made_again():
    async def test():
        async with Bench() as bench:
            bench.server.faults.append(Fault("POST /v1/files", cut=300, times=2))
            answers = await bench.ask(bench.start(), TEXTS)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS]
            assert len(bench.server.files) == 2, "the input, once, and the output"

    run(test)


@both
@pytest.mark.parametrize("size", [10, 700, 2500])
def test_results_that_are_cut_are_fetched_again_and_paid_once(provider, size):
    async def test():
        async with Bench(provider) as bench:
            bench.server.faults.append(Fault("GET .*(content|results)$", cut=size, times=3))
            answers = await bench.ask(bench.start(), TEXTS)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS]
            assert bench.server.asked == Counter(TEXTS)
            assert set(bench.journal.paid.values()) == {1}

    run(test)


def test_an_account_with_hundreds_of_batches_is_searched_page_by_page():
    async def test():
        async with Bench() as bench:
            bench.server.faults.append(Fault("POST /v1/batches", after=True, delay=0.3))
            layer = bench.start()
            asked = asyncio.create_task(bench.ask(layer, TEXTS[:3]))
            await until(lambda: bench.server.batches, "created")
            for _ in range(250):
                bench.server._make("batch_", [], {"other": "yes"})
            answers = await asked
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS[:3]]
            assert bench.server.calls.count("GET /v1/batches") >= 3
            assert bench.server.asked == Counter(TEXTS[:3])

    run(test)


def test_somebody_elses_batch_of_the_same_size_is_not_taken_for_ours():
    async def test():
        async with Bench("anthropic") as bench:
            bench.server.faults.append(Fault("POST .*batches", status=500))  # and nothing was created
            layer = bench.start()
            other = {"model": "claude-x", "messages": [{"role": "user", "content": "theirs"}]}
            lines = [{"custom_id": f"theirs-{n}", "params": other} for n in range(3)]
            bench.server._create_anthropic({"requests": lines})
            answers = await bench.ask(layer, TEXTS[:3])
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS[:3]]
            assert bench.server.asked == Counter([*TEXTS[:3], *["theirs"] * 3])

    run(test)


@both
def test_an_outage_that_is_too_long_stops_the_flow_and_the_batch_is_kept(provider):
    async def test():
        async with Bench(provider, outage=0.3) as bench:
            layer = bench.start()
            bench.server.held = True
            asked = asyncio.create_task(bench.ask(layer, TEXTS[:3]))
            await until(lambda: any("GET" in call for call in bench.server.calls), "looked at")
            bench.server.faults.append(Fault("GET", status=503, times=10**9))
            errors = await asked
            assert all(isinstance(error, LMBatchHalted) for error in errors)
            assert "has not answered for" in str(errors[0])
            assert errors[0].exit_code == 69
            (more,) = await bench.ask(layer, ["one more"])
            assert isinstance(more, LMBatchHalted)
            await bench.close()
            bench.server.faults.clear()
            bench.server.held = False
            answers = await bench.ask(bench.start(), TEXTS[:3])
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS[:3]]
            assert bench.server.asked == Counter(TEXTS[:3])

    run(test)


@both
def test_a_wrong_key_stops_the_flow_at_once(provider):
    async def test():
        async with Bench(provider) as bench:
            model = LM(bench.model_name, api_base=bench.server.url, api_key="sk-wrong-key-0123456789")
            layer = model.connect(bench.journal, lane=BatchLane(bench.journal, bench.ledger, QUICK))
            (error,) = await bench.ask(layer, ["one"])
            assert isinstance(error, LMAuthError)
            assert error.exit_code == 78
            await until(lambda: not bench.ledger.entries, "nothing was created")
            await layer.aclose()

    run(test)


def test_a_server_without_a_batch_api_is_said_to_have_none():
    async def test():
        async with Bench() as bench:
            model = LM(bench.model_name, api_base=f"{bench.server.url}/nowhere", api_key=KEYS[0])
            layer = model.connect(bench.journal, lane=BatchLane(bench.journal, bench.ledger, QUICK))
            (error,) = await bench.ask(layer, ["one"])
            assert isinstance(error, LMUnsupportedModelError)
            assert "there is no batch API at 127.0.0.1/files" in str(error)
            await layer.aclose()

    run(test)


@both
def test_over_the_other_transport(provider, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setitem(sys.modules, "pyreqwest", None)  # as on Python 3.10

    async def test():
        async with Bench(provider) as bench:
            bench.server.faults.append(Fault("GET .*(content|results)$", cut=700))
            answers = await bench.ask(bench.start(), TEXTS)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS]
            assert bench.server.asked == Counter(TEXTS)

    run(test)


# ----------------------------------------------------------------------------------- across processes


@both
def test_rows_that_come_again_wait_for_the_batch_they_are_in(provider):
    async def test():
        async with Bench(provider) as bench:
            bench.server.held = True
            first = asyncio.create_task(bench.ask(bench.start(), TEXTS))
            await until(lambda: any("GET" in call for call in bench.server.calls), "looked at")
            assert [wait.rows for wait in bench.lane.waiting()] == [40]
            assert "40 rows wait for" in str(bench.lane.waiting()[0])
            first.cancel()
            await bench.close()
            assert "40 rows wait for" in str(bench.lane.waiting()[0])
            assert len(bench.ledger.entries) == 1
            bench.server.held = False
            answers = await bench.ask(bench.start(), [*TEXTS, "a new one"])
            assert [answer.text for answer in answers[:40]] == [f"echo: {text}" for text in TEXTS]
            assert answers[40].text == "echo: a new one"
            assert bench.server.asked == Counter([*TEXTS, "a new one"])
            assert set(bench.journal.paid.values()) == {1}

    run(test)


@both
def test_answers_nobody_waits_for_any_more_are_kept(provider):
    async def test():
        async with Bench(provider) as bench:
            bench.server.held = True
            first = asyncio.create_task(bench.ask(bench.start(), TEXTS))
            await until(lambda: any("GET" in call for call in bench.server.calls), "looked at")
            first.cancel()
            await bench.close()
            bench.server.held = False
            layer = bench.start()
            await bench.ask(layer, ["another"])
            await until(lambda: len(bench.journal.entries) == 41, "all answers are kept")
            await until(lambda: not bench.ledger.entries, "the batch is forgotten")
            answers = await bench.ask(layer, TEXTS)
            assert all(answer.cached for answer in answers)
            assert bench.server.asked == Counter([*TEXTS, "another"])
            assert set(bench.journal.paid.values()) == {1}

    run(test)


def test_what_is_in_the_journal_already_is_not_counted_again():
    async def test():
        async with Bench() as bench:
            bench.server.held = True
            first = asyncio.create_task(bench.ask(bench.start(), TEXTS))
            await until(lambda: any("GET" in call for call in bench.server.calls), "looked at")
            first.cancel()
            await bench.close()
            # As if the process had died while it fetched: half of the answers were journaled.
            half = {bench.request(text).key(): text for text in TEXTS[:20]}
            for key, text in half.items():
                response = Response((Choice(f"echo: {text}"),), Usage(100, 20))
                await bench.journal.put(key, response.to_bytes(), response.usage)
            bench.server.held = False
            answers = await bench.ask(bench.start(), [TEXTS[30]])
            assert answers[0].text == "echo: question 30"
            await until(lambda: not bench.ledger.entries, "the batch is forgotten")
            assert bench.journal.paid == Counter(bench.request(text).key() for text in TEXTS)

    run(test)


def test_a_row_that_gave_up_does_not_lose_its_answer():
    async def test():
        async with Bench() as bench:
            layer = bench.start()
            bench.server.held = True
            asked = [asyncio.create_task(layer(bench.request(text))) for text in TEXTS[:4]]
            await until(lambda: any("GET" in call for call in bench.server.calls), "looked at")
            asked[0].cancel()
            bench.server.held = False
            await asyncio.gather(*asked[1:])
            await until(lambda: not bench.ledger.entries, "the batch is forgotten")
            assert bench.journal.get(bench.request(TEXTS[0]).key()) is not None
            again = await layer(bench.request(TEXTS[0]))
            assert (again.cached, again.usage.total_tokens) == (True, 120), "a budget above learns from it"

    run(test)


def test_a_row_that_gives_up_before_its_batch_is_sent_is_not_in_it():
    async def test():
        async with Bench() as bench:
            layer = bench.start()
            asked = [asyncio.create_task(layer(bench.request(text))) for text in TEXTS[:4]]
            await asyncio.sleep(0)
            asked[0].cancel()
            await asyncio.gather(*asked[1:])
            assert bench.server.asked == Counter(TEXTS[1:4])

    run(test)


def test_what_was_only_intended_is_sent_by_the_next_process():
    async def test():
        async with Bench() as bench:
            layer = bench.start()
            name = next(iter(bench.lane._layers))
            record = BatchRecord("0001-a", name, 0.0, 1)
            bench.ledger.intend(record, [bench.request("one").key()])
            (answer,) = await bench.ask(layer, ["one"])
            assert answer.text == "echo: one"
            assert bench.server.asked == Counter({"one": 1})
            await until(lambda: not bench.ledger.entries, "both are forgotten")

    run(test)


@both
@pytest.mark.parametrize("created", [True, False])
def test_a_call_of_unknown_fate_is_cleared_up_by_the_next_process(provider, created):
    async def test():
        async with Bench(provider) as bench:
            bench.server.held = True
            first = asyncio.create_task(bench.ask(bench.start(), TEXTS))
            await until(lambda: any("GET" in call for call in bench.server.calls), "looked at")
            first.cancel()
            await bench.close()
            ((record, _),) = bench.ledger.entries.values()
            bench.ledger.update(record._replace(phase="creating", batch_id=None))
            if not created:
                bench.server.batches.clear()
                bench.server.asked.clear()
            bench.server.held = False
            answers = await bench.ask(bench.start(), TEXTS)
            assert [answer.text for answer in answers] == [f"echo: {text}" for text in TEXTS]
            assert bench.server.asked == Counter(TEXTS)
            assert len(bench.server.batches) == 1

    run(test)


def test_a_batch_of_another_account_is_not_paid_again():
    async def test():
        async with Bench() as bench:
            bench.server.held = True
            first = asyncio.create_task(bench.ask(bench.start(), TEXTS[:2]))
            await until(lambda: any("GET" in call for call in bench.server.calls), "looked at")
            first.cancel()
            await bench.close()
            bench.server.batches.clear()
            errors = await bench.ask(bench.start(), TEXTS[:2])
            assert all(isinstance(error, LMBatchHalted) for error in errors)
            assert "is not known to the account of this key" in str(errors[0])
            assert "forget-batch" in str(errors[0])
            assert len(bench.ledger.entries) == 1

    run(test)


def test_a_batch_too_old_to_have_results_is_sent_again():
    async def test():
        async with Bench() as bench:
            layer = bench.start()
            name = next(iter(bench.lane._layers))
            record = BatchRecord("0001-a", name, 0.0, 1, "created", 0.0, "file-1", "batch_of_long_ago")
            bench.ledger.intend(record, [bench.request("one").key()])
            (answer,) = await bench.ask(layer, ["one"])
            assert answer.text == "echo: one"

    run(test)


def test_a_ledger_that_cannot_be_written_is_told_to_the_rows():
    async def test():
        async with Bench() as bench:
            layer = bench.start()

            def full(*_):
                raise OSError("no space")

            bench.ledger.intend = full
            errors = await bench.ask(layer, TEXTS[:3])
            assert [str(error) for error in errors] == ["no space"] * 3
            assert not bench.server.calls

    run(test)


# ------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "model",
    [
        LocalLM("local/nearest"),
        LM("local/nearest"),
        LM("hosted_vllm/m", api_base="http://127.0.0.1:1/v1"),
        LM("any", api_base="http://127.0.0.1:1/v1"),
    ],
    ids=str,
)
def test_models_without_a_batch_api_are_refused(model):
    with pytest.raises(FlowError, match="has no batch API"):
        model.connect(DictJournal(), lane=BatchLane(DictJournal()))


def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LMConfigurationError, match="OPENAI_API_KEY"):
        LM("openai/gpt-4o-mini").connect(DictJournal(), lane=BatchLane(DictJournal()))


def test_models_that_differ_in_options_share_their_batches_and_two_accounts_do_not():
    lane = BatchLane(DictJournal())
    base = "http://127.0.0.1:1/v1"
    one = lane(LM("openai/m", api_base=base, api_key=KEYS[0]))
    assert lane(LM("openai/m", api_base=base, api_key=KEYS[0], temperature=1.0)) is one
    assert lane(LM("openai/other", api_base=base, api_key=KEYS[0])) is not one
    with pytest.raises(FlowError, match="two API keys"):
        lane(LM("openai/m", api_base=base, api_key=KEYS[1]))
