"""A model server in a process of its own: answers that follow from the question, and a log of all calls.

    python tests/chaos/server.py --log calls.jsonl --latency 0.02

It prints its port. What it does with one request is written in the question itself:

    @delay=0.5      answer after so many seconds
    @garbage        an answer that holds no field
    @status=400     refuse with this status
    @hold           answer only when the file --hold is gone

The log has one line when a call arrives (``recv``) and one when its answer goes out (``sent``).
It is only ever appended to, so that it is the oracle for what was paid, however often the client dies.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.oracle import answer_to

_SECTION = re.compile(r"^\[\[ ## (\w+) ## \]\]\n(.*?)\n\n", re.DOTALL | re.MULTILINE)
_WANTED = re.compile(r"^Answer with `\[\[ ## (\w+) ## \]\]`", re.MULTILINE)
_ORDER = re.compile(r"@(\w+)(?:=([\d.]+))?")
_POLL = 0.02


class Server:
    """One listening socket; every request is answered from its own text."""

    def __init__(self, log: Path, *, latency: float, hold: Path | None) -> None:
        self._log = log.open("ab", buffering=0)
        self._latency = latency
        self._hold = hold

    async def serve(self) -> None:
        """Print the port, and serve until killed."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=1 << 22)
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                status, answer = await self._answer(json.loads(body))
                data = json.dumps(answer).encode()
                top = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n"
                writer.write(f"{top}Content-Length: {len(data)}\r\n\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client was killed, or has hung up
        finally:
            writer.close()

    async def _answer(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        texts = [message["content"] for message in asked["messages"] if message["role"] == "user"]
        found = (text for text in reversed(texts) if _WANTED.search(text) and _SECTION.search(text))
        text = next(found, "")  # a question that is no row's is answered, too
        inputs = dict(_SECTION.findall(text))
        wanted = _WANTED.search(text)
        field = wanted[1] if wanted else ""
        ask = hashlib.sha256(json.dumps(asked["messages"]).encode()).hexdigest()[:16]
        self._note("recv", ask, field, inputs)
        orders = dict(_ORDER.findall(inputs.get("question", "")))
        await asyncio.sleep(float(orders["delay"]) if "delay" in orders else self._latency)
        while "hold" in orders and self._hold is not None and self._hold.exists():
            await asyncio.sleep(_POLL)
        self._note("sent", ask, field, inputs)
        if "status" in orders:
            return int(orders["status"]), {"error": {"message": "refused as told", "code": "refused"}}
        value = answer_to(field, inputs)
        content = (
            f"[[ ## {field} ## ]]\n{value}\n\n[[ ## completed ## ]]"
            if "garbage" not in orders
            else "I cannot."
        )
        return 200, _completion(ask, content)

    def _note(self, what: str, ask: str, field: str, inputs: dict[str, str]) -> None:
        line = {"op": what, "ask": ask, "field": field, "question": inputs.get("question", "")}
        self._log.write(json.dumps(line).encode() + b"\n")


def _completion(ask: str, content: str) -> dict[str, Any]:
    return {
        "id": ask,
        "model": "chaos",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
    }


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--hold", type=Path)
    given = parser.parse_args()
    asyncio.run(Server(given.log, latency=given.latency, hold=given.hold).serve())


if __name__ == "__main__":
    main()
