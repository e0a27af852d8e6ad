"""One exchange with a server: bytes out, bytes in, every failure an LM error.

The boundary is httpx's ``AsyncBaseTransport``, driven directly: any transport written for it fits
under :class:`Endpoint`, and so does a plain function in a test (:data:`FakeTransport`). httpx's
own client and connection pool are not used, because their cost per request grows with the number
in flight. The transports are those of :mod:`dspy_stream.lm.pools`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import httpx

from dspy_stream.errors import LMError, LMIncompleteError, LMProviderError
from dspy_stream.lm.address import parse as parse_address
from dspy_stream.lm.deadline import Within
from dspy_stream.lm.mishaps import READING, WAITING, hung_up, mapped
from dspy_stream.lm.pools import AiohttpTransport, Call, Pool, PyreqwestTransport, length_of, shared

__all__ = [
    "MAX_BYTES",
    "AiohttpTransport",
    "Endpoint",
    "FakeTransport",
    "PyreqwestTransport",
    "RawResponse",
    "Receive",
]

MAX_BYTES: Final = 8 * 1024 * 1024

FakeTransport = httpx.MockTransport


class RawResponse(NamedTuple):
    """What came back: status, headers by lower-case name, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Receive = Callable[[int, Mapping[str, str]], Callable[[bytes], object]]
"""Given status and headers of an answer, the function that takes the pieces of its body.

It may return True, for enough: it is given no further piece then, and the body has a second to end.
"""

_REST: Final = 1.0


class Endpoint:
    """One URL with prepared headers, over the connection pool of its origin.

    ``headers`` are sent with every request and may hold the key. Redirects are not followed,
    certificates are checked, and a proxy named by the environment is used except for this machine.
    ``streams`` says that it is for :meth:`stream`, for which another transport is the better one.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        streams: bool = False,
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
        self._transport = transport if transport is not None else shared(address, streams=streams)
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
        return await self._within(Call(self, body, idempotency_key, deadline), max_bytes, None)

    async def stream(
        self,
        body: bytes,
        receive: Receive,
        *,
        deadline: float,
        max_bytes: int = MAX_BYTES,
        idempotency_key: str | None = None,
    ) -> RawResponse:
        """As :meth:`post`, but the pieces of the body are handed over as they come.

        ``receive`` is called once, when the head of an answer is there, and what it returns with
        every piece, unpacked and in order. What these raise is raised on, if it is an LMError.
        Returns when the body has ended, however it looked; its own ``body`` is empty.

        Raises:
            LMError: as :meth:`post`.
        """
        return await self._within(
            Call(self, body, idempotency_key, deadline, streamed=True), max_bytes, receive
        )

    async def get(
        self, receive: Receive | None = None, *, deadline: float, max_bytes: int = MAX_BYTES
    ) -> RawResponse:
        """As :meth:`post`, or as :meth:`stream` with a ``receive``, but a GET without a body.

        Raises:
            LMError: as :meth:`post`.
        """
        return await self._within(Call(self, None, None, deadline), max_bytes, receive)

    async def _within(self, call: Call, max_bytes: int, receive: Receive | None) -> RawResponse:
        try:
            limit = Within(call.seconds)
            with limit:
                try:
                    answer = await self._exchange(call, max_bytes, receive, limit)
                except Exception as error:  # any library's; only a dead connection is handled
                    limit.heed()
                    if not self._used or not hung_up(error, call.phase):
                        raise
                    answer = await self._exchange(call, max_bytes, receive, limit)
                limit.heed()
        except LMError:
            raise
        except Exception as error:  # noqa: BLE001  mapped here and nowhere else; its cause may show the request
            raise mapped(error, self.host, call.phase, call.seconds) from None
        self._used = True
        return answer

    async def _exchange(
        self, call: Call, max_bytes: int, receive: Receive | None, limit: Within
    ) -> RawResponse:
        call.phase = WAITING
        response = await self._transport.handle_async_request(call)
        call.phase = READING
        headers = response.headers
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        parts: list[bytes] = []
        try:
            limit.heed()
            packed = "content-encoding" in headers
            declared = None if packed else length_of(headers)
            if declared is not None and declared > max_bytes:
                raise _too_long(self.host, max_bytes)
            take = parts.append if receive is None else receive(response.status_code, headers)
            size = 0
            async for part in response.aiter_bytes() if packed else stream:
                limit.heed()
                size += len(part)
                if size > max_bytes:
                    raise _too_long(self.host, max_bytes)
                if take(part) is True:
                    take = _nothing
                    limit.at_most(_REST)
        finally:
            await stream.aclose()
        if declared is not None and size != declared:
            raise LMIncompleteError(f"{self.host}: the answer has {size} of {declared} bytes")
        return RawResponse(response.status_code, headers, parts[0] if len(parts) == 1 else b"".join(parts))

    async def aclose(self) -> None:
        """Let go of the pool; it is closed when the last of its endpoints is."""
        transport, self._transport = self._transport, httpx.MockTransport(_closed)
        if isinstance(transport, Pool):
            transport.users -= 1
            if transport.users == 0:
                await transport.aclose()


def _nothing(_part: bytes) -> None:
    """Nobody takes any more."""


def _closed(_request: httpx.Request) -> httpx.Response:
    raise RuntimeError("this model client has been closed")


def _too_long(host: str, max_bytes: int) -> LMProviderError:
    return LMProviderError(f"{host}: the answer is longer than {max_bytes:,} bytes and was not read on")
