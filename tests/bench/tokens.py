"""A server that writes tokens at a fixed rate: every POST gets a stream of chat-completion chunks.

    POST /RATE/TOKENS/...    so many tokens, so many a second; each is the time at which it was sent

Streams are spread evenly over the interval. Prints its port, serves until its input is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":%b}]}\n\n'
)
END = b"data: [DONE]\n\n"
TICK = 0.001


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# A token's chunk, whole but for the time: of fixed width, so that its length is known.
TOKEN = framed(EVENT % (b"0" * 18, b"null")).replace(b"0" * 18, b"%017.6f ")


class Server(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.socket = transport.get_extra_info("socket").fileno()
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r", 1)[0])
        if len(self.buffer) < end + 4 + length:
            return
        self.buffer = self.buffer[end + 4 + length :]
        _, rate, tokens, _ = head.split(b" ")[1].split(b"/", 3)
        self.left = int(tokens)
        self.transport.write(HEAD + framed(EVENT % (b"[[ ## answer ## ]]\\n", b"null")))
        CLOCKWORK.add(self, int(rate))

    def connection_lost(self, error: Exception | None) -> None:
        self.left = -1

    def send(self, data: bytes) -> None:
        """Write past the transport, which would take as long as the client has for a token."""
        if not self.transport.get_write_buffer_size():
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(self.socket, data) :]
        if data:
            self.transport.write(data)

    def tick(self, token: bytes) -> bool:
        """Write the next token; whether there are more."""
        if self.left < 0 or self.transport.is_closing():
            return False
        self.left -= 1
        if self.left < 0:
            last = EVENT % (b"", b'"stop"')
            self.send(framed(last) + framed(END) + b"0\r\n\r\n")
            return False
        try:
            self.send(token)
        except ConnectionError:
            return False
        return True


class Clockwork:
    """Which streams are due, in a ring of ticks as long as the interval between two tokens."""

    def __init__(self) -> None:
        self.ring: list[list[Server]] = []
        self.count = 0

    def add(self, stream: Server, rate: int) -> None:
        if not self.ring:
            self.ring = [[] for _ in range(round(1 / rate / TICK))]
        self.ring[self.count * 7 % len(self.ring)].append(stream)
        self.count += 1

    async def run(self) -> None:
        started, number = time.perf_counter(), 0
        while True:
            number += 1
            wait = started + number * TICK - time.perf_counter()
            await asyncio.sleep(max(0.0, wait))
            if self.ring:
                due = self.ring[number % len(self.ring)]
                token = TOKEN % time.perf_counter()
                due[:] = [stream for stream in due if stream.tick(token)]


CLOCKWORK = Clockwork()


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    clockwork = asyncio.ensure_future(CLOCKWORK.run())
    await loop.run_in_executor(None, sys.stdin.read)
    clockwork.cancel()
    os._exit(0)


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    asyncio.run(main())
