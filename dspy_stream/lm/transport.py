"""The one file that knows the HTTP library: bytes out, bytes in, every failure an LM error.

The boundary is httpx's ``AsyncBaseTransport``, driven directly: any transport written for it fits
under :class:`Endpoint`, and so does a plain function in a test (:data:`FakeTransport`). httpx's
own client and connection pool are not used, because their cost per request grows with the number
in flight. The default transport is pyreqwest's client (hyper); where its wheels do not reach
(Python 3.10), aiohttp's.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from weakref import WeakValueDictionary

import httpx

from dspy_stream.errors import (
    LMConfigurationError,
    LMError,
    LMIncompleteError,
    LMProviderError,
    LMTimeoutError,
    LMTransportError,
)
from dspy_stream.lm.address import Address
from dspy_stream.lm.address import parse as parse_address
from dspy_stream.lm.deadline import Within

__all__ = ["MAX_BYTES", "AiohttpTransport", "Endpoint", "FakeTransport", "PyreqwestTransport", "RawResponse"]

MAX_BYTES: Final = 8 * 1024 * 1024

# How long a connection may be idle before it is closed: below the 60 s or more of usual servers,
# so that it is we who close it.
_IDLE_SECONDS: Final = 30.0
_WAITING: Final = "waiting for the answer"
_READING: Final = "reading the answer"
_CONNECTING: Final = "connecting"

FakeTransport = httpx.MockTransport


@dataclass(frozen=True, slots=True)
class RawResponse:
    """What came back: status, headers by lower-case name, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Call(httpx.Request):
    """A POST whose constant parts are its endpoint's own; ``phase`` says how far it got.

    Building httpx's own request and response, most of it their headers, would cost more than the
    rest of a call. Here they are made when a transport asks for them; the default one does not.
    """

    def __init__(self, endpoint: Endpoint, body: bytes, idempotency_key: str | None, seconds: float) -> None:
        self.method = "POST"
        self.url = endpoint.url
        self._content = body
        self.endpoint = endpoint
        self.idempotency_key = idempotency_key
        self.seconds = seconds
        self.phase = _WAITING

    @property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # read only, which every transport respects
        raw = [*self.endpoint.raw_headers, (b"Content-Length", b"%d" % len(self._content))]
        if self.idempotency_key is not None:
            raw.append((b"Idempotency-Key", self.idempotency_key.encode("ascii")))
        return httpx.Headers(raw)

    @property
    def stream(self) -> httpx.ByteStream:  # type: ignore[override]
        return httpx.ByteStream(self._content)

    @property
    def extensions(self) -> dict[str, Any]:  # type: ignore[override]
        return {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self.seconds)}


class _Answer(httpx.Response):
    """A response that keeps the library's own headers, which are a case-insensitive mapping too."""

    def __init__(self, status: int, headers: Mapping[str, str], stream: httpx.AsyncByteStream) -> None:
        self.status_code = status
        self.headers = headers  # type: ignore[assignment]
        self.stream = stream


class Endpoint:
    """One URL with prepared headers, over the connection pool of its origin.

    ``headers`` are sent with every request and may hold the key. Redirects are not followed,
    certificates are checked, and a proxy named by the environment is used except for this machine.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        address = parse_address(url)
        self.url: Final = httpx.URL(url)
        self.host: Final = self.url.netloc.decode("ascii")
        self.headers: Final = dict(headers)
        self.raw_headers: Final = [
            (b"Host", self.url.netloc),
            *((name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()),
        ]
        self.prepared: Any = None  # the transport's own form of URL and headers
        self._transport = transport if transport is not None else _shared(address)
        self._used = False

    async def post(
        self,
        body: bytes,
        *,
        deadline: float,
        max_bytes: int = MAX_BYTES,
        idempotency_key: str | None = None,
    ) -> RawResponse:
        """Send ``body`` and read the whole answer, whatever its status, within ``deadline`` seconds.

        A pooled connection that turns out to be dead is replaced once, without a word.

        Raises:
            LMTimeoutError: the deadline passed, the body included.
            LMIncompleteError: the answer was cut short.
            LMTransportError: no answer came.
            LMProviderError: the answer is longer than ``max_bytes``, unpacked.
            LMConfigurationError: the server's certificate is not trusted.
        """
        call = _Call(self, body, idempotency_key, deadline)
        try:
            with Within(deadline):
                try:
                    answer = await self._exchange(call, max_bytes)
                except Exception as error:  # any library's; only a dead connection is handled
                    if not self._used or not _hung_up(error, call):
                        raise
                    answer = await self._exchange(call, max_bytes)
        except LMError:
            raise
        except Exception as error:  # noqa: BLE001  mapped here and nowhere else; its cause may show the request
            raise _mapped(error, call) from None
        self._used = True
        return answer

    async def _exchange(self, call: _Call, max_bytes: int) -> RawResponse:
        call.phase = _WAITING
        response = await self._transport.handle_async_request(call)
        call.phase = _READING
        headers = response.headers
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        try:
            packed = "content-encoding" in headers
            declared = None if packed else _length(headers.get("content-length"))
            if declared is not None and declared > max_bytes:
                raise _too_long(self.host, max_bytes)
            parts: list[bytes] = []
            size = 0
            async for part in response.aiter_bytes() if packed else stream:
                size += len(part)
                if size > max_bytes:
                    raise _too_long(self.host, max_bytes)
                parts.append(part)
        finally:
            await stream.aclose()
        if declared is not None and size != declared:
            raise LMIncompleteError(f"{self.host}: the answer has {size} of {declared} bytes")
        return RawResponse(response.status_code, headers, parts[0] if len(parts) == 1 else b"".join(parts))

    async def aclose(self) -> None:
        """Let go of the pool; it is closed when the last of its endpoints is."""
        transport, self._transport = self._transport, httpx.MockTransport(_closed)
        if isinstance(transport, _Pool):
            transport.users -= 1
            if transport.users == 0:
                await transport.aclose()


def _closed(_request: httpx.Request) -> httpx.Response:
    raise RuntimeError("this model client has been closed")


def _length(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else None


def _too_long(host: str, max_bytes: int) -> LMProviderError:
    return LMProviderError(f"{host}: the answer is longer than {max_bytes:,} bytes and was not read on")


# --------------------------------------------------------------------------- errors, in one place


def _mapped(error: Exception, call: _Call) -> LMError:
    """What a library's error means, with host and phase; never an empty message, never a query string."""
    causes = _causes(error)
    text = " ".join(causes)
    phase = _phase(error, text, call)
    where = f"{call.endpoint.host}, {phase}"
    reason = _URL.sub("", causes[-1]).strip() if causes else type(error).__name__
    if _is(error, "TimeoutError", "TimeoutException"):
        return LMTimeoutError(f"{where}: not finished within {call.seconds:g} s")
    if "certificate" in text.lower():
        return LMConfigurationError(f"{where}: the server's certificate is not trusted: {reason}")
    if phase == _READING:
        return LMIncompleteError(f"{where}: the answer was cut short: {reason}")
    return LMTransportError(f"{where}: {reason}")


_URL: Final = re.compile(r"\(?\bhttps?://\S+\)?")


def _causes(error: BaseException) -> list[str]:
    """What a library says went wrong, the deepest cause last; pyreqwest keeps a list of them."""
    details = getattr(error, "details", None)
    if isinstance(details, dict) and details.get("causes"):
        return [str(cause["message"]) for cause in details["causes"]]
    text = str(error)
    return [text] if text else []


def _phase(error: Exception, text: str, call: _Call) -> str:
    # pyreqwest reads ahead, so that an error of the body may come before its response.
    if "reading a body" in text or "decoding response body" in text:
        return _READING
    if "client error (Connect)" in text or _is(error, "ConnectTimeout", "ClientConnectorError"):
        return _CONNECTING
    if isinstance(error, httpx.ConnectError):
        return _CONNECTING
    return call.phase


def _is(error: Exception, *names: str) -> bool:
    """By name, because a library that is not installed cannot be imported to ask."""
    return any(kind.__name__ in names for kind in type(error).__mro__)


# httpx's and aiohttp's names for it; pyreqwest's is in its causes.
_BROKEN: Final = (
    "RemoteProtocolError",
    "ReadError",
    "WriteError",
    "ServerDisconnectedError",
    "ClientOSError",
)


def _hung_up(error: Exception, call: _Call) -> bool:
    """The peer closed the connection before it answered anything."""
    text = " ".join(_causes(error))
    if _phase(error, text, call) != _WAITING or isinstance(error, TimeoutError):
        return False
    return "client error (SendRequest)" in text or _is(error, *_BROKEN)


# ------------------------------------------------------------------------------------- transports


class _Pool(httpx.AsyncBaseTransport):
    """A transport with a connection pool, counted by the endpoints that share it."""

    users = 0


# Weak, because an endpoint that is dropped without being closed must not keep its pool for ever.
_pools: Final[WeakValueDictionary[str, _Pool]] = WeakValueDictionary()


def _shared(address: Address) -> httpx.AsyncBaseTransport:
    pool = _pools.get(address.origin)
    if pool is None or pool.users == 0:
        pool = _pools[address.origin] = _new_pool(use_proxy=not address.is_loopback)
    pool.users += 1
    return pool


def _new_pool(*, use_proxy: bool) -> _Pool:
    try:
        import pyreqwest  # noqa: F401
    except ImportError:
        return AiohttpTransport(use_proxy=use_proxy)
    return PyreqwestTransport(use_proxy=use_proxy)


class PyreqwestTransport(_Pool):
    """httpx's transport interface over pyreqwest's client.

    pyreqwest does not abort a request whose task is cancelled before the answer begins; the
    deadline handed down with every request bounds how long it can go on unseen.
    """

    def __init__(self, *, use_proxy: bool) -> None:
        from pyreqwest.client import ClientBuilder

        builder = (
            ClientBuilder()
            .error_for_status(False)
            .follow_redirects(False)
            .default_cookie_store(False)
            .referer(False)
            .pool_idle_timeout(timedelta(seconds=_IDLE_SECONDS))
        )
        self._client = (builder if use_proxy else builder.no_proxy()).build()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the body is streamed."""
        assert isinstance(request, _Call)
        endpoint = request.endpoint
        if endpoint.prepared is None:
            endpoint.prepared = _prepared(endpoint)
        url, headers = endpoint.prepared
        builder = self._client.post(url).headers(headers).timeout(timedelta(seconds=request.seconds))
        if request.idempotency_key is not None:
            builder = builder.header("Idempotency-Key", request.idempotency_key)
        exchange = builder.body_bytes(request._content).build_streamed()
        response = await exchange.__aenter__()
        return _Answer(response.status, response.headers, _PyreqwestStream(exchange, response))

    async def aclose(self) -> None:
        """Close the pool."""
        await self._client.close()


def _prepared(endpoint: Endpoint) -> tuple[Any, Any]:
    from pyreqwest.http import HeaderMap, Url

    return Url(str(endpoint.url)), HeaderMap(endpoint.headers)


class _PyreqwestStream(httpx.AsyncByteStream):
    __slots__ = ("_exchange", "_response")

    def __init__(self, exchange: Any, response: Any) -> None:
        self._exchange = exchange
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = self._response.body_reader.read
        while (part := await read()) is not None:
            yield bytes(part)

    async def aclose(self) -> None:
        await self._exchange.__aexit__(None, None, None)


class AiohttpTransport(_Pool):
    """httpx's transport interface over aiohttp's client, bound to the loop of its first request."""

    def __init__(self, *, use_proxy: bool) -> None:
        self._use_proxy = use_proxy
        self._session: Any = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; the body is streamed, and unpacked by aiohttp."""
        if self._session is None:
            self._session = _aiohttp_session(self._use_proxy)
        headers = [(name, value) for name, value in request.headers.multi_items() if name != "host"]
        response = await self._session.request(
            request.method, str(request.url), data=request.read(), headers=headers, allow_redirects=False
        )
        kept = [(k, v) for k, v in response.headers.items() if k.lower() != "content-encoding"]
        if len(kept) != len(response.headers):  # unpacked: its length is no longer the declared one
            kept = [(k, v) for k, v in kept if k.lower() != "content-length"]
        return httpx.Response(response.status, headers=kept, stream=_AiohttpStream(response))

    async def aclose(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()


def _aiohttp_session(use_proxy: bool) -> Any:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=use_proxy,
    )


class _AiohttpStream(httpx.AsyncByteStream):
    def __init__(self, response: Any) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.content.iter_chunked(65536):
            yield part

    async def aclose(self) -> None:
        self._response.release()
