"""What a request costs: CPU of the whole process, and how long the slow ones take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from candidates import SPEAK_HTTP2, Caller
from http2 import nginx
from servers import Authority, pin

HERE = Path(__file__).parent
SECONDS = float(os.environ.get("BENCH_SECONDS", "4"))


@contextlib.contextmanager
def process(script: Path, *arguments: str) -> Iterator[int]:
    """A server in a process of its own, on the last core; its port."""
    command = [sys.executable, str(script), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as server:  # type: ignore[call-overload]
        pin(server.pid)
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()
            server.wait(10)


async def cost(make: Callable[[], Caller], url: str, concurrency: int, seconds: float = SECONDS) -> str:
    """CPU microseconds a request, requests a second, median and 99th percentile of its time."""
    caller = make()
    taken: list[float] = []
    ends = float("inf")

    async def work() -> None:
        while (began := time.perf_counter()) < ends:
            assert b"choices" in await caller.post(url)
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*[caller.post(url) for _ in range(concurrency)])
    wall, used = time.perf_counter(), time.process_time()
    ends = wall + seconds
    await asyncio.gather(*[work() for _ in range(concurrency)])
    used, wall = time.process_time() - used, time.perf_counter() - wall
    await caller.close()
    taken.sort()
    middle, tail = statistics.median(taken) * 1e3, taken[int(len(taken) * 0.99)] * 1e3
    rate = len(taken) / wall
    return f"{used / len(taken) * 1e6:,.0f} us; {rate:,.0f}/s; {middle:,.0f} and {tail:,.0f} ms"


async def plain(name: str, _authority: Authority) -> AsyncIterator[tuple[str, str]]:
    """Over HTTP/1.1 without TLS."""
    with process(HERE.parent / "server.py") as port:
        for path, concurrency in (("0", 64), ("200", 256)):
            url = f"http://127.0.0.1:{port}/{path}/v1/chat/completions"
            yield f"{path} ms, {concurrency} in flight", await cost(lambda: Caller(name), url, concurrency)


async def tls(name: str, authority: Authority) -> AsyncIterator[tuple[str, str]]:
    """Over TLS: connections that stay, and a new one for each request."""
    files = map(str, authority.files("localhost", "127.0.0.1"))
    with process(HERE / "tls_server.py", *files) as port:
        for path, what in (("0", "TLS, 16 in flight"), ("close", "TLS, a connection a request")):
            url = f"https://localhost:{port}/{path}/v1/chat/completions"
            yield what, await cost(lambda: Caller(name), url, 16)


async def http2(name: str, authority: Authority) -> AsyncIterator[tuple[str, str]]:
    """Over HTTP/2, beside HTTP/1.1 with the same server."""
    if name not in SPEAK_HTTP2:
        yield "HTTP/2", "not spoken"
        return
    if shutil.which("nginx") is None:
        print("  HTTP/2: nginx is not installed")
        return
    certificate, key = authority.files("localhost", "127.0.0.1")
    with (
        process(HERE.parent / "server.py") as behind,
        nginx(authority.folder / "nginx", certificate, key, behind) as port,
    ):
        for path, concurrency in (("0", 64), ("200", 256)):
            url = f"https://localhost:{port}/{path}/v1/chat/completions"
            for version in (1, 2):
                what = f"nginx, HTTP/{version}, {path} ms, {concurrency} in flight"
                try:
                    yield what, await cost(lambda v=version: Caller(name, http2=v == 2), url, concurrency)
                except Exception as error:  # noqa: BLE001  its name is the finding
                    yield what, f"fails: {error}"


COSTS: dict[str, Any] = {"plain": plain, "tls": tls, "http2": http2}
