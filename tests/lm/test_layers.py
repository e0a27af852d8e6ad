"""Single flight and cache: who calls, who waits, what is written before it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from dspy_stream.errors import LMAuthError, LMServerError
from dspy_stream.lm import ScriptedLM
from dspy_stream.lm.cache import Cache, DictJournal
from dspy_stream.lm.flight import SingleFlight
from dspy_stream.types import Choice, Head, Message, Request, Response, Usage

ASK = Request.of("openai/x", "hi")
OTHER = Request.of("openai/x", "ho")
PRIVATE = Request(Head("openai/x"), (Message("user", "hi"),), cache=False)


class Slow:
    """A layer whose answers wait until the test lets them go."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[Any]] = []
        self.closed = False

    async def __call__(self, request: Request) -> Response:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.calls.append(future)
        return Response((Choice(await future),), Usage(3, 1))

    async def aclose(self) -> None:
        self.closed = True


def start(layer: Any, *requests: Request) -> list[asyncio.Task[Response]]:
    return [asyncio.ensure_future(layer(request)) for request in requests]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(work: Awaitable[None]) -> None:
    async def go() -> None:
        await work

    asyncio.run(go())


def test_identical_requests_share_one_call() -> None:
    async def go() -> None:
        slow = Slow()
        flight = SingleFlight(slow)
        tasks = start(flight, ASK, ASK, OTHER, ASK)
        await settle()
        assert len(slow.calls) == 2
        for call, text in zip(slow.calls, ("one", "two"), strict=True):
            call.set_result(text)
        answers = await asyncio.gather(*tasks)
        assert [answer.text for answer in answers] == ["one", "one", "two", "one"]
        # Only those who called have paid.
        assert [answer.cached for answer in answers] == [False, True, False, True]

    run(go())


def test_nothing_is_remembered_afterwards() -> None:
    async def go() -> None:
        slow = Slow()
        flight = SingleFlight(slow)
        for text in ("one", "two"):
            (task,) = start(flight, ASK)
            await settle()
            slow.calls[-1].set_result(text)
            assert (await task).text == text
        assert flight._flying == {}

    run(go())


def test_requests_that_must_not_be_shared_are_not() -> None:
    async def go() -> None:
        slow = Slow()
        tasks = start(SingleFlight(slow), PRIVATE, PRIVATE)
        await settle()
        assert len(slow.calls) == 2
        for call in slow.calls:
            call.set_result("x")
        await asyncio.gather(*tasks)

    run(go())


def test_a_failure_is_shared_and_forgotten() -> None:
    async def go() -> None:
        slow = Slow()
        flight = SingleFlight(slow)
        tasks = start(flight, ASK, ASK)
        await settle()
        slow.calls[0].set_exception(LMAuthError("no"))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [LMAuthError, LMAuthError]
        (task,) = start(flight, ASK)
        await settle()
        slow.calls[1].set_result("better")
        assert (await task).text == "better"

    run(go())


def test_a_cancelled_waiter_concerns_nobody_else() -> None:
    async def go() -> None:
        slow = Slow()
        caller, waiter, other = start(SingleFlight(slow), ASK, ASK, ASK)
        await settle()
        waiter.cancel()
        await settle()
        slow.calls[0].set_result("x")
        assert (await caller).text == (await other).text == "x"
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert len(slow.calls) == 1

    run(go())


def test_when_the_caller_is_cancelled_one_waiter_calls_for_all() -> None:
    async def go() -> None:
        slow = Slow()
        caller, first, second = start(SingleFlight(slow), ASK, ASK, ASK)
        await settle()
        caller.cancel()
        await settle()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert len(slow.calls) == 2
        slow.calls[1].set_result("x")
        assert [(await first).text, (await second).text] == ["x", "x"]

    run(go())


class SlowJournal(DictJournal):
    """A journal whose writes wait until the test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[asyncio.Future[None]] = []

    async def put(self, key: bytes, value: bytes, usage: Usage | None = None, model: str = "") -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writes.append(future)
        await future
        await super().put(key, value, usage, model)


def test_an_answer_is_written_before_it_is_used() -> None:
    async def go() -> None:
        journal = SlowJournal()
        layer = ScriptedLM("x").connect(journal)
        first, second = start(layer, ASK, ASK)
        await settle()
        assert len(journal.writes) == 1
        assert not first.done()
        assert not second.done()
        # Nobody can slip in between the answer and its entry, and pay again.
        (third,) = start(layer, ASK)
        await settle()
        journal.writes[0].set_result(None)
        answers = await asyncio.gather(first, second, third)
        assert [answer.cached for answer in answers] == [False, True, True]
        assert len(journal.writes) == 1

    run(go())


def test_a_failed_write_is_a_failed_call() -> None:
    async def go() -> None:
        journal = SlowJournal()
        (task,) = start(ScriptedLM("x").connect(journal), ASK)
        await settle()
        journal.writes[0].set_exception(OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            await task

    run(go())


def test_a_hit_is_marked_and_costs_no_call() -> None:
    async def go() -> None:
        journal = DictJournal()
        lm = ScriptedLM(["x", "y"])
        layer: Any = lm.connect(journal)
        assert layer.peek(ASK) is None
        assert not (await layer(ASK)).cached
        found = layer.peek(ASK)
        assert (found.text, found.cached) == ("x", True)
        assert (await layer(ASK)).cached
        assert (await lm.connect(journal)(ASK)).text == "x"
        assert (await layer(OTHER)).text == "y"
        assert lm.call_count == 2

    run(go())


def test_failures_are_not_kept() -> None:
    async def go() -> None:
        journal = DictJournal()
        layer = ScriptedLM([LMServerError("once"), "x"]).connect(journal)
        with pytest.raises(LMServerError):
            await layer(ASK)
        assert journal.entries == {}
        assert (await layer(ASK)).text == "x"

    run(go())


def test_a_private_answer_is_kept_under_its_own_key_or_not_at_all() -> None:
    async def go() -> None:
        journal = DictJournal()
        layer: Any = ScriptedLM(["a", "b", "c"]).connect(journal)
        assert [(await layer(PRIVATE)).text for _ in range(2)] == ["a", "b"]
        assert journal.entries == {}
        named = Request(PRIVATE.head, PRIVATE.tail, cache=False, private=b"run 1, row 7")
        assert (await layer(named)).text == "c"
        assert (await layer(named)).text == layer.peek(named).text == "c"
        assert list(journal.entries) == [b"run 1, row 7"]
        assert layer.peek(ASK) is None

    run(go())


def test_the_key_is_the_caller_s_to_choose() -> None:
    async def go() -> None:
        journal = DictJournal()
        cache = Cache(ScriptedLM(["a", "b"]).connect(), journal, key_of=lambda request: b"everything")
        assert [(await cache(request)).text for request in (ASK, OTHER)] == ["a", "a"]

    run(go())


def test_closing_reaches_the_bottom() -> None:
    async def go() -> None:
        slow = Slow()
        await SingleFlight(Cache(slow, DictJournal())).aclose()
        assert slow.closed

    run(go())


def test_without_a_journal_there_is_nothing_to_peek_at() -> None:
    layer: Any = ScriptedLM("x").connect()
    assert layer.peek(ASK) is None
