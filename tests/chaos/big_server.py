"""A server whose answers are far too big, each in the way that its question names.

    python tests/chaos/big_server.py

Prints its port, and serves until standard input is closed.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = b"x" * 1_000_000
PIECES = 200


def bomb() -> Iterator[bytes]:
    """A gigabyte, packed into a megabyte."""
    zeros = gzip.compress(b" " * 10_000_000)
    for _ in range(100):
        yield zeros


class Big(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer in the way that is asked for."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        way = next((name for name in ("length", "chunked", "bomb", "headers") if name in text), "")
        self.close_connection = True
        try:
            getattr(self, f"_{way}", self._good)()
        except (ConnectionError, TimeoutError):
            pass  # the client has had enough

    def _head(self, *lines: tuple[str, str]) -> None:
        self.send_response(200)
        for name, value in (("Content-Type", "application/json"), ("Connection", "close"), *lines):
            self.send_header(name, value)
        self.end_headers()

    def _length(self) -> None:
        self._head(("Content-Length", str(PIECES * len(PIECE))))
        for _ in range(PIECES):
            self.wfile.write(PIECE)

    def _chunked(self) -> None:
        self._head(("Transfer-Encoding", "chunked"))
        for _ in range(PIECES):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))

    def _bomb(self) -> None:
        self._head(("Content-Encoding", "gzip"))
        for piece in bomb():
            self.wfile.write(piece)

    def _headers(self) -> None:
        self.send_response(200)
        for start in range(0, 100_000, 1000):
            for number in range(start, start + 1000):
                self.send_header(f"X-{number}", "y" * 20)
            self.flush_headers()
        self.end_headers()

    def _good(self) -> None:
        message = {"role": "assistant", "content": "[[ ## answer ## ]]\nfine\n\n[[ ## completed ## ]]"}
        usage = {"prompt_tokens": -1, "completion_tokens": 1e30}
        answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
        body = json.dumps(answer).encode()
        self._head(("Content-Length", str(len(body))))
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Nothing is logged."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Big)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
