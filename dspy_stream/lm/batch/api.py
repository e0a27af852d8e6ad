"""Calls to a provider's batch API: one attempt each, every failure an LM error that names the model."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from dspy_stream.errors import LMError, LMUnsupportedModelError
from dspy_stream.lm.address import Address
from dspy_stream.lm.batch.codec import BatchCodec, Page, State
from dspy_stream.lm.secret import Secret
from dspy_stream.lm.transport import Endpoint, RawResponse

__all__ = ["BatchApi"]

T = TypeVar("T")
Read = Callable[[int, Mapping[str, str], bytes], T]

_SECONDS: Final = 60.0
# The slowest line that may be used for a file of requests or of results, in bytes a second.
_SLOWEST: Final = 100_000
_LARGEST: Final = 4_000_000_000
_LONGEST_LINE: Final = 16_000_000


class BatchApi:
    """The batch API of one model's server. ``headers`` are those of a call, with the key."""

    def __init__(
        self,
        codec: BatchCodec,
        address: Address,
        headers: Mapping[str, str],
        *,
        model: str,
        provider: str,
        secret: Secret | None,
    ) -> None:
        self.codec = codec
        self.model = model
        self.provider = provider
        self._address = address
        self._headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
        self._secret = secret
        # Holds on to the connection pool between two calls.
        self._pool = Endpoint(address.url, {})

    async def upload(self, lines: Sequence[bytes]) -> str:
        """Upload a file of requests; its id."""
        assert self.codec.upload_path is not None
        kind, body = self.codec.upload(lines, secrets.token_hex(24))
        return await self._post(self.codec.upload_path, kind, body, None, self.codec.uploaded)

    async def create(self, record_id: str, file_id: str | None, lines: Sequence[bytes]) -> State:
        """Create a batch. A failure other than a refusal leaves open whether it was created."""
        body = self.codec.create(record_id, file_id, lines)
        return await self._post(self.codec.path, "application/json", body, record_id, self.codec.state)

    async def state(self, batch_id: str) -> State:
        """Look at a batch."""
        return await self._get(self.codec.state_path(batch_id), "", self.codec.state)

    async def listed(self, after: str | None) -> Page:
        """A page of the account's batches, newest first."""
        return await self._get(self.codec.path, self.codec.list_query(after), self.codec.listed)

    async def results(self, result: str, take: Callable[[bytes], None]) -> None:
        """Hand over a file of results line by line, as it comes; a line that is too long is left out.

        Raises:
            LMError: it could not be read to its end.
        """
        lines = _Lines(lambda line: take(self._scrubbed(line)))
        refused: list[bytes] = []

        def receive(status: int, _headers: Mapping[str, str]) -> Callable[[bytes], object]:
            return lines.feed if 200 <= status < 300 else refused.append

        path = self.codec.result_path(result)
        raw = await self._within(path, "", self._headers, receive)
        if not 200 <= raw.status < 300:
            raise self._named(self.codec.refused(raw.status, raw.headers, self._scrubbed(b"".join(refused))))
        lines.end()

    async def aclose(self) -> None:
        """Let go of the connection pool."""
        await self._pool.aclose()

    async def _within(
        self,
        path: str,
        query: str,
        headers: Mapping[str, str],
        receive: Callable[[int, Mapping[str, str]], Callable[[bytes], object]] | None = None,
    ) -> RawResponse:
        endpoint = Endpoint(self._url(path, query), headers)
        try:
            if receive is None:
                return await endpoint.get(deadline=_SECONDS, max_bytes=_LONGEST_LINE)
            seconds = _SECONDS + self.codec.limits.bytes / _SLOWEST
            return await endpoint.get(receive, deadline=seconds, max_bytes=_LARGEST)
        except LMError as error:
            raise self._named(error) from None
        finally:
            await endpoint.aclose()

    async def _get(self, path: str, query: str, read: Read[T]) -> T:
        raw = await self._within(path, query, self._headers)
        return self._read(raw, read)

    async def _post(self, path: str, kind: str, body: bytes, name: str | None, read: Read[T]) -> T:
        endpoint = Endpoint(self._url(path, ""), {**self._headers, "Content-Type": kind})
        try:
            seconds = _SECONDS + len(body) / _SLOWEST
            raw = await endpoint.post(body, deadline=seconds, idempotency_key=name)
        except LMError as error:
            raise self._named(error) from None
        finally:
            await endpoint.aclose()
        try:
            return self._read(raw, read)
        except LMUnsupportedModelError as error:
            error.message = (
                f"there is no batch API at {self._address.host}{path}, or not for this model: {error}"
            )
            error.args = (error.message,)
            raise

    def _read(self, raw: RawResponse, read: Read[T]) -> T:
        try:
            return read(raw.status, raw.headers, self._scrubbed(raw.body))
        except LMError as error:
            raise self._named(error) from None

    def _scrubbed(self, body: bytes) -> bytes:
        return body if self._secret is None else self._secret.scrub_bytes(body)

    def _url(self, path: str, query: str) -> str:
        url = self._address.join(path)
        return f"{url}{'&' if '?' in url else '?'}{query}" if query else url

    def _named(self, error: LMError) -> LMError:
        error.model = error.model or self.model
        error.provider = error.provider or self.provider
        if error.request_id is not None and self._secret is not None:
            error.request_id = self._secret.scrub(error.request_id)
        return error


class _Lines:
    """Pieces of a file as lines."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Hand over the lines that end in this piece."""
        *whole, rest = piece.split(b"\n")
        if whole:
            self._line(b"".join([*self._rest, whole[0]]))
            for line in whole[1:]:
                self._line(line)
            self._rest, self._size = [], 0
        self._size += len(rest)
        if self._size <= _LONGEST_LINE:
            self._rest.append(rest)

    def end(self) -> None:
        """The last line may have no end of its own."""
        self._line(b"".join(self._rest))

    def _line(self, line: bytes) -> None:
        if line.strip() and len(line) <= _LONGEST_LINE:
            self._take(line)
