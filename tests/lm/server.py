"""A model server on 127.0.0.1 that does whatever a test tells it to, one reply a request."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


def completion(text: str = "Paris", **changes: Any) -> bytes:
    """A good answer."""
    value = {
        "id": "chatcmpl-1",
        "model": "gpt-4o-mini-2024",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3},
    }
    return json.dumps({**value, **changes}).encode()


def bomb(size: int) -> bytes:
    """A gzip file that unpacks to ``size`` zeros, made without holding them."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as file:
        block = b"\0" * 1_000_000
        for _ in range(size // len(block)):
            file.write(block)
    return packed.getvalue()


@dataclass(frozen=True)
class Reply:
    """What to do with one request.

    ``framing`` says how the body's end is marked; ``declared`` lies about its length. ``end`` is
    what happens to the connection afterwards. ``pieces`` are sent ``gap`` seconds apart.
    """

    body: bytes = field(default_factory=completion)
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    framing: Literal["length", "chunked", "close", "none"] = "length"
    declared: int | None = None
    cut: bool = False
    pieces: int = 1
    gap: float = 0.0
    delay: float = 0.0
    silent: bool = False
    end: Literal["keep", "close", "reset"] = "keep"
    reset_on_next: bool = False


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    head: bytes
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class ModelServer:
    """Async context manager; ``seen`` holds the requests, ``connections`` counts them."""

    def __init__(
        self, *replies: Reply, then: Callable[[Seen], Reply] | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.replies = list(replies)
        self.then = then
        self.seen: list[Seen] = []
        self.connections = 0
        self.asked = asyncio.Event()
        self.hangups = asyncio.Event()
        self._tls = tls
        self._open: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> ModelServer:
        self._server = await asyncio.start_server(
            self._accepted, "127.0.0.1", 0, ssl=self._tls, limit=1 << 20
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """The address to give as api_base."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.hangups.set()
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reset = False
        while True:
            seen = await _read(reader)
            if reset:
                return _reset(writer)
            self.seen.append(seen)
            self.asked.set()
            reply = self.replies.pop(0) if self.replies else self.then(seen) if self.then else Reply()
            await _answer(reply, reader, writer)
            reset = reply.reset_on_next
            if reply.end == "reset":
                return _reset(writer)
            if reply.end == "close":
                return None


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")[1:]
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name
    }
    return Seen(head, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


async def _answer(reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(reply.delay)
    if reply.silent:
        await reader.read()  # until the client gives up
        raise ConnectionResetError
    if reply.framing == "none":
        return
    lines = [f"HTTP/1.1 {reply.status} X", "Content-Type: application/json"]
    names = {name.lower() for name, _ in reply.headers}
    if "content-type" in names:
        lines.pop()
    lines += [f"{name}: {value}" for name, value in reply.headers]
    if reply.framing == "length":
        lines.append(f"Content-Length: {len(reply.body) if reply.declared is None else reply.declared}")
    elif reply.framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
    else:
        lines.append("Connection: close")
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    size = max(1, -(-len(reply.body) // reply.pieces))
    for start in range(0, len(reply.body), size):
        piece = reply.body[start : start + size]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.framing == "chunked" else piece)
        await writer.drain()
        await asyncio.sleep(reply.gap)
    if reply.framing == "chunked" and not reply.cut:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
