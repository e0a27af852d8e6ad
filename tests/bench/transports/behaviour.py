"""How each transport behaves: streams, cancellation, connections that died, certificates, proxies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Iterator

from candidates import Caller
from servers import FAR, GOOD, HEAD, PIECE, Authority, apart, good, request_of, reset, serving, tunnel_to

TRIALS = 50


async def streams(name: str) -> str:
    """The first piece is there before the second was sent."""
    go = asyncio.Event()

    async def handler(reader: StreamReader, writer: StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD + PIECE)
        await go.wait()
        writer.write(PIECE + b"0\r\n\r\n")
        await writer.drain()

    async def first(url: str) -> None:
        async with Caller(name).streamed(url, seconds=3) as pieces:
            await pieces.__anext__()
            go.set()
            async for _ in pieces:
                pass

    async with serving(handler) as port:
        try:
            await asyncio.wait_for(first(f"http://127.0.0.1:{port}/"), 2)
        except asyncio.TimeoutError:
            return "held back"
        finally:
            go.set()
    return "as they come"


async def cancelled(name: str, *, body: bool, streamed: bool = False) -> str:
    """Cancelled while it waits, or in mid-body: how long until the server sees the connection closed."""
    asked, gone = asyncio.Event(), asyncio.Event()
    limit = 2.0

    async def handler(reader: StreamReader, writer: StreamWriter) -> None:
        await request_of(reader)
        if body:
            writer.write(HEAD + PIECE)
        asked.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()

    caller = Caller(name)

    async def ask(url: str) -> None:
        if not streamed:
            await caller.post(url, seconds=limit)
            return
        async with caller.streamed(url, seconds=limit) as pieces:
            async for _ in pieces:
                pass

    async with serving(handler) as port:
        task = asyncio.create_task(ask(f"http://127.0.0.1:{port}/"))
        await asyncio.wait_for(asked.wait(), 5)
        await asyncio.sleep(0.1)
        task.cancel()
        began = time.perf_counter()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        try:
            await asyncio.wait_for(gone.wait(), 4 * limit + 1)
        except asyncio.TimeoutError:
            return "stays open"
    seconds = time.perf_counter() - began
    return "closed at once" if seconds < 0.5 else f"open to its time limit ({seconds:.0f} s)"


async def swallowed(name: str) -> str:
    """Cancelled when the answer is there, but the loop has not had its turn: does the task go on?"""
    caller = Caller(name)
    heard = 0
    with apart(good) as port:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(TRIALS):
            await caller.post(url)
            task = asyncio.create_task(caller.post(url))
            for _ in range(3):  # the request goes out
                await asyncio.sleep(0)
            time.sleep(0.01)  # the loop stands still, the server and other threads do not
            in_time = task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            heard += in_time and not task.cancelled()
        await caller.close()
    return f"swallowed, {heard} of {TRIALS}" if heard else "obeyed"


async def dead(name: str, *, how: str) -> str:
    """A pooled connection is closed or reset while idle, or reset by the next request; that request."""
    asked = 0

    async def handler(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal asked
        await request_of(reader)
        asked += 1
        writer.write(GOOD)
        await writer.drain()
        if asked > 1:
            return
        if how == "used":
            await request_of(reader)
        if how != "closed":
            await asyncio.sleep(0.05)
            reset(writer)

    caller = Caller(name)
    async with serving(handler) as port:
        url = f"http://127.0.0.1:{port}/"
        await caller.post(url)
        await asyncio.sleep(0.2)
        try:
            await asyncio.wait_for(caller.post(url), 5)
        except Exception as error:  # noqa: BLE001  its name is the finding
            return f"fails: {type(error).__name__}"
    return "a new one"


async def certificate(authority: Authority, name: str, *names: str) -> str:
    """A request to localhost with a certificate for these names."""
    async with serving(good, authority.context(*names)) as port:
        try:
            await asyncio.wait_for(Caller(name).post(f"https://localhost:{port}/"), 5)
        except Exception as error:  # noqa: BLE001  its name is the finding
            return f"refused: {type(error).__name__}"
    return "accepted"


@contextlib.contextmanager
def variables(**values: str | None) -> Iterator[None]:
    """Environment variables, set or missing for a while."""
    before = {key: os.environ.get(key) for key in values}
    for pairs in (values, before):
        for key, value in pairs.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        if pairs is values:
            yield


async def proxied(name: str) -> str:
    """HTTP_PROXY is used, and not for hosts in NO_PROXY."""
    seen = []

    async def handler(reader: StreamReader, writer: StreamWriter) -> None:
        seen.append((await request_of(reader)).split(b"\r\n")[0])
        writer.write(GOOD)
        await writer.drain()

    async with serving(handler) as port:
        with variables(http_proxy=f"http://127.0.0.1:{port}", no_proxy=f"other.invalid,near.{FAR}"):
            caller = Caller(name)
            for host in (FAR, f"near.{FAR}"):
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(caller.post(f"http://{host}/"), 5)
    if not seen:
        return "not used"
    return "used" if len(seen) == 1 else "used, NO_PROXY ignored"


async def tunnelled(name: str, authority: Authority) -> str:
    """HTTPS_PROXY is asked to CONNECT, and the certificate is checked through it."""
    seen: list[str] = []
    found = []
    for names in ((FAR,), ("localhost",)):
        async with serving(good, authority.context(*names)) as far, serving(tunnel_to(far, seen)) as port:
            with variables(https_proxy=f"http://127.0.0.1:{port}"):
                try:
                    await asyncio.wait_for(Caller(name).post(f"https://{FAR}/"), 5)
                    found.append(True)
                except Exception:  # noqa: BLE001  counted
                    found.append(False)
    if not seen:
        return "not used"
    return {(True, False): "used, certificate checked", (True, True): "used, certificate NOT checked"}.get(
        (found[0], found[1]), "fails"
    )


def trials(authority: Authority, other: Authority) -> dict[str, Callable[[str], Awaitable[str]]]:
    """All of them by what they find out; ``other`` is an authority that nobody trusts."""
    return {
        "pieces of a stream": streams,
        "cancelled before the head": lambda name: cancelled(name, body=False),
        "cancelled in mid-body": lambda name: cancelled(name, body=True),
        "cancelled in mid-stream": lambda name: cancelled(name, body=True, streamed=True),
        "a cancel as the answer comes": swallowed,
        "idle connection closed (FIN)": lambda name: dead(name, how="closed"),
        "idle connection reset (RST)": lambda name: dead(name, how="reset"),
        "reset by the next request": lambda name: dead(name, how="used"),
        "authority of SSL_CERT_FILE": lambda name: certificate(authority, name, "localhost"),
        "certificate of another host": lambda name: certificate(authority, name, FAR),
        "certificate of an unknown authority": lambda name: certificate(other, name, "localhost"),
        "HTTP_PROXY, NO_PROXY": proxied,
        "HTTPS_PROXY (CONNECT)": lambda name: tunnelled(name, authority),
    }
