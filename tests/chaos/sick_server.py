"""The model server with an illness that a test writes into a file while it runs.

    python tests/chaos/sick_server.py --log calls.jsonl --illness illness.json

The file is a JSON object; without it, or with an empty one, the server is well.

    {"status": 503}                       every request is answered with this status
    {"status": 429, "share": 0.9}         so many of them, at random
    {"retry_after": ["2", "abc", null]}   headers to go with it, in turn
    {"reset": true}                       connections are cut before an answer
    {"closed": true}                      nobody listens: connections are refused
    {"after": {"k00007": 400}}            these rows are refused with a status of their own

The log has one line for each request, with the moment it came and what became of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.server import Server

_POLL = 0.01


class SickServer(Server):
    """A server that does what its illness says."""

    def __init__(self, log: Path, illness: Path, latency: float) -> None:
        super().__init__(log, latency=latency, hold=None)
        self._file = illness
        self._rng = random.Random(7)
        self._waits = itertools.count()
        self._open = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def illness(self) -> dict[str, Any]:
        """What the file says now."""
        try:
            return json.loads(self._file.read_bytes() or b"{}")
        except FileNotFoundError:
            return {}

    async def serve(self) -> None:
        """Print the port; listen on it whenever the illness allows."""
        server, port = await self._listen()
        print(port, flush=True)
        listening = True
        while True:
            wanted = not self.illness.get("closed")
            if listening and not wanted:
                server.close()
            elif wanted and not listening:
                server, _ = await self._listen(port)
            listening = wanted
            for writer in tuple(self._writers) if not wanted else ():
                _reset(writer)  # those, too, that were being accepted just then
            await asyncio.sleep(_POLL)

    async def _listen(self, port: int = 0) -> tuple[asyncio.Server, int]:
        """Listen on a port, a free one the first time."""
        while True:
            # Below those that the system gives to clients: one might take it while nobody listens.
            wanted = port or random.SystemRandom().randrange(20_000, 32_000)
            try:
                return await asyncio.start_server(
                    self._connection, "127.0.0.1", wanted, limit=1 << 22
                ), wanted
            except OSError:
                if port:
                    raise

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self._open += 1
                try:
                    await self._serve(head, body, writer)
                finally:
                    self._open -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        illness, well = self.illness, not head.startswith(b"POST")
        status = illness.get("status")
        if status is not None and self._rng.random() >= illness.get("share", 1.0):
            status = None
        for row, own in illness.get("after", {}).items():
            if row.encode() in body:
                status = own
        self._seen(head, body, "reset" if illness.get("reset") else status or 200)
        if illness.get("reset"):
            _reset(writer)
            raise ConnectionResetError
        lines = []
        if status is None:
            status, answer = (200, {"data": []}) if well else await self._answer(json.loads(body))
        else:
            answer = {"error": {"message": "as the test wants it", "code": illness.get("code")}}
            waits = illness.get("retry_after", [None])
            wait = waits[next(self._waits) % len(waits)]
            if wait is not None:
                lines.append(f"Retry-After: {wait}")
        data = json.dumps(answer).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}", "", ""]
        writer.write("\r\n".join([f"HTTP/1.1 {status} X", *lines]).encode() + data)
        await writer.drain()

    def _seen(self, head: bytes, body: bytes, became: Any) -> None:
        key = re.search(rb"(?i)idempotency-key: *(\w+)", head)
        line = {
            "op": "seen",
            "at": time.monotonic(),
            "open": self._open,
            "became": became,
            "key": key[1].decode() if key else None,
            "method": head.split(b" ", 1)[0].decode(),
        }
        self._log.write(json.dumps(line).encode() + b"\n")


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--illness", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    given = parser.parse_args()
    asyncio.run(SickServer(given.log, given.illness, given.latency).serve())


if __name__ == "__main__":
    main()
