"""The transports that are compared, each driven as httpx's ``AsyncBaseTransport``, without a client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from importlib import metadata
from importlib.util import find_spec
from typing import Any

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi " * 200}]}).encode()
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-bench"}


def _httpx(*, http2: bool = False) -> Any:
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncHTTPTransport(limits=limits, http2=http2), httpx


def _httpx2(*, http2: bool = False) -> Any:
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncHTTPTransport(limits=limits, http2=http2), httpx2


def _httpx_aiohttp() -> Any:
    import aiohttp
    import httpx
    from httpx_aiohttp import AiohttpTransport

    def session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=True)

    return AiohttpTransport(client=session), httpx


def _pyreqwest(*, http2: bool = False) -> Any:
    import httpx
    from pyreqwest.client import ClientBuilder
    from pyreqwest.compatibility.httpx import HttpxTransport

    return HttpxTransport(ClientBuilder().follow_redirects(False).http2(http2).build()), httpx


def _over_aiohttp() -> Any:
    import httpx

    from dspy_stream.lm.transport import AiohttpTransport

    return AiohttpTransport(use_proxy=True), httpx


def _over_pyreqwest(*, http2: bool = False) -> Any:
    import httpx
    from pyreqwest.client import ClientBuilder

    from dspy_stream.lm.transport import PyreqwestTransport

    made = PyreqwestTransport(use_proxy=True)
    if http2:  # which the package does not offer; what it would be
        made._client = ClientBuilder().error_for_status(False).follow_redirects(False).http2(True).build()
    return made, httpx


CANDIDATES: dict[str, Callable[..., Any]] = {
    "httpx": _httpx,
    "httpx2": _httpx2,
    "httpx-aiohttp": _httpx_aiohttp,
    "pyreqwest's for httpx": _pyreqwest,
    "ours over aiohttp": _over_aiohttp,
    "ours over pyreqwest": _over_pyreqwest,
}
SPEAK_HTTP2 = ("httpx", "httpx2", "pyreqwest's for httpx", "ours over pyreqwest")
NEED = {
    "httpx2": ("httpx2",),
    "httpx-aiohttp": ("httpx_aiohttp",),
    "pyreqwest's for httpx": ("pyreqwest",),
    "ours over pyreqwest": ("pyreqwest",),
}
PACKAGES = ("httpx", "httpx2", "httpx-aiohttp", "aiohttp", "pyreqwest", "uvloop")


def not_installed(name: str) -> str:
    """What a transport needs and is not there; empty where nothing is missing."""
    return ", ".join(package for package in NEED.get(name, ()) if find_spec(package) is None)


def versions() -> str:
    """What is installed of it."""
    found = []
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


class Caller:
    """One transport; requests are made the way it wants them."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self.transport, self.library = CANDIDATES[name](**options)
        self._endpoints: dict[str, Any] = {}

    def request(self, url: str, seconds: float) -> Any:
        """A POST that may take so long."""
        if self.name.startswith("ours"):
            from dspy_stream.lm.pools import Call
            from dspy_stream.lm.transport import Endpoint

            endpoint = self._endpoints.get(url)
            if endpoint is None:
                endpoint = self._endpoints[url] = Endpoint(url, HEADERS, self.transport)
            return Call(endpoint, BODY, None, seconds)
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        return self.library.Request(
            "POST", url, headers=HEADERS, content=BODY, extensions={"timeout": timeout}
        )

    @contextlib.asynccontextmanager
    async def streamed(self, url: str, *, seconds: float = 30.0) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of one answer, asked for as they come."""
        request = self.request(url, seconds)
        if self.name.startswith("ours"):
            request.streamed = True
        async with self._sent(request) as pieces:
            yield pieces

    @contextlib.asynccontextmanager
    async def _sent(self, request: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        response = await self.transport.handle_async_request(request)
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}")
        try:
            yield response.stream.__aiter__()
        finally:
            await response.stream.aclose()

    async def post(self, url: str, *, seconds: float = 30.0) -> bytes:
        """One whole answer."""
        async with self._sent(self.request(url, seconds)) as pieces:
            return b"".join([bytes(piece) async for piece in pieces])

    async def close(self) -> None:
        """Let go of its connections."""
        with contextlib.suppress(Exception):
            await self.transport.aclose()
