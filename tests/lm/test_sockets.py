"""The transport against a real server that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dspy_stream import runtime
from dspy_stream.clock import FakeClock
from dspy_stream.errors import (
    LMConfigurationError,
    LMError,
    LMIncompleteError,
    LMProviderError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)
from dspy_stream.lm import LM
from dspy_stream.lm.transport import AiohttpTransport, Endpoint, PyreqwestTransport
from dspy_stream.types import Request, Response
from tests.lm.server import ModelServer, Reply, bomb, completion

CANARY = "sk-CANARY-0123456789"
TRANSPORTS: list[Callable[..., Any]] = [PyreqwestTransport, AiohttpTransport]


@pytest.fixture(params=TRANSPORTS, ids=lambda made: made.__name__)
def transport(request: pytest.FixtureRequest) -> Callable[..., Any]:
    pytest.importorskip("pyreqwest" if request.param is PyreqwestTransport else "aiohttp")
    made: Callable[..., Any] = request.param
    return made


def post(
    transport: Callable[..., Any], *replies: Reply, times: int = 1, pause: float = 0.0, **options: Any
) -> tuple[list[Any], ModelServer, float]:
    """Post ``times`` requests one after the other; answers or errors, the server, the seconds it took."""
    options.setdefault("deadline", 5.0)

    async def go() -> tuple[list[Any], ModelServer, float]:
        async with ModelServer(*replies) as server:
            made = transport(use_proxy=False)
            endpoint = Endpoint(server.url + "/chat/completions?version=SECRET-QUERY", {"A": "b"}, made)
            results: list[Any] = []
            started = time.monotonic()
            try:
                for _ in range(times):
                    try:
                        results.append(await endpoint.post(b"{}", **options))
                    except LMError as error:
                        results.append(error)
                    await asyncio.sleep(pause)
                took = time.monotonic() - started
            finally:
                await made.aclose()
            return results, server, took

    return asyncio.run(go())


def test_a_good_answer_comes_back_whole(transport: Callable[..., Any]) -> None:
    body = completion("x" * 300_000)
    for framing in ("length", "chunked", "close"):
        reply = Reply(body, headers=(("X-Request-Id", "r-1"),), framing=framing, pieces=7, end="close")  # type: ignore[arg-type]
        (answer,), server, _ = post(transport, reply, idempotency_key="abc")
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers.get("x-request-id") == "r-1"
        assert server.seen[0].body == b"{}"
        assert server.seen[0].headers["idempotency-key"] == "abc"
        assert server.seen[0].headers["a"] == "b"
        assert "cookie" not in server.seen[0].headers


def test_connections_are_kept_whatever_the_end_of_a_body_is_told_by(transport: Callable[..., Any]) -> None:
    replies = [
        Reply(),
        Reply(b""),
        Reply(b"", status=204, framing="length"),
        Reply(framing="chunked"),
        Reply(b"", framing="chunked"),
        Reply(headers=(("Content-Encoding", "identity"),)),
        Reply(b"x" * 300_000, pieces=3),
        Reply(status=500),
    ]
    answers, server, _ = post(transport, *replies, *replies, Reply(), times=17, pause=0.01)
    assert [answer.status for answer in answers] == [reply.status for reply in (*replies, *replies, Reply())]
    assert [answer.body for answer in answers[:8]] == [reply.body for reply in replies]
    assert server.connections == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(declared=10_000, end="close"), LMIncompleteError),
        (Reply(framing="chunked", cut=True, end="close"), LMIncompleteError),
        (Reply(declared=10_000, end="reset"), LMIncompleteError),
        (Reply(framing="none", end="reset"), LMTransportError),
        (Reply(framing="none", end="close"), LMTransportError),
        (Reply(b"\x1f\x8b\x08nonsense", headers=(("Content-Encoding", "gzip"),)), LMTransportError),
    ],
    ids=["length", "chunked", "reset mid body", "reset before", "closed before", "broken gzip"],
)
def test_a_cut_answer_is_an_error_that_may_be_retried(
    transport: Callable[..., Any], reply: Reply, kind: type[LMError]
) -> None:
    (error,), server, _ = post(transport, reply)
    assert isinstance(error, kind)
    assert error.retryable
    assert f"127.0.0.1:{server.port}" in str(error)
    assert "answer" in str(error)
    assert "SECRET-QUERY" not in str(error)
    assert len(server.seen) == 1


def test_a_refused_connection_says_where_and_when(transport: Callable[..., Any]) -> None:
    async def go() -> LMError:
        made = transport(use_proxy=False)
        try:
            await Endpoint("http://127.0.0.1:1/v1", {}, made).post(b"{}", deadline=5.0)
        except LMError as error:
            return error
        finally:
            await made.aclose()
        raise AssertionError("no error")

    error = asyncio.run(go())
    assert type(error) is LMTransportError
    assert "127.0.0.1:1, connecting" in str(error)
    assert "refused" in str(error).lower() or "connect call failed" in str(error).lower()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(silent=True),
        Reply(delay=30.0),
        Reply(framing="chunked", pieces=60, gap=0.1),
        Reply(completion("x" * 200_000), framing="chunked", pieces=60, gap=0.1),
    ],
    ids=["silence", "slow head", "slow small body", "slow large body"],
)
def test_the_deadline_bounds_the_whole_exchange(transport: Callable[..., Any], reply: Reply) -> None:
    (error,), server, took = post(transport, reply, deadline=0.4)
    assert isinstance(error, LMTimeoutError)
    assert 0.3 < took < 0.9
    assert "0.4 s" in str(error)
    assert f"127.0.0.1:{server.port}" in str(error)


def test_a_long_answer_is_not_read_on(transport: Callable[..., Any]) -> None:
    big = Reply(b"x" * 100_000, framing="chunked", pieces=50)
    for reply in (big, Reply(b"x" * 100_000)):
        (error,), _, _ = post(transport, reply, max_bytes=50_000)
        assert type(error) is LMProviderError
        assert not error.retryable
        assert "50,000 bytes" in str(error)


def test_a_gzip_bomb_is_not_unpacked(transport: Callable[..., Any]) -> None:
    packed = bomb(100_000_000)
    before = _resident()
    (error,), _, _ = post(transport, Reply(packed, headers=(("Content-Encoding", "gzip"),)))
    assert type(error) is LMProviderError
    assert _resident() - before < 50_000_000


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_hundred_thousand_headers_are_an_error(transport: Callable[..., Any]) -> None:
    headers = tuple((f"X-{number}", "y") for number in range(100_000))
    (error,), _, _ = post(transport, Reply(headers=headers))
    # Not every library says that it is the head that was too large.
    assert isinstance(error, (LMProviderError, LMTransportError))


@pytest.mark.parametrize("name", ["gzip", "GZIP"])
def test_packed_answers_are_unpacked(transport: Callable[..., Any], name: str) -> None:
    import gzip

    reply = Reply(gzip.compress(completion()), headers=(("Content-Encoding", name),))
    (answer,), _, _ = post(transport, reply)
    assert answer.body == completion()


@pytest.mark.parametrize("name", ["identity", "utf-8"])
def test_an_encoding_that_packs_nothing_is_read_as_it_is(transport: Callable[..., Any], name: str) -> None:
    (answer,), _, _ = post(transport, Reply(headers=(("Content-Encoding", name),)))
    assert answer.body == completion()


def test_one_long_header_is_no_error(transport: Callable[..., Any]) -> None:
    (answer,), _, _ = post(transport, Reply(headers=(("Content-Security-Policy", "a" * 30_000),)))
    assert answer.body == completion()


def test_a_connection_that_died_in_the_pool_is_replaced_without_a_word(transport: Callable[..., Any]) -> None:
    answers, server, _ = post(transport, Reply(reset_on_next=True), times=2, pause=0.05)
    assert [answer.status for answer in answers] == [200, 200]
    assert server.connections == 2
    answers, server, _ = post(transport, Reply(end="close"), times=2, pause=0.05)
    assert [answer.status for answer in answers] == [200, 200]


def test_a_server_that_always_hangs_up_is_tried_twice_at_most(transport: Callable[..., Any]) -> None:
    dead = Reply(framing="none", end="reset")
    results, server, _ = post(transport, Reply(), dead, dead, dead, times=2)
    assert results[0].status == 200
    assert isinstance(results[1], LMTransportError)
    assert len(server.seen) == 3


def test_a_cancelled_exchange_lets_the_next_one_pass(transport: Callable[..., Any]) -> None:
    async def go() -> int:
        async with ModelServer(Reply(silent=True)) as server:
            made = transport(use_proxy=False)
            endpoint = Endpoint(server.url, {}, made)
            lost = asyncio.ensure_future(endpoint.post(b"{}", deadline=0.5))
            await asyncio.wait_for(server.asked.wait(), 5.0)
            lost.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lost
            status = (await endpoint.post(b"{}", deadline=5.0)).status
            # The server is left at the deadline at the latest.
            await asyncio.wait_for(server.hangups.wait(), 5.0)
            await made.aclose()
            return status

    assert asyncio.run(go()) == 200


# ----------------------------------------------------------------------------- the whole model


def ask(lm: LM, clock: FakeClock | None = None, count: int = 1) -> list[Response]:
    async def go() -> list[Response]:
        layer = lm.connect(clock=clock if clock is not None else FakeClock())
        try:
            request = lm.request("Capital of France?")
            return [await layer(request) for _ in range(count)]
        finally:
            await layer.aclose()

    return asyncio.run(go())


def served(work: Callable[[ModelServer], Any], *replies: Reply, **options: Any) -> tuple[Any, ModelServer]:
    async def go() -> tuple[Any, ModelServer]:
        async with ModelServer(*replies, **options) as server:
            return await work(server), server

    return asyncio.run(go())


async def call(lm: LM, **connect: Any) -> Response | LMError:
    layer = lm.connect(**connect)
    try:
        return await layer(lm.request("Capital of France?"))
    except LMError as error:
        return error
    finally:
        await layer.aclose()


def test_a_call_from_end_to_end() -> None:
    async def work(server: ModelServer) -> Response | LMError:
        lm = LM("openai/gpt-4o-mini", api_base=server.url, api_key=CANARY, temperature=0.0, stop=None)
        return await call(lm)

    answer, server = served(work)
    assert isinstance(answer, Response)
    assert answer.text == "Paris"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 3)
    assert answer.usage.cost == pytest.approx((12 * 0.15 + 3 * 0.6) / 1e6)
    (seen,) = server.seen
    assert seen.head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert seen.headers["authorization"] == f"Bearer {CANARY}"
    assert seen.json == {
        "model": "gpt-4o-mini",
        "temperature": 0.0,
        "messages": [{"role": "user", "content": "Capital of France?"}],
    }


def test_retries_wait_and_carry_the_same_idempotency_key() -> None:
    clock = FakeClock()

    async def work(server: ModelServer) -> Response | LMError:
        return await call(LM("openai/x", api_base=server.url), clock=clock)

    busy = Reply(b'{"error":{"message":"slow down"}}', status=429, headers=(("Retry-After", "7"),))
    answer, server = served(
        work, busy, Reply(framing="none", end="reset"), Reply(b"<html>", framing="close", end="close")
    )
    assert isinstance(answer, Response)
    assert clock.slept[0] == 7.0
    assert len(clock.slept) == 2  # the reset may have been an old connection: tried again at once
    keys = {seen.headers["idempotency-key"] for seen in server.seen}
    assert len(server.seen) == 4
    assert len(keys) == 1


def test_an_answer_that_is_kept_nowhere_is_asked_for_under_a_name_of_its_own_call() -> None:
    """A provider that keeps the names must not give one call the answer to another."""

    async def work(server: ModelServer) -> list[Response | LMError]:
        lm = LM("openai/x", api_base=server.url, cache=False)
        request = lm.request("Capital of France?")
        clock = FakeClock()
        layer = lm.connect(clock=clock)
        try:
            return [await layer(request) for _ in range(2)]
        finally:
            await layer.aclose()

    busy = Reply(b'{"error":{"message":"slow down"}}', status=429)
    _, server = served(work, busy, busy)
    first, second, third, other = [seen.headers["idempotency-key"] for seen in server.seen]
    assert first == second == third != other
    assert len(first) == len(other) == 40


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else() -> None:
    async def work(server: ModelServer) -> tuple[Any, ModelServer]:
        async with ModelServer() as other:
            server.replies = [Reply(b"", status=302, headers=(("Location", other.url),))]
            lm = LM("openai/x", api_base=server.url, api_key=CANARY)
            return await call(lm), other

    (error, other), server = served(work)
    assert isinstance(error, LMConfigurationError)
    assert "redirect" in str(error)
    assert (len(server.seen), other.connections) == (1, 0)


def test_a_page_instead_of_an_answer_is_incomplete() -> None:
    async def work(server: ModelServer) -> Response | LMError:
        return await call(LM("openai/x", api_base=server.url, num_retries=0))

    for reply in (
        Reply(b"<html>Please log in</html>", headers=(("Content-Type", "text/html"),)),
        Reply(b""),
        Reply(completion()[:-20], framing="close", end="close"),
    ):
        error, _ = served(work, reply)
        assert isinstance(error, LMIncompleteError)
        assert error.model == "openai/x"
        assert error.provider == "openai"


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    kept: list[logging.LogRecord] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = kept.append  # type: ignore[method-assign]
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield kept
    root.removeHandler(handler)
    root.setLevel(level)


def test_the_key_is_never_seen(records: list[logging.LogRecord]) -> None:
    echo = f'{{"error":{{"message":"wrong key {CANARY}","code":"invalid_api_key"}}}}'.encode()
    replies = [
        Reply(echo, status=401),
        Reply(completion(f"your key is {CANARY}")),
        Reply(framing="none", end="reset"),
        Reply(status=500, body=f"oops {CANARY}".encode()),
        Reply(silent=True),
    ]
    shown: list[str] = []

    async def work(server: ModelServer) -> None:
        lm = LM("openai/x", api_base=server.url, api_key=CANARY, num_retries=0, timeout=0.2)
        shown.extend(
            [repr(lm), str(lm), repr(lm.dump_state()), repr(lm.identity()), repr(lm.copy(top_p=1.0))]
        )
        for _ in replies:
            result = await call(lm)
            shown.extend(
                [repr(result), str(result), repr(vars(result) if isinstance(result, LMError) else "")]
            )

    _, server = served(work, *replies)
    assert len(server.seen) == len(replies)
    assert all(seen.headers["authorization"].endswith(CANARY) for seen in server.seen)
    shown.extend(record.getMessage() for record in records)
    assert [text for text in shown if CANARY in text or "CANARY" in text] == []
    assert any("***" in text for text in shown)


def test_an_untrusted_certificate_stops_the_flow(transport: Callable[..., Any], tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [*command.split(), "subjectAltName=IP:127.0.0.1", *files],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def work(server: ModelServer) -> LMError:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: None
        )  # the server's side of it
        made = transport(use_proxy=False)
        try:
            with pytest.raises(LMConfigurationError, match="not trusted") as raised:
                await Endpoint(server.url, {"Authorization": CANARY}, made).post(b"{}", deadline=5.0)
            return raised.value
        finally:
            await made.aclose()

    error, server = served(work, tls=context)
    assert server.seen == []
    if transport is PyreqwestTransport:  # which takes no authority for a server, trusted or not
        assert "CA:FALSE" in str(error)


def test_an_outage_is_reported_with_the_attempts_made() -> None:
    async def work(server: ModelServer) -> Response | LMError:
        return await call(LM("openai/x", api_base=server.url, num_retries=2), clock=FakeClock())

    error, server = served(work, then=lambda seen: Reply(b"down", status=503))
    assert isinstance(error, LMServerError)
    assert (error.attempts, error.status, len(server.seen)) == (3, 503, 3)
    assert "attempt 3" in str(error)
    assert "down" in str(error)


def test_two_models_of_one_server_share_its_connections() -> None:
    async def work(server: ModelServer) -> None:
        first = LM("openai/a", api_base=server.url)
        second = LM("openai/b", api_base=server.url)
        layers = [first.connect(), second.connect()]
        for layer, lm in zip(layers, (first, second), strict=True):
            await layer(Request.of(lm.model, "hi"))
            await asyncio.sleep(0.02)
        for layer in layers:
            await layer.aclose()

    _, server = served(work)
    assert server.connections == 1


def test_a_pool_is_closed_with_its_last_endpoint() -> None:
    async def work(server: ModelServer) -> None:
        one, two = Endpoint(server.url, {}), Endpoint(server.url + "/other", {})
        await one.post(b"{}", deadline=5.0)
        await one.aclose()
        await one.aclose()
        assert (await two.post(b"{}", deadline=5.0)).status == 200
        await two.aclose()
        with pytest.raises(LMTransportError, match="closed"):
            await two.post(b"{}", deadline=5.0)
        three = Endpoint(server.url, {})
        assert (await three.post(b"{}", deadline=5.0)).status == 200
        await three.aclose()

    served(work)


def test_a_pool_that_outlives_its_loop_ends_without_a_word(
    transport: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As after asyncio.run() of a few calls. Warnings are errors here."""

    async def work(server: ModelServer) -> Any:
        made = transport(use_proxy=False)
        assert (await Endpoint(server.url, {}, made).post(b"{}", deadline=5.0)).status == 200
        made.circle = made  # as a traceback may hold it
        return made

    made, _ = served(work)
    del made
    gc.collect()
    assert caplog.records == []


@pytest.mark.skipif(find_spec("pyreqwest") is None, reason="pyreqwest is not installed")
def test_a_client_that_was_made_first_in_a_thread_that_has_ended() -> None:
    """pyreqwest's memory is of the thread that loads it; models may be asked first in any."""
    code = """
import threading
from dspy_stream.lm.pools import PyreqwestTransport
for _ in range(5):
    thread = threading.Thread(target=PyreqwestTransport, kwargs={"use_proxy": False})
    thread.start()
    thread.join()
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_who_waits_for_an_answer_hears_that_the_pool_is_closed_before_it_is() -> None:
    """When the process ends, nothing may be handed over any more once the pools are closed."""
    pytest.importorskip("pyreqwest")
    order: list[str] = []

    async def main() -> None:
        async with ModelServer(Reply(silent=True)) as server:
            pool = PyreqwestTransport(use_proxy=False)
            endpoint = Endpoint(server.url + "/chat/completions", {}, pool)

            async def ask() -> None:
                with pytest.raises(LMError):
                    await endpoint.post(b"{}", deadline=30.0)
                order.append("heard")

            asking = asyncio.ensure_future(ask())
            while not server.seen:
                await asyncio.sleep(0.001)
            assert pool in runtime._closed_before_stop
            await pool.aclose()
            order.append("closed")
            await asking

    asyncio.run(main())
    assert order == ["heard", "closed"]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("variable", "proxy"),
    [
        ("http_proxy", "http://127.0.0.1:{}"),
        ("all_proxy", "http://u:p@127.0.0.1:{}"),
        ("http_proxy", "127.0.0.1:{}"),
    ],
)
def test_a_proxy_is_used_but_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, streams: bool, variable: str, proxy: str
) -> None:
    async def ask(url: str) -> None:
        endpoint = Endpoint(url, {}, streams=streams)
        assert (await endpoint.post(b"{}", deadline=5.0)).status == 200
        await endpoint.aclose()

    async def work(server: ModelServer) -> None:
        for name in ("http_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(variable, proxy.format(server.port))
        async with ModelServer() as direct:
            await ask("http://llm.example/v1")
            await ask(direct.url)
            assert len(direct.seen) == 1

    _, server = served(work)
    (seen,) = server.seen
    assert seen.head.split(b"\r\n")[0] == b"POST http://llm.example/v1 HTTP/1.1"
    assert seen.headers.get("proxy-authorization") == ("Basic dTpw" if "@" in proxy else None)


@pytest.mark.parametrize("streams", [False, True])
def test_a_socks_proxy_is_spoken_to_or_refused_but_never_passed_by(
    monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    pytest.importorskip("pyreqwest")
    greetings: list[bytes] = []

    async def greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greetings.append(await reader.read(1))
        writer.close()

    async def work() -> None:
        async with await asyncio.start_server(greeted, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            monkeypatch.setenv("all_proxy", f"socks5://127.0.0.1:{port}")
            endpoint = Endpoint("http://192.0.2.1/v1", {}, streams=streams)
            with pytest.raises(LMTransportError, match="SOCKS"):
                await endpoint.post(b"{}", deadline=5.0)
            await endpoint.aclose()

    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asyncio.run(work())
    assert greetings == [b"\x05"]
    monkeypatch.setenv("all_proxy", "gopher://127.0.0.1")
    with pytest.raises(LMConfigurationError, match="gopher"):
        Endpoint("http://192.0.2.2/v1", {}, streams=streams)
