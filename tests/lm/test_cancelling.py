"""Calls that are cancelled: they end, whatever the library under them makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import dspy_stream as ds
from dspy_stream.lm.transport import AiohttpTransport, Endpoint, PyreqwestTransport
from tests.lm.server import ModelServer, Reply, completion


@pytest.fixture(params=[PyreqwestTransport, AiohttpTransport], ids=lambda made: made.__name__)
def transport(request: pytest.FixtureRequest) -> Callable[..., Any]:
    pytest.importorskip("pyreqwest" if request.param is PyreqwestTransport else "aiohttp")
    made: Callable[..., Any] = request.param
    return made


@contextlib.contextmanager
def elsewhere(server: ModelServer) -> Iterator[asyncio.AbstractEventLoop]:
    """The server on the loop of another thread."""
    loop, begun = asyncio.new_event_loop(), threading.Event()
    ended = asyncio.Event()

    async def serve() -> None:
        async with server:
            begun.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert begun.wait(10)
        yield loop
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_cancellation_that_crosses_its_answer_is_obeyed(
    transport: Callable[..., Any], streamed: bool
) -> None:
    """The answer is there before the cancellation, but the loop has had no turn to see it."""
    answered = threading.Event()

    def then(_: object) -> Reply:
        answered.set()
        return Reply(completion("hello"))

    async def go(url: str) -> list[bool]:
        made = transport(use_proxy=False)
        endpoint = Endpoint(url, {}, made)
        ended = []

        async def ask() -> None:
            if streamed:
                await endpoint.stream(b"{}", lambda status, headers: lambda piece: None, deadline=10.0)
            else:
                await endpoint.post(b"{}", deadline=10.0)

        for _ in range(10):
            await ask()  # so that there is a connection
            answered.clear()
            task = asyncio.create_task(ask())
            for _ in range(3):
                await asyncio.sleep(0)
            answered.wait(0.5)
            time.sleep(0.005)  # the loop stands still, and the answer gets as far as it can without it
            if not task.cancel():
                continue  # it was done
            with contextlib.suppress(asyncio.CancelledError):
                await task
            ended.append(task.cancelled())
        await made.aclose()
        assert ended
        return ended

    server = ModelServer(then=then)
    with elsewhere(server):
        assert all(asyncio.run(go(server.url)))


class Deaf(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A transport that goes on, at one moment of an exchange, as if it had not been cancelled."""

    def __init__(self, moment: str, *, fails: bool = False) -> None:
        self.moment, self.fails = moment, fails
        self.there = asyncio.Event()
        self.pieces = [b"hel", b"lo"]
        self.closed = 0

    async def reached(self, moment: str) -> None:
        if moment != self.moment:
            return
        self.there.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.fails:
                raise httpx.ReadError("lost") from None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.reached("head")
        return httpx.Response(200, headers={"Content-Length": "5"}, stream=self)

    def __aiter__(self) -> Deaf:
        return self

    async def __anext__(self) -> bytes:
        if not self.pieces:
            await self.reached("end")
            raise StopAsyncIteration
        await self.reached("body")
        return self.pieces.pop(0)

    async def aclose(self) -> None:
        self.closed += 1
        await self.reached("close")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not say whether it was cancelled")
@pytest.mark.parametrize("fails", [False, True], ids=["goes on", "fails"])
@pytest.mark.parametrize("moment", ["head", "body", "end", "close"])
def test_a_cancellation_that_is_not_passed_on_is_obeyed_at_every_moment(moment: str, fails: bool) -> None:
    async def go() -> None:
        deaf = Deaf(moment, fails=fails)
        endpoint = Endpoint("https://one.example/v1", {}, deaf)
        task = asyncio.create_task(endpoint.post(b"{}", deadline=10.0))
        await deaf.there.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert deaf.closed == (0 if (moment, fails) == ("head", True) else 1)

    asyncio.run(go())


@pytest.mark.timeout(60)
def test_a_row_that_is_given_up_leaves_no_connection_for_long(tmp_path: Path) -> None:
    server = ModelServer(then=lambda _: Reply(silent=True))
    with elsewhere(server) as loop:
        lm = ds.LM("openai/m", api_base=server.url, api_key="sk-test-of-rows", timeout=600, num_retries=0)
        flow = ds.Stream.from_iterable([{"question": "x"}]).through(
            ds.Predict("question -> answer"), timeout=0.2, retries=0
        )
        began = time.monotonic()
        report = flow.write(tmp_path / "out.jsonl", dead_letters=tmp_path / "dead.jsonl").run(
            lm=lm, state=tmp_path / "state", quiet=True
        )
        assert report.dead_letters == 1
        hung_up = asyncio.run_coroutine_threadsafe(asyncio.wait_for(server.hangups.wait(), 20), loop)
        hung_up.result(20)
        assert time.monotonic() - began < 15, "the call's own time is 600 s"
