"""A constant OpenAI-compatible server, fast enough not to be what is measured.

    POST /0/...        answers at once
    POST /200/...      after 200 ms
    POST /lognormal/.. after a time drawn, by the number in the question, from a log-normal
                       distribution with mean 0.2 s and 99th percentile 2 s

Prints its port, serves until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import sys

ANSWER = "Paris is the capital of France and its most populous city."
TEXT = f"[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]"
BODY = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 24, "total_tokens": 144},
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
NUMBER = re.compile(rb"number (\d+)")
MEAN, P99, CAP = 0.2, 2.0, 20.0


def latencies(count: int) -> list[float]:
    """The log-normal latency of each question, in seconds; the same in every process."""
    # mean = exp(mu + s^2/2) and p99 = exp(mu + z s): a quadratic in s.
    z = 2.3263
    s = z - math.sqrt(z * z - 2 * math.log(P99 / MEAN))
    mu = math.log(MEAN) - s * s / 2
    rng = random.Random(20260101)
    return [min(CAP, rng.lognormvariate(mu, s)) for _ in range(count)]


TABLE = latencies(100_000)


class Server(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = (
                int(head[at + 15 : head.find(b"\r", at) if head.find(b"\r", at) > 0 else None])
                if at >= 0
                else 0
            )
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"post /200/"):
            self.loop.call_later(0.2, self.send)
        elif head.startswith(b"post /lognormal/"):
            found = NUMBER.findall(body)
            self.loop.call_later(TABLE[int(found[-1]) % len(TABLE)], self.send)
        else:
            self.send()

    def send(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(REPLY)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    asyncio.run(main())
