"""HTTP transports under one interface, side by side: what a request costs, and how each behaves.

    python tests/bench/transports.py            # those that are installed; others are left out

All are driven as httpx's ``AsyncBaseTransport``, without httpx's client. The server is the bench's
own, in a second process; the behaviours are tried against sockets of a few lines each. Pin both
processes to a core each (``taskset``) for figures that can be compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi " * 200}]}).encode()


def _httpx() -> Any:
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncHTTPTransport(limits=limits), httpx


def _httpx2() -> Any:
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncHTTPTransport(limits=limits), httpx2


def _httpx_aiohttp() -> Any:
    import aiohttp
    import httpx
    from httpx_aiohttp import AiohttpTransport

    def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    return AiohttpTransport(client=session), httpx


def _pyreqwest() -> Any:
    import httpx
    from pyreqwest.compatibility.httpx import HttpxTransport

    return HttpxTransport(), httpx


def _own(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import httpx

        from dspy_stream.lm import transport

        return getattr(transport, name)(use_proxy=True), httpx

    return make


CANDIDATES: dict[str, Callable[[], Any]] = {
    "httpx": _httpx,
    "httpx2": _httpx2,
    "httpx-aiohttp": _httpx_aiohttp,
    "pyreqwest's httpx transport": _pyreqwest,
    "ours over aiohttp": _own("AiohttpTransport"),
    "ours over pyreqwest": _own("PyreqwestTransport"),
}


class Caller:
    """One transport; requests are made the way it wants them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.transport, self.library = CANDIDATES[name]()
        self._endpoints: dict[str, Any] = {}

    def request(self, url: str, seconds: float = 30.0) -> Any:
        """A POST."""
        if self.name.startswith("ours"):
            from dspy_stream.lm.pools import Call
            from dspy_stream.lm.transport import Endpoint

            endpoint = self._endpoints.get(url)
            if endpoint is None:
                headers = {"content-type": "application/json", "authorization": "Bearer sk-bench"}
                endpoint = self._endpoints[url] = Endpoint(url, headers, self.transport)
            return Call(endpoint, BODY, None, seconds)
        headers = {"content-type": "application/json", "authorization": "Bearer sk-bench"}
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        return self.library.Request(
            "POST", url, headers=headers, content=BODY, extensions={"timeout": timeout}
        )

    @contextlib.asynccontextmanager
    async def streamed(self, url: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of one answer."""
        response = await self.transport.handle_async_request(self.request(url))
        try:
            yield response.stream.__aiter__()
        finally:
            await response.stream.aclose()

    async def close(self) -> None:
        """Let go of its connections."""
        with contextlib.suppress(Exception):
            await self.transport.aclose()

    async def post(self, url: str) -> bytes:
        """One whole answer."""
        async with self.streamed(url) as pieces:
            return b"".join([bytes(piece) async for piece in pieces])


# ------------------------------------------------------------------------------------------ what it costs


async def cost(caller: Caller, url: str, *, rows: int, concurrency: int) -> tuple[float, float, float]:
    """CPU microseconds a request; median and 99th percentile of its time in ms."""
    from itertools import count

    taken: list[float] = []
    numbers = count()

    async def work() -> None:
        while next(numbers) < rows:
            began = time.perf_counter()
            json.loads(await caller.post(url))
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*[caller.post(url) for _ in range(concurrency)])
    began = time.process_time()
    await asyncio.gather(*[work() for _ in range(concurrency)])
    used = (time.process_time() - began) / rows * 1e6
    taken.sort()
    return used, statistics.median(taken) * 1e3, taken[int(len(taken) * 0.99)] * 1e3


# --------------------------------------------------------------------------------------- how it behaves

GOOD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b"5\r\ndata:\r\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    await reader.readexactly(length)
    return head


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server of one handler; its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def streams(caller: Caller) -> str:
    """The first piece is there before the second was sent."""
    go = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _request(reader)
        writer.write(HEAD + PIECE)
        await go.wait()
        writer.write(PIECE + b"0\r\n\r\n")
        await writer.drain()

    async with serving(handler) as port, caller.streamed(f"http://127.0.0.1:{port}/") as pieces:
        await asyncio.wait_for(pieces.__anext__(), 5)
        go.set()
        async for _ in pieces:
            pass
    return "yes"


async def cancelled(caller: Caller, *, body: bool) -> str:
    """Cancelled while it waits, or in mid-body: how long until the server sees the connection closed."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _request(reader)
        if body:
            writer.write(HEAD + PIECE)
        asked.set()
        await reader.read()
        gone.set()

    async with serving(handler) as port:
        task = asyncio.create_task(caller.post(f"http://127.0.0.1:{port}/"))
        await asyncio.wait_for(asked.wait(), 5)
        await asyncio.sleep(0.1)
        task.cancel()
        began = time.perf_counter()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        try:
            await asyncio.wait_for(gone.wait(), 3)
        except asyncio.TimeoutError:
            return "stays open"
    return f"closed in {(time.perf_counter() - began) * 1e3:.0f} ms"


async def dead(caller: Caller, *, reset: bool) -> str:
    """The server closes, or resets, a pooled connection; the next request."""
    done = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _request(reader)
        writer.write(GOOD)
        await writer.drain()
        if done.is_set():
            return
        done.set()
        if reset:  # only when the next request is on its way
            await _request(reader)
            linger = b"\x01\0\0\0\0\0\0\0"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async with serving(handler) as port:
        url = f"http://127.0.0.1:{port}/"
        await caller.post(url)
        await asyncio.sleep(0.2)
        try:
            await asyncio.wait_for(caller.post(url), 5)
        except Exception as error:  # noqa: BLE001  its name is the finding
            return f"fails: {type(error).__name__}"
    return "asks again"


async def proxied(caller: Caller) -> str:
    """HTTP_PROXY in the environment is used."""
    seen = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await _request(reader)
        if b"far.invalid" in head.split(b"\r\n")[0]:
            seen.set()
        writer.write(GOOD)
        await writer.drain()

    async with serving(handler) as port:
        os.environ["http_proxy"] = f"http://127.0.0.1:{port}"
        try:
            other = Caller(caller.name)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(other.post("http://far.invalid/"), 5)
        finally:
            del os.environ["http_proxy"]
    return "from the environment" if seen.is_set() else "no"


async def behaviour(name: str) -> dict[str, str]:
    """All of it for one transport."""
    trials: dict[str, Callable[[Caller], Awaitable[str]]] = {
        "streams": streams,
        "cancelled before the head": lambda caller: cancelled(caller, body=False),
        "cancelled in mid-body": lambda caller: cancelled(caller, body=True),
        "pooled connection closed": lambda caller: dead(caller, reset=False),
        "pooled connection reset": lambda caller: dead(caller, reset=True),
        "proxy": proxied,
    }
    found = {}
    for what, trial in trials.items():
        caller = Caller(name)
        try:
            found[what] = await asyncio.wait_for(trial(caller), 8)
        except Exception as error:  # noqa: BLE001  its name is the finding
            found[what] = f"no: {type(error).__name__}"
        await caller.close()
    return found


async def figures(name: str, port: int) -> dict[str, str]:
    """What a request costs at once, and with 200 ms of latency."""
    caller, found = Caller(name), {}
    for path, rows, concurrency in (("0", 4000, 64), ("200", 5000, 256)):
        url = f"http://127.0.0.1:{port}/{path}/v1/chat/completions"
        used, middle, tail = await cost(caller, url, rows=rows, concurrency=concurrency)
        await caller.close()
        caller = Caller(name)
        found[f"{path} ms, {concurrency} in flight"] = (
            f"{used:.0f} us CPU, p50 {middle:.0f} ms, p99 {tail:.0f} ms"
        )
    return found


def main() -> None:
    """Print one line a finding."""
    import logging

    import uvloop

    logging.disable()  # connections that a library leaves behind
    names = sys.argv[1:] or list(CANDIDATES)
    with subprocess.Popen(
        [sys.executable, str(HERE / "server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(server.pid, {cores[-1]})
        os.sched_setaffinity(0, {cores[0]})
        port = int(server.stdout.readline())
        for name in names:
            try:
                CANDIDATES[name]()
            except ImportError as error:
                print(f"{name}: not installed ({error.name})")
                continue
            print(name, flush=True)
            for part in (figures(name, port), behaviour(name)):
                with contextlib.suppress(KeyboardInterrupt):
                    for what, value in _run(uvloop, part).items():
                        print(f"  {what:28s} {value}", flush=True)
        server.stdin.close()


def _run(uvloop: Any, work: Any) -> Any:
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


if __name__ == "__main__":
    main()
