"""Half-open connections, wrong places and late answers, each against a real socket (F10, F15, F16)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dspy_stream.clock import FakeClock
from dspy_stream.errors import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMTimeoutError,
    LMTransportError,
    LMUnavailableError,
    LMUnsupportedModelError,
)
from dspy_stream.lm import LM
from dspy_stream.lm.backends import Backend
from dspy_stream.lm.budget import Budget
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.circuit import BreakerPolicy
from dspy_stream.lm.transport import AiohttpTransport, Endpoint, PyreqwestTransport
from dspy_stream.types import Response
from tests.lm.server import ModelServer, Reply, completion

CANARY = "sk-CANARY-0123456789"
ONCE = BreakerPolicy(failures=1000)


@pytest.fixture(params=[PyreqwestTransport, AiohttpTransport], ids=lambda made: made.__name__)
def transport(request: pytest.FixtureRequest) -> Callable[..., Any]:
    pytest.importorskip("pyreqwest" if request.param is PyreqwestTransport else "aiohttp")
    made: Callable[..., Any] = request.param
    return made


async def call(lm: LM, journal: Any = None, text: str = "Capital of France?", **connect: Any) -> Any:
    """The response or the error, and the seconds it took."""
    layer = lm.connect(journal, **connect)
    started = time.monotonic()
    try:
        return await layer(lm.request(text)), time.monotonic() - started
    except LMError as error:
        return error, time.monotonic() - started
    finally:
        await layer.aclose()


def pauses(clock: FakeClock) -> list[float]:
    """Waits for another attempt; those for a permit are short while a limit is still sought."""
    return [wait for wait in clock.slept if wait > 0.05]


# ------------------------------------------------------------------------------------------ F10


def test_silence_is_cut_at_the_deadline_of_the_call_retries_included() -> None:
    async def go() -> None:
        async with ModelServer(then=lambda seen: Reply(silent=True)) as server:
            error, took = await call(LM("openai/x", api_base=server.url, timeout=0.6))
        assert isinstance(error, LMTimeoutError)
        assert 0.5 < took < 1.1
        assert len(server.seen) == 1
        async with ModelServer(Reply(b"down", status=503), then=lambda seen: Reply(silent=True)) as server:
            error, took = await call(LM("openai/x", api_base=server.url, timeout=1.2))
        assert isinstance(error, LMTimeoutError)
        assert 1.1 < took < 1.7
        assert (error.attempts, len(server.seen)) == (2, 2)

    asyncio.run(go())


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = sys.argv[1].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def server_process() -> Iterator[tuple[int, str]]:
    """A server that can be stopped with a signal: its process id and address."""
    command = [sys.executable, "-c", SERVER, completion().decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            yield child.pid, f"http://127.0.0.1:{int(child.stdout.readline())}/v1"
        finally:
            child.kill()


def _state(pid: int) -> str:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    states = {task.joinpath("stat").read_text().rpartition(")")[2].split()[0] for task in tasks}
    return states.pop() if len(states) == 1 else "?"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the state of a process is read from /proc")
def test_a_server_that_is_stopped_is_left_at_the_deadline_and_asked_again_when_it_goes_on() -> None:
    async def go(pid: int, url: str) -> None:
        # The second call fails more than five pauses after the last answer.
        policy = BreakerPolicy(failures=2, pause=0.1)
        lm = LM("openai/x", api_base=url, timeout=0.5, num_retries=0, breaker=policy)
        layer = lm.connect()
        assert (await layer(lm.request("0"))).text == "Paris"
        os.kill(pid, signal.SIGSTOP)
        try:
            while _state(pid) != "T":  # every thread of it
                await asyncio.sleep(0.005)
            for number in range(2):
                started = time.monotonic()
                with pytest.raises(LMTimeoutError):
                    await layer(lm.request(f"stopped {number}"))
                assert time.monotonic() - started < 1.0
            with pytest.raises(LMUnavailableError) as refused:
                await layer(lm.request("refused"))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert refused.value.retry_after is not None
        await asyncio.sleep(refused.value.retry_after)
        assert (await layer(lm.request("1"))).text == "Paris"
        await layer.aclose()

    with server_process() as (pid, url):
        asyncio.run(go(pid, url))


def test_a_full_backlog_is_a_connection_that_is_not_made_in_time(transport: Callable[..., Any]) -> None:
    async def go(port: int) -> LMError:
        made = transport(use_proxy=False)
        try:
            with pytest.raises(LMTimeoutError) as raised:
                await Endpoint(f"http://127.0.0.1:{port}/v1", {}, made).post(b"{}", deadline=0.5)
            return raised.value
        finally:
            await made.aclose()

    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        for _ in range(8):  # nobody accepts: the kernel answers no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        started = time.monotonic()
        error = asyncio.run(go(port))
        assert time.monotonic() - started < 1.5
    assert f"127.0.0.1:{port}" in str(error)
    assert error.retryable


def test_a_connection_that_died_while_idle_costs_no_attempt() -> None:
    async def go() -> None:
        clock = FakeClock()
        dying = Reply(reset_on_next=True)
        async with ModelServer(*[dying] * 3) as server:
            lm = LM("openai/x", api_base=server.url, num_retries=0, breaker=BreakerPolicy(failures=1))
            layer = lm.connect(clock=clock)
            for number in range(4):
                assert (await layer(lm.request(str(number)))).text == "Paris"
                await asyncio.sleep(0.02)
            await layer.aclose()
        assert (len(server.seen), pauses(clock)) == (4, [])
        assert server.connections >= 3

    asyncio.run(go())


# ------------------------------------------------------------------------------------------ F15


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_leads_nowhere_from_any_endpoint(status: int) -> None:
    async def go() -> None:
        async with ModelServer() as other:
            moved = Reply(b"", status=status, headers=(("Location", f"{other.url}/chat/completions"),))
            async with ModelServer(then=lambda seen: moved) as server:
                lm = LM(
                    "openai/x",
                    endpoints=[Backend(server.url, CANARY), Backend(server.url, CANARY)],
                    fallbacks=[LM("openai/y", api_base=other.url)],
                )
                error, _ = await call(lm, clock=FakeClock())
        assert isinstance(error, LMConfigurationError)
        assert (error.scope, error.exit_code, error.retryable) == ("flow", 78, False)
        assert (len(server.seen), other.connections) == (1, 0)

    asyncio.run(go())


def test_a_name_that_cannot_be_resolved_may_be_an_outage(transport: Callable[..., Any]) -> None:
    async def go() -> LMError:
        made = transport(use_proxy=False)
        try:
            endpoint = Endpoint("http://no-such-host.invalid/v1", {"Authorization": CANARY}, made)
            with pytest.raises(LMError) as raised:
                await endpoint.post(b"{}", deadline=10.0)
            return raised.value
        finally:
            await made.aclose()

    error = asyncio.run(go())
    assert type(error) in (LMTransportError, LMTimeoutError)  # where no resolver answers at all
    assert "no-such-host.invalid" in str(error)
    assert error.retryable
    assert "CANARY" not in str(error)


@pytest.mark.parametrize(
    ("status", "code", "kind", "scope"),
    [
        (401, "invalid_api_key", LMAuthError, "flow"),
        (403, None, LMAuthError, "flow"),
        (402, None, LMBillingError, "flow"),
        (429, "insufficient_quota", LMBillingError, "flow"),
        (404, "model_not_found", LMUnsupportedModelError, "flow"),
        (404, None, LMUnsupportedModelError, "flow"),
        (400, "context_length_exceeded", ContextWindowExceededError, "row"),
        (400, None, LMInvalidRequestError, "row"),
    ],
)
def test_what_will_not_pass_is_asked_once(status: int, code: str | None, kind: Any, scope: str) -> None:
    async def go() -> None:
        body = f'{{"error":{{"message":"no","code":{"null" if code is None else repr(code)}}}}}'
        refusal = Reply(body.replace("'", '"').encode(), status=status)
        clock = FakeClock()
        async with ModelServer(then=lambda seen: refusal) as server:
            lm = LM("openai/x", api_base=server.url, breaker=BreakerPolicy(failures=1))
            for _ in range(3):  # nor does it open the circuit
                error, _ = await call(lm, clock=clock)
                assert type(error) is kind
                assert (error.scope, error.retryable) == (scope, False)
        assert (len(server.seen), pauses(clock)) == (3, [])

    asyncio.run(go())


# ------------------------------------------------------------------------------------------ F16


def test_an_answer_that_comes_too_late_is_asked_for_under_the_same_name() -> None:
    """The server has done the work by then; a server that honours the name need not do it twice."""

    async def go() -> None:
        journal = DictJournal()
        async with ModelServer(Reply(delay=0.6), Reply(delay=0.6)) as server:
            lm = LM("openai/x", api_base=server.url, timeout=0.3)
            for _ in range(2):
                error, _ = await call(lm, journal)
                assert isinstance(error, LMTimeoutError)
                assert journal.entries == {}
            answer, _ = await call(lm.copy(timeout=5.0), journal)  # connected anew, as after a restart
            assert isinstance(answer, Response)
            again, _ = await call(lm, journal)
        assert (again.text, again.cached) == (answer.text, True)
        assert len(journal.entries) == 1
        assert len(server.seen) == 3
        assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 1
        assert server.seen[0].headers["idempotency-key"] == lm.request("Capital of France?").key().hex()

    asyncio.run(go())


def test_what_came_too_late_is_counted_as_spent_beside_what_came() -> None:
    """The server did the work twice, and charges for both: the first is counted as it was reserved for."""

    async def go() -> None:
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        async with ModelServer(
            Reply(completion(usage=usage), delay=1.0), then=lambda seen: Reply(completion(usage=usage))
        ) as server:
            lm = LM("openai/x", api_base=server.url, timeout=0.5, max_tokens=100)
            with Budget(max_tokens=10_000) as budget:
                for _ in range(2):  # a call that was lost; the row's next attempt
                    with contextlib.suppress(LMTimeoutError):
                        await lm.acall("Capital of France?")
        assert len(server.seen) == 2
        assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 1
        assert budget.calls == 2
        # 15 for the answer; for the other its limit of 100, and what its prompt was judged at.
        assert 115 <= budget.tokens <= 250

    asyncio.run(go())


def test_every_endpoint_is_asked_under_the_same_name() -> None:
    async def go() -> None:
        async with (
            ModelServer(then=lambda seen: Reply(framing="none", end="reset")) as cut,
            ModelServer() as fine,
        ):
            places = [Backend(cut.url, weight=1e9), Backend(fine.url)]
            lm = LM("openai/x", endpoints=places, breaker=ONCE)
            answer, _ = await call(lm, clock=FakeClock())
        assert isinstance(answer, Response)
        names = {seen.headers["idempotency-key"] for seen in [*cut.seen, *fine.seen]}
        assert len(cut.seen) >= 1
        assert len(names) == 1

    asyncio.run(go())
