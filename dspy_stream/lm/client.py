"""The innermost layer: one request to a provider, one attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Final

from dspy_stream.errors import LMError
from dspy_stream.lm.deadline import seconds_left
from dspy_stream.lm.providers import Format
from dspy_stream.lm.secret import Secret
from dspy_stream.lm.sse import EventParser
from dspy_stream.runtime import LISTENER
from dspy_stream.types import Delta, Listener, Request, Response

if TYPE_CHECKING:
    from dspy_stream.lm.providers.format import StreamDecoder
    from dspy_stream.lm.transport import Endpoint

__all__ = ["Client"]

_BEHIND: Final = 3  # so many pieces of text in one read are more than a server writes at once


class Client:
    """Encode, post, decode. Whatever fails is an LM error that names the model.

    Where somebody listens, and there are ``streams`` to ask for, the answer is told piece by
    piece as it comes; the response is the same. An attempt that fails after its first piece tells
    a ``restart``.

    A retry of a call carries the same ``Idempotency-Key`` as its first attempt, even after a
    restart: it is the name under which the answer will be kept. Where none is kept, the retry layer
    gives each call a name.

    ``observe`` is given the headers and the status of every answer, errors included.
    """

    __slots__ = ("_endpoint", "_format", "_model", "_observe", "_provider", "_secret", "_streams", "_timeout")

    def __init__(
        self,
        endpoint: Endpoint,
        format: Format,
        *,
        model: str,
        provider: str,
        secret: Secret | None,
        timeout: float,
        streams: Endpoint | None = None,
        observe: Callable[[Mapping[str, str], int], None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._observe = observe
        self._streams = streams
        self._format = format
        self._model = model
        self._provider = provider
        self._secret = secret
        self._timeout = timeout

    async def __call__(self, request: Request) -> Response:
        """One attempt, within the timeout or what is left of the call's budget."""
        listener = LISTENER.get()
        try:
            if listener is not None and self._streams is not None:
                return await self._streamed(request, self._streams, listener)
            return await self._whole(request)
        except LMError as error:
            error.model = error.model or self._model
            error.provider = error.provider or self._provider
            error.request_id = self._masked(error.request_id)
            raise

    async def _whole(self, request: Request) -> Response:
        raw = await self._endpoint.post(
            self._format.encode(request),
            deadline=seconds_left(self._timeout),
            idempotency_key=_name(request),
        )
        if self._observe is not None:
            self._observe(raw.headers, raw.status)
        return self._decode(raw.status, raw.headers, raw.body)

    def _decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        # A server may repeat what it was sent, in an error or in an answer.
        clean = body if self._secret is None else self._secret.scrub_bytes(body)
        response = self._format.decode(status, headers, clean)
        request_id = self._masked(response.request_id)
        return response if request_id == response.request_id else response._replace(request_id=request_id)

    def _masked(self, request_id: str | None) -> str | None:
        """The id of a request, which may be of the headers."""
        return request_id if request_id is None or self._secret is None else self._secret.scrub(request_id)

    async def _streamed(self, request: Request, streams: Endpoint, listener: Listener) -> Response:
        answer = _Streamed(self._format, self._secret, listener)
        try:
            failed: LMError | None = None
            try:
                await streams.stream(
                    self._format.encode(request, stream=True),
                    answer.receive,
                    deadline=seconds_left(self._timeout),
                    idempotency_key=_name(request),
                )
            except LMError as error:
                failed = error
            if self._observe is not None and answer.status:
                self._observe(answer.headers, answer.status)
            if answer.body is not None and failed is None:
                return self._decode(answer.status, answer.headers, b"".join(answer.body))
            return answer.finish(failed)
        except BaseException:  # whatever ended the attempt: what was told of it does not count
            if answer.told:
                listener(Delta("restart"))
            raise

    async def aclose(self) -> None:
        """Let go of the connection pools."""
        await self._endpoint.aclose()
        if self._streams is not None:
            await self._streams.aclose()


def _name(request: Request) -> str | None:
    name = request.journal_key()
    return name.hex() if name is not None else None


def _merged(deltas: list[Delta], secret: Secret | None) -> Iterator[Delta]:
    """Neighbours of one kind, as one.

    So it costs less to listen the further a busy process falls behind, and it catches up.
    """
    for (kind, choice), some in groupby(deltas, key=lambda delta: (delta.kind, delta.choice)):
        text = "".join([delta.text for delta in some])
        # A key that came in several events shows only now.
        yield Delta(kind, text if secret is None else secret.scrub(text), choice)


class _Streamed:
    """One attempt at a streamed answer: from pieces of a body to deltas told and a response.

    What is not a stream of events, an error or an answer in one piece, is kept as ``body``.
    """

    __slots__ = (
        *("_decoder", "_format", "_listener", "_parser", "_secret"),
        *("begun", "body", "headers", "status", "told"),
    )

    def __init__(self, format: Format, secret: Secret | None, listener: Listener) -> None:
        self._format = format
        self._secret = secret
        self._listener = listener
        self._parser = EventParser()
        self._decoder: StreamDecoder | None = None
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.begun = False
        self.body: list[bytes] | None = None
        self.told = False

    def receive(self, status: int, headers: Mapping[str, str]) -> Callable[[bytes], object]:
        """Take the head of the answer; what takes its pieces."""
        self.status = status
        self.headers = headers
        if not 200 <= status < 300:
            self.body = []
            return self.body.append
        self._decoder = self._format.stream_decoder(headers)
        return self._take

    def _take(self, piece: bytes) -> bool:
        if not self.begun:
            self._begin(piece)
        if self.body is not None:
            self.body.append(piece)
            return False
        decoder, secret = self._decoder, self._secret
        assert decoder is not None
        deltas: list[Delta] = []
        for event, data in self._parser.feed(piece):
            if decoder.over:
                break
            deltas += decoder.feed(event, data if secret is None else secret.scrub_bytes(data))
        if deltas:
            self.told = True
            for delta in deltas if len(deltas) < _BEHIND else _merged(deltas, secret):
                self._listener(delta)
        return decoder.over

    def _begin(self, piece: bytes) -> None:
        first = piece.lstrip(b" \t\r\n")[:1]
        self.begun = bool(first)
        # A server that knows no streams sends an object, a proxy a page. Neither can begin an event.
        if first in (b"{", b"[", b"<"):
            self.body = []

    def finish(self, failed: LMError | None) -> Response:
        """The response; ``failed`` is how the transport ended.

        An answer whose terminal event had arrived is whole, whatever became of the connection.
        """
        if self._decoder is None or self.body is not None or (failed is not None and not failed.retryable):
            assert failed is not None
            raise failed
        try:
            response = self._decoder.finish()
        except LMError as error:
            raise failed or error from None
        if self._secret is None:
            return response
        # A key that came in several events shows only now.
        data = response.to_bytes()
        clean = self._secret.scrub_bytes(data)
        return response if clean is data else Response.from_bytes(clean)._replace(cached=False)
