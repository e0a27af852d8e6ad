"""How often a body is read."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dspy_stream.lm.pools import AiohttpTransport, _AiohttpStream


class Body:
    """What has come so far, taken whole by each read."""

    def __init__(self) -> None:
        self.come = b"a"

    async def readany(self) -> bytes:
        while not self.come:
            await asyncio.sleep(0)
        taken, self.come = self.come, b""
        return taken


@pytest.mark.parametrize(("streams", "second"), [(1, b"b"), (1000, b"bc")])
def test_a_stream_is_read_less_often_where_there_are_many(streams: int, second: bytes) -> None:
    async def main() -> bytes:
        transport, body = AiohttpTransport(use_proxy=False), Body()
        response: Any = SimpleNamespace(content=body, release=lambda: None)
        opened = [_AiohttpStream(response, transport) for _ in range(streams)]
        pieces = aiter(opened[0])
        assert await anext(pieces) == b"a"  # the first is never waited for
        body.come = b"b"
        read = asyncio.ensure_future(anext(pieces))
        for _ in range(3):
            await asyncio.sleep(0)
        body.come += b"c"
        found: bytes = await read
        for stream in opened:
            await stream.aclose()
            await stream.aclose()
        assert transport.reading == 0
        return found

    assert asyncio.run(main()) == second
