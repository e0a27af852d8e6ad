"""Streamed answers against real servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from dspy_stream.clock import FakeClock, SystemClock
from dspy_stream.errors import (
    LMAuthError,
    LMError,
    LMIncompleteError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)
from dspy_stream.lm import LM
from dspy_stream.lm.transport import AiohttpTransport, Endpoint, PyreqwestTransport
from dspy_stream.runtime import LISTENER, Ask
from dspy_stream.types import Delta, Request, Response
from tests.lm.server import ModelServer, Reply, completion

CANARY = "sk-CANARY-0123456789"
TRANSPORTS: list[Callable[..., Any]] = [PyreqwestTransport, AiohttpTransport]
SSE = (("Content-Type", "text/event-stream"),)


@pytest.fixture(params=TRANSPORTS, ids=lambda made: made.__name__)
def transport(request: pytest.FixtureRequest) -> Callable[..., Any]:
    pytest.importorskip("pyreqwest" if request.param is PyreqwestTransport else "aiohttp")
    made: Callable[..., Any] = request.param
    return made


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    value = {"id": "c-1", "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps({**value, **more}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"
GOOD = b"".join([chunk(""), chunk("Pa"), chunk("ris \u00e9"), chunk(None, "stop"), USAGE, DONE])


def reply(body: bytes = GOOD, **changes: Any) -> Reply:
    return Reply(body, **{"headers": SSE, "framing": "chunked", **changes})


def ask(
    *replies: Reply, timeout: float = 5.0, num_retries: int = 0, clock: Any = None, **options: Any
) -> tuple[Response | LMError, list[Delta], ModelServer, float]:
    """One streamed call through a real LM; its outcome, what was told, the server, the seconds."""

    async def go() -> tuple[Response | LMError, list[Delta], ModelServer, float]:
        async with ModelServer(*replies) as server:
            lm = LM("openai/m", api_base=server.url, api_key=CANARY, timeout=timeout, num_retries=num_retries)
            layer = lm.connect(clock=clock or SystemClock(), rng=random.Random(1))
            told: list[Delta] = []
            token = LISTENER.set(told.append)
            started = time.monotonic()
            try:
                outcome: Response | LMError = await Ask(layer, Request.of("openai/m", "hi", **options))
            except LMError as error:
                outcome = error
            finally:
                LISTENER.reset(token)
                took = time.monotonic() - started
                await layer.aclose()
            return outcome, told, server, took

    return asyncio.run(go())


def texts(told: list[Delta]) -> list[str]:
    return [delta.text if delta.kind == "text" else f"<{delta.kind}>" for delta in told]


def test_tokens_are_told_and_the_response_is_that_of_an_unstreamed_call() -> None:
    outcome, told, server, _ = ask(reply())
    assert isinstance(outcome, Response)
    assert texts(told) == ["Pa", "ris \u00e9"]
    assert outcome.text == "Paris \u00e9"
    assert outcome.choices[0].finish_reason == "stop"
    assert outcome.usage[:2] == (12, 3)
    assert outcome.model == "m-1"
    assert server.seen[0].json["stream"] is True
    assert server.seen[0].headers["accept"] == "text/event-stream"
    assert len(server.seen[0].headers["idempotency-key"]) == 40

    async def whole() -> Response:
        body = completion("Paris \u00e9", id="c-1", model="m-1")
        async with ModelServer(Reply(body)) as unstreamed:
            layer = LM("openai/m", api_base=unstreamed.url, api_key=CANARY).connect()
            try:
                return await layer(Request.of("openai/m", "hi"))
            finally:
                await layer.aclose()

    assert asyncio.run(whole()).to_bytes() == outcome.to_bytes()


@pytest.mark.parametrize("pieces", [3, 40, 10_000])
@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_any_slicing_gives_the_same_answer(framing: str, pieces: int) -> None:
    end = "close" if framing == "close" else "keep"
    outcome, told, _, _ = ask(reply(framing=framing, pieces=pieces, end=end))
    assert isinstance(outcome, Response)
    assert outcome.text == "Paris \u00e9" == "".join(texts(told))


@pytest.mark.parametrize(
    "body",
    [
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"\n", b"\r"),
        GOOD.replace(b"data: ", b"data:"),
        b": hello\n\n" + GOOD.replace(b"data: {", b": ping\n\ndata: {"),
        b"\xef\xbb\xbf" + GOOD,
        b"\n\n" + GOOD,
    ],
    ids=["crlf", "cr", "no space", "comments", "bom", "blank lines"],
)
def test_streams_as_servers_write_them(body: bytes) -> None:
    outcome, told, _, _ = ask(reply(body, pieces=30))
    assert isinstance(outcome, Response)
    assert outcome.text == "Paris \u00e9" == "".join(texts(told))


def test_a_two_megabyte_event_is_read_and_nine_megabytes_are_not() -> None:
    outcome, told, _, _ = ask(reply(b"".join([chunk("x" * 2_000_000), chunk(None, "stop"), DONE])))
    assert isinstance(outcome, Response)
    assert len(outcome.text) == 2_000_000 == len(told[0].text)
    outcome, _, _, _ = ask(reply(chunk("x" * 9_000_000)))
    assert isinstance(outcome, LMProviderError)
    assert not outcome.retryable
    assert "not read on" in str(outcome)


CUT = b"".join([chunk("Pa"), chunk("ris")])


@pytest.mark.parametrize(
    ("served", "kind"),
    [
        (reply(CUT), LMIncompleteError),
        (reply(CUT, framing="close", end="close"), LMIncompleteError),
        (reply(CUT.replace(b"null", b'""')), LMIncompleteError),
        (reply(CUT + chunk("x", "stop")[:-1]), LMIncompleteError),
        (reply(CUT, cut=True, end="close"), LMIncompleteError),
        (reply(CUT, cut=True, end="reset"), LMIncompleteError),
        (reply(CUT + chunk("\u00e9")[:-30], end="reset", cut=True), LMIncompleteError),
        (reply(CUT + b"data: {not json}\n\n" + DONE), LMIncompleteError),
        (reply(CUT + b"data: \xff\xfe\n\n" + DONE), LMIncompleteError),
        (reply(b""), LMIncompleteError),
        (reply(DONE), LMIncompleteError),
        (reply(framing="none", end="reset"), LMTransportError),
        (reply(framing="none", end="close"), LMTransportError),
        (reply(CUT + b'data: {"error": {"message": "overloaded", "code": 503}}\n\n'), LMServerError),
        (
            reply(CUT + b'data: {"object": "error", "message": "overloaded", "code": 503}\n\n' + DONE),
            LMServerError,
        ),
        (reply(CUT + b'data: {"detail": "Internal Server Error"}\n\n' + DONE), LMServerError),
        (reply(b"<html>busy</html>", headers=(("Content-Type", "text/html"),)), LMIncompleteError),
        (reply(b'{"error": "slow down"}', status=429, framing="length"), LMRateLimitError),
        (reply(b"{}", status=401, framing="length"), LMAuthError),
    ],
    ids=[
        *(
            "no end",
            "closed",
            "empty reasons",
            "half event",
            "cut",
            "reset",
            "reset within",
            "no json",
            "no utf-8",
            "empty",
        ),
        *(
            "only done",
            "reset before",
            "closed before",
            "error event",
            "bare error",
            "detail",
            "page",
            "429",
            "401",
        ),
    ],
)
def test_what_is_no_whole_stream_is_never_an_answer(served: Reply, kind: type[LMError]) -> None:
    outcome, told, _, _ = ask(served)
    assert type(outcome) is kind, outcome
    assert outcome.model == "openai/m"
    assert CANARY not in str(outcome)
    assert (texts(told)[-1:] == ["<restart>"]) is bool(told)


def test_a_retry_tells_that_what_came_before_does_not_count() -> None:
    outcome, told, server, _ = ask(
        reply(CUT, end="reset", cut=True), reply(), num_retries=2, clock=FakeClock()
    )
    assert isinstance(outcome, Response)
    assert texts(told) == ["Pa", "ris", "<restart>", "Pa", "ris \u00e9"]
    assert len(server.seen) == 2
    assert server.seen[0].headers["idempotency-key"] == server.seen[1].headers["idempotency-key"]


def test_a_refusal_before_the_first_piece_needs_no_restart() -> None:
    outcome, told, _, _ = ask(reply(b"{}", status=503), reply(), num_retries=2, clock=FakeClock())
    assert isinstance(outcome, Response)
    assert texts(told) == ["Pa", "ris \u00e9"]


def test_a_server_that_knows_no_streams_is_told_in_one_piece() -> None:
    outcome, told, _, _ = ask(Reply(completion("Paris")))
    assert isinstance(outcome, Response)
    assert texts(told) == ["Paris"]


def test_an_answer_that_is_whole_survives_the_end_of_its_connection() -> None:
    for served in (reply(end="reset", cut=True), reply(end="close", cut=True)):
        outcome, told, _, _ = ask(served)
        assert isinstance(outcome, Response)
        assert outcome.text == "Paris \u00e9" == "".join(texts(told))


def test_after_the_last_event_nothing_counts_and_nobody_waits_long() -> None:
    hangs = reply(GOOD, framing="length", declared=100_000)
    outcome, _, _, took = ask(hangs, timeout=60.0)
    assert isinstance(outcome, Response)
    assert outcome.text == "Paris \u00e9"
    assert took < 20
    outcome, told, _, _ = ask(reply(GOOD + chunk("more") + b"data: {no json}\n\n"))
    assert isinstance(outcome, Response)
    assert outcome.text == "Paris \u00e9" == "".join(texts(told))


def test_the_key_is_masked_in_what_is_told_and_what_is_kept() -> None:
    parts = [chunk(f"it is {CANARY}!"), chunk(CANARY[:9]), chunk(CANARY[9:]), chunk(None, "stop"), DONE]
    outcome, told, _, _ = ask(reply(b"".join(parts)))
    assert isinstance(outcome, Response)
    assert CANARY not in outcome.text
    assert CANARY not in told[0].text


def test_many_pieces_at_once_are_told_as_one() -> None:
    words = [f"{number} " for number in range(20)]
    thoughts = b"".join(chunk(word).replace(b"content", b"reasoning_content") for word in words)
    said = b"".join(chunk(word) for word in (*words, CANARY[:9], CANARY[9:]))
    outcome, told, _, _ = ask(reply(thoughts + said + chunk(None, "stop") + DONE))
    assert isinstance(outcome, Response)
    assert "".join(delta.text for delta in told if delta.kind == "reasoning") == "".join(words)
    assert "".join(delta.text for delta in told if delta.kind == "text") == "".join(words) + "***"
    assert len(told) < 10
    assert outcome.text == "".join(words) + "***"


@pytest.mark.parametrize(
    "served",
    [
        reply(b": ping\n\n" * 600, pieces=600, gap=0.1),
        reply(GOOD, pieces=len(GOOD), gap=0.05),
        reply(GOOD, delay=30.0),
        reply(CUT, silent=True),
        reply(b"data: x" * 600, pieces=600, gap=0.1),
    ],
    ids=["comments for ever", "a byte at a time", "slow head", "silence", "a line without end"],
)
def test_the_deadline_bounds_the_whole_stream(served: Reply) -> None:
    outcome, _, _, took = ask(served, timeout=0.6)
    assert isinstance(outcome, LMTimeoutError)
    assert took < 1.1


# ------------------------------------------------------------------ both transports, piece by piece


def test_pieces_arrive_as_they_are_sent(transport: Callable[..., Any]) -> None:
    """Each piece waits for the one before it to have been taken, so nothing can be held back."""

    async def go() -> list[bytes]:
        taken: list[bytes] = []
        turn = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(5):
                turn.clear()
                writer.write(b"1\r\n%d\r\n" % number)
                await turn.wait()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            writer.close()

        def take(piece: bytes) -> None:
            taken.append(piece)
            turn.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        made = transport(use_proxy=False)
        endpoint = Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", {}, made)
        try:
            await endpoint.stream(b"", lambda status, headers: take, deadline=5.0)
        finally:
            await made.aclose()
            server.close()
            await server.wait_closed()
        return taken

    assert asyncio.run(go()) == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(
    ("served", "kind"),
    [
        (reply(CUT, end="reset", cut=True, pieces=2, gap=0.05), LMIncompleteError),
        (reply(CUT, end="close", cut=True), LMIncompleteError),
        (reply(b": ping\n\n" * 100, pieces=100, gap=0.1), LMTimeoutError),
        (reply(b"x" * 300_000), LMProviderError),
    ],
    ids=["reset", "cut", "comments", "too long"],
)
def test_both_transports_fail_alike(
    transport: Callable[..., Any], served: Reply, kind: type[LMError]
) -> None:
    async def go() -> LMError:
        async with ModelServer(served) as server:
            made = transport(use_proxy=False)
            endpoint = Endpoint(server.url, {}, made)
            try:
                await endpoint.stream(
                    b"{}", lambda status, headers: lambda piece: None, deadline=0.7, max_bytes=200_000
                )
            except LMError as error:
                return error
            finally:
                await made.aclose()
            raise AssertionError("no error")

    error = asyncio.run(go())
    assert type(error) is kind, error
    assert "127.0.0.1" in str(error)


def test_connections_are_kept_after_a_stream_and_a_dead_one_is_replaced(
    transport: Callable[..., Any],
) -> None:
    async def go() -> tuple[int, int, list[bytes]]:
        async with ModelServer(reply(), reply(reset_on_next=True), reply()) as server:
            made = transport(use_proxy=False)
            endpoint = Endpoint(server.url, {}, made)
            bodies = []
            for _ in range(3):
                taken: list[bytes] = []
                await endpoint.stream(b"{}", lambda status, headers, t=taken: t.append, deadline=5.0)
                bodies.append(b"".join(taken))
                await asyncio.sleep(0.02)
            await made.aclose()
            return server.connections, len(server.seen), bodies

    connections, seen, bodies = asyncio.run(go())
    assert bodies == [GOOD] * 3
    assert (connections, seen) == (2, 3)


def test_a_cancelled_stream_hangs_up(transport: Callable[..., Any]) -> None:
    async def go() -> None:
        async with ModelServer(reply(pieces=len(GOOD), gap=0.05)) as server:
            made = transport(use_proxy=False)
            endpoint = Endpoint(server.url, {}, made)
            begun = asyncio.Event()
            task = asyncio.ensure_future(
                endpoint.stream(b"{}", lambda status, headers: lambda piece: begun.set(), deadline=30.0)
            )
            await begun.wait()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await asyncio.wait_for(server.hangups.wait(), 5.0)
            await made.aclose()

    asyncio.run(go())


ONE_STREAM = """
import sys
from dspy_stream.lm import LM
from dspy_stream.runtime import LISTENER
told = []
LISTENER.set(told.append)
print(LM("openai/m", api_base=sys.argv[1], api_key="k")("hi"), len(told))
"""


def test_a_process_that_ends_leaves_no_complaint_behind() -> None:
    """Connections that nobody closed are closed with the loop."""

    async def go() -> tuple[bytes, bytes]:
        async with ModelServer(reply()) as server:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-c", ONE_STREAM, server.url),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            return await asyncio.wait_for(process.communicate(), 60.0)

    out, complaints = asyncio.run(go())
    assert out.decode().strip() == "['Paris \u00e9'] 2"
    assert complaints == b""
