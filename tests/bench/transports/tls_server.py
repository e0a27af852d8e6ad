"""The bench's constant server over TLS: ``tls_server.py CERTIFICATE KEY``.

After an answer to /close/... it closes the connection.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from server import REPLY
from server import Server as Plain


class Server(Plain):
    """One connection; requests on it come one after the other."""

    def answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"post /close/"):
            self.transport.write(REPLY.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            self.transport.close()
        else:
            super().answer(head, body)


async def main() -> None:
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=4096, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    asyncio.run(main())
