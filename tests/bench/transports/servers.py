"""Servers of a few lines, for one behaviour each; a certificate authority of our own; a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

GOOD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b"5\r\ndata:\r\n"
FAR = "far.invalid"  # a host that only a proxy can know

# Taken before the client is pinned to the first of them.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def pin(pid: int, *, client: bool = False) -> None:
    """Keep a process to a core of its own: servers to the last one, the client to the first."""
    if CORES:
        os.sched_setaffinity(pid, {CORES[0 if client else -1]})


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """Read one request; its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))
    return head


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request."""
    while await request_of(reader):
        writer.write(GOOD)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection with RST."""
    linger = b"\x01\0\0\0\0\0\0\0"
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server of one handler; its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.contextmanager
def apart(handler: Handler) -> Iterator[int]:
    """A server of one handler in a thread of its own; its port."""
    loop, begun, port = asyncio.new_event_loop(), threading.Event(), [0]

    async def serve() -> None:
        async with serving(handler) as port[0]:
            begun.set()
            await ended.wait()

    ended = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    begun.wait(5)
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(5)


def tunnel_to(port: int, seen: list[str]) -> Handler:
    """A proxy that knows CONNECT: whatever host is asked for is the server at ``port``."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head.split(b"\r\n")[0].decode("ascii"))
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, back), copy(there, writer))

    return handler


class Authority:
    """A certificate authority of our own, and what it has signed; made with ``openssl``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.certificate = folder / "ca.pem"
        new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bench")
        self._run(*new, "-keyout", str(folder / "ca.key"), "-out", str(self.certificate))

    def files(self, *names: str) -> tuple[Path, Path]:
        """Certificate and key for these names and addresses."""
        stem = self.folder / names[0]
        key, asked, made, text = (stem.with_suffix(f".{kind}") for kind in ("key", "csr", "pem", "ext"))
        kinds = [f"{'IP' if name[0].isdigit() else 'DNS'}:{name}" for name in names]
        text.write_text(f"subjectAltName={','.join(kinds)}\nbasicConstraints=CA:FALSE\n")
        new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=server")
        self._run(*new, "-keyout", str(key), "-out", str(asked))
        sign = ("openssl", "x509", "-req", "-days", "2", "-in", str(asked), "-extfile", str(text))
        by = ("-CA", str(self.certificate), "-CAkey", str(self.folder / "ca.key"), "-CAcreateserial")
        self._run(*sign, *by, "-out", str(made))
        return made, key

    def context(self, *names: str) -> ssl.SSLContext:
        """What a server of these names needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.files(*names))
        return context

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)
