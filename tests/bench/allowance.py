"""A model server with a limit: so many requests a second, and 429 without a word for those above it.

    POST /bucket/RATE/BURST/...   a token bucket
    POST /window/RATE/0/...       so many in each second of the clock
    POST /count/...               what was taken and refused since the last time it was asked, as JSON

Answers take 200 ms, refusals no time. Prints its port, serves until its input is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from server import Server as Unlimited

BUSY = b'{"error":{"message":"too many requests","type":"requests","code":"rate_limit_exceeded"}}'
REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    % (
        len(BUSY),
        BUSY,
    )
)
LATENCY = 0.2


class Allowance:
    """What is left, and what has happened."""

    def __init__(self) -> None:
        self.level = None
        self.at = 0.0
        self.window = -1
        self.forget()

    def forget(self) -> None:
        self.taken: list[float] = []
        self.refused = 0

    def admit(self, kind: bytes, rate: float, burst: float) -> bool:
        now = time.monotonic()
        if kind == b"bucket":
            full = burst if self.level is None else min(burst, self.level + (now - self.at) * rate)
            self.level, self.at = full, now
            good = full >= 1.0
        else:
            if int(now) != self.window:
                self.window, self.level = int(now), rate
            good = self.level >= 1.0
        if good:
            self.level -= 1.0
            self.taken.append(now)
        else:
            self.refused += 1
        return good


ALLOWANCES: dict[bytes, Allowance] = {}


class Server(Unlimited):
    """One connection; requests on it come one after the other."""

    def answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/count"):
            self.count()
            return
        _, kind, rate, burst, _ = path.split(b"/", 4)
        allowance = ALLOWANCES.setdefault(path, Allowance())
        if allowance.admit(kind, float(rate), float(burst)):
            self.loop.call_later(LATENCY, self.send)
        elif not self.transport.is_closing():
            self.transport.write(REFUSAL)

    def count(self) -> None:
        taken = [at for allowance in ALLOWANCES.values() for at in allowance.taken]
        said = {
            "taken": len(taken),
            "refused": sum(allowance.refused for allowance in ALLOWANCES.values()),
            "seconds": max(taken) - min(taken) if taken else 0.0,
        }
        ALLOWANCES.clear()
        body = json.dumps(said).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)


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
