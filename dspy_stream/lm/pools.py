"""Connection pools: httpx's transport interface over the HTTP libraries that are used.

pyreqwest's client (hyper) is the default; where its wheels do not reach (Python 3.10), aiohttp's.
For streams it is the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary, finalize

import httpx

from dspy_stream import runtime
from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.address import Address, parse, proxy_for
from dspy_stream.lm.mishaps import WAITING
from dspy_stream.threads import DaemonThreads, interrupts_nobody

if TYPE_CHECKING:
    from dspy_stream.lm.transport import Endpoint

__all__ = ["AiohttpTransport", "Call", "Pool", "PyreqwestTransport", "length_of", "shared"]

_SOCKS: Final = ("socks4", "socks4a", "socks5", "socks5h")

# How long a connection may be idle before it is closed: below the 60 s or more of usual servers,
# so that it is we who close it.
_IDLE_SECONDS: Final = 30.0
# Seconds between two reads of a stream for each that is open; none at all where it would be too short.
_EACH: Final = 0.00008
_SHORTEST: Final = 0.005
_LONGEST: Final = 0.1

# Whatever loads pyreqwest must live as long as the process: once the thread has ended whose memory its
# allocator began with, the next use in a new thread ends the process.
_loading: Final = DaemonThreads(1, "dspy_stream pyreqwest")
_MAX_FIELD: Final = 1 << 16  # bytes of one header of an answer: gateways write long ones


class Call(httpx.Request):
    """A POST, or a GET where there is no body; its constant parts are its endpoint's own.

    ``phase`` says how far it got.

    Building httpx's own request and response, most of it their headers, would cost more than the
    rest of a call. Here they are made when a transport asks for them; the default one does not.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        body: bytes | None,
        idempotency_key: str | None,
        seconds: float,
        *,
        streamed: bool = False,
    ) -> None:
        self.method = "POST" if body is not None else "GET"
        self.url = endpoint.url
        self._content = body or b""
        self.endpoint = endpoint
        self.idempotency_key = idempotency_key
        self.seconds = seconds
        self.streamed = streamed  # its pieces are wanted as they come
        self.phase = WAITING

    @property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # read only, which every transport respects
        """The endpoint's, and the call's own."""
        raw = list(self.endpoint.raw_headers)
        if self.method == "POST":
            raw.append((b"Content-Length", b"%d" % len(self._content)))
        if self.idempotency_key is not None:
            raw.append((b"Idempotency-Key", self.idempotency_key.encode("ascii")))
        return httpx.Headers(raw)

    @property
    def stream(self) -> httpx.ByteStream:  # type: ignore[override]
        """The body."""
        return httpx.ByteStream(self._content)

    @property
    def extensions(self) -> dict[str, Any]:  # type: ignore[override]
        """The time the call may take, for transports that keep it themselves."""
        return {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self.seconds)}


class _Answer(httpx.Response):
    """A response that keeps the library's own headers, which are a case-insensitive mapping too."""

    def __init__(self, status: int, headers: Mapping[str, str], stream: httpx.AsyncByteStream) -> None:
        self.status_code = status
        self.headers = headers  # type: ignore[assignment]
        self.stream = stream


def length_of(headers: Mapping[str, str]) -> int | None:
    """The bytes of a body as its head declares them; None where it does not, or not believably."""
    text = headers.get("content-length")
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else None


class Pool(httpx.AsyncBaseTransport):
    """A transport with a connection pool, counted by the endpoints that share it."""

    users = 0


# Weak, because an endpoint that is dropped without being closed must not keep its pool for ever.
_pools: Final[WeakValueDictionary[tuple[str, bool], Pool]] = WeakValueDictionary()


def shared(address: Address, *, streams: bool) -> httpx.AsyncBaseTransport:
    """The pool of an origin, counted by those who have it; streams keep to one of their own.

    Raises:
        LMConfigurationError: the environment names a proxy that no installed transport speaks to.
    """
    pool = _pools.get((address.origin, streams))
    if pool is None or pool.users == 0:
        kind = _kind(proxy_for(address), streams=streams)
        pool = _pools[address.origin, streams] = kind(use_proxy=not address.is_loopback)
    pool.users += 1
    return pool


def _kind(proxy: str | None, *, streams: bool) -> type[PyreqwestTransport | AiohttpTransport]:
    """The better transport that is installed, of those that speak to the proxy.

    Whole answers cost less with pyreqwest. It hands over the pieces of a stream one by one from
    another thread, and falls behind a thousand streams; aiohttp takes in one turn what has come, and
    knows no proxies but those of HTTP.
    """
    scheme = "http" if proxy is None else proxy.partition(":")[0].lower()
    order = ("aiohttp", "pyreqwest") if streams else ("pyreqwest", "aiohttp")
    for name in order:
        spoken = scheme in ("http", "https") or (name == "pyreqwest" and scheme in _SOCKS)
        if spoken and find_spec(name) is not None:
            return PyreqwestTransport if name == "pyreqwest" else AiohttpTransport
    raise LMConfigurationError(f"the environment names a {scheme}:// proxy, which cannot be used here")


class PyreqwestTransport(Pool):
    """httpx's transport interface over pyreqwest's client.

    pyreqwest does not abort a request whose task is cancelled before the whole answer is there (a
    streamed one: before its head is): its connection stays open until the time of the request is up.
    That is the call's deadline, or, where it comes first, a second after the step's limit for the row.
    """

    def __init__(self, *, use_proxy: bool) -> None:
        self._client = _loading.submit(lambda: _pyreqwest_client(use_proxy=use_proxy)).result()
        self._used = False
        self._flying = 0  # requests without an answer
        self._landed: asyncio.Event | None = None  # awaited by who closes the pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the body is streamed."""
        assert isinstance(request, Call)
        endpoint = request.endpoint
        if not self._used:
            self._used = True
            # Its thread would hand what is answered later to an interpreter that is gone.
            runtime.before_stop(self)
        if endpoint.prepared is None:
            endpoint.prepared = _prepared(endpoint)
        url, headers = endpoint.prepared
        builder = self._client.request(request.method, url).headers(headers)
        builder = builder.timeout(timedelta(seconds=min(request.seconds, _seconds_wanted())))
        if request.idempotency_key is not None:
            builder = builder.header("Idempotency-Key", request.idempotency_key)
        if request.streamed:
            # It would wait for 64 kB before it hands over the first.
            builder = builder.streamed_read_buffer_limit(0)
        if request.method == "POST":
            builder = builder.body_bytes(request._content)
        exchange = builder.build_streamed()
        self._flying += 1
        try:
            response = await exchange.__aenter__()
        except asyncio.CancelledError:
            with contextlib.suppress(RuntimeError):  # it has not begun
                await exchange.__aexit__(None, None, None)
            raise
        finally:
            self._flying -= 1
            if self._landed is not None and self._flying == 0:
                self._landed.set()
        kept = response.headers
        stream = _PyreqwestStream(exchange, response, kept)
        if "content-encoding" in kept:  # one that pyreqwest does not know, be it only "identity"
            named = [(str(name), str(value)) for name, value in kept.items()]
            return httpx.Response(response.status, headers=named, stream=stream)
        return _Answer(response.status, kept, stream)

    async def aclose(self) -> None:
        """Close the pool; returns when those who wait for an answer have heard of it."""
        await self._client.close()
        if self._flying > 0:
            self._landed = asyncio.Event()
            await self._landed.wait()


def _pyreqwest_client(*, use_proxy: bool) -> Any:
    interrupts_nobody()  # the thread that the first client starts for all of them
    builder = (
        import_module("pyreqwest.client")
        .ClientBuilder()
        .error_for_status(False)
        .follow_redirects(False)
        .default_cookie_store(False)
        .referer(False)
        .pool_idle_timeout(timedelta(seconds=_IDLE_SECONDS))
    )
    return (builder if use_proxy else builder.no_proxy()).build()


def _prepared(endpoint: Endpoint) -> tuple[Any, Any]:
    from pyreqwest.http import HeaderMap, Url

    return Url(str(endpoint.url)), HeaderMap(endpoint.headers)


def _seconds_wanted() -> float:
    """How long anybody will wait for what is asked in this context, and a second more.

    More, so that it is the row that ends then, and not an attempt, which would be made again.
    """
    ends = runtime.GIVES_UP.get()
    return math.inf if ends is None else max(0.0, ends - asyncio.get_running_loop().time()) + 1.0


class _PyreqwestStream(httpx.AsyncByteStream):
    """A body piece by piece; where its length is known, nothing is awaited that does not bring any of it."""

    __slots__ = ("_exchange", "_left", "_read")

    def __init__(self, exchange: Any, response: Any, headers: Mapping[str, str]) -> None:
        self._exchange = exchange
        self._read = response.body_reader.read_chunk
        length = length_of(headers)
        self._left = -1 if length is None else length

    def __aiter__(self) -> _PyreqwestStream:
        return self

    async def __anext__(self) -> bytes:
        if self._left == 0 or (part := await self._read()) is None:
            raise StopAsyncIteration
        self._left -= len(part)
        return bytes(part)

    async def aclose(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and self._left != 0:
            await exchange.__aexit__(None, None, None)


class AiohttpTransport(Pool):
    """httpx's transport interface over aiohttp's client, bound to the loop of its first request."""

    def __init__(self, *, use_proxy: bool) -> None:
        self._use_proxy = use_proxy
        self._session: Any = None
        self.reading = 0  # streams that are open

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the body is streamed, and unpacked by aiohttp."""
        if self._session is None:
            self._session = _aiohttp_session()
            runtime.before_stop(self)
            # Not __del__: of a circle that is dropped as a whole, the session might be taken first.
            finalize(self, _close_dropped, self._session)
        assert isinstance(request, Call)
        endpoint = request.endpoint
        if endpoint.prepared is None:
            url = str(endpoint.url)
            proxy = proxy_for(parse(url)) if self._use_proxy else None
            endpoint.prepared = (url, endpoint.headers, {"proxy": proxy, "allow_redirects": False})
        url, headers, options = endpoint.prepared
        if request.idempotency_key is not None:
            headers = {**headers, "Idempotency-Key": request.idempotency_key}
        response = await self._session.request(
            request.method, url, data=request._content or None, headers=headers, **options
        )
        kept = response.headers
        if "content-encoding" in kept:  # unpacked: neither that nor the declared length is true any longer
            gone = ("content-encoding", "content-length")
            kept = httpx.Headers([(name, value) for name, value in kept.items() if name.lower() not in gone])
        stream = _AiohttpStream(response, self) if request.streamed else _AiohttpBody(response)
        return _Answer(response.status, kept, stream)

    async def aclose(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()


def _close_dropped(session: Any) -> None:
    """Close the session of a transport that was dropped, of which aiohttp would complain to the log."""
    if session.closed:
        return
    if session._loop.is_running():
        runtime.close_soon(session.close(), session._loop)
        return
    closing = session.close()
    with contextlib.suppress(StopIteration):
        closing.send(None)  # its loop has ended, and took the connections along: nothing is waited for
    closing.close()


def _aiohttp_session() -> Any:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=_MAX_FIELD,
        max_field_size=_MAX_FIELD,
    )


class _AiohttpBody(httpx.AsyncByteStream):
    """What has come of a body at each read, unpacked."""

    def __init__(self, response: Any) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = self._response.content.readany
        while part := await read():
            yield part

    async def aclose(self) -> None:
        self._response.release()


class _AiohttpStream(_AiohttpBody):
    """A body of tokens, which is read the less often the more of them come at the same time.

    A read costs many times what one more token in it does: a thousand streams are kept up with only
    if each read takes what has come meanwhile.
    """

    def __init__(self, response: Any, pool: AiohttpTransport) -> None:
        super().__init__(response)
        self._pool = pool
        pool.reading += 1
        self._open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in super().__aiter__():
            yield part
            pause = min(_LONGEST, _EACH * self._pool.reading)
            if pause >= _SHORTEST:
                await asyncio.sleep(pause)

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._pool.reading -= 1
        await super().aclose()
