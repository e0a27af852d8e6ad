"""The innermost layer: one request to a provider, one attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_stream.errors import LMError
from dspy_stream.lm.deadline import seconds_left
from dspy_stream.lm.providers import Format
from dspy_stream.lm.secret import Secret
from dspy_stream.types import Request, Response

if TYPE_CHECKING:
    from dspy_stream.lm.transport import Endpoint

__all__ = ["Client"]


class Client:
    """Encode, post, decode. Whatever fails is an LM error that names the model.

    A retry of a call carries the same ``Idempotency-Key`` as its first attempt, even after a
    restart: it is the name under which the answer will be kept.
    """

    __slots__ = ("_endpoint", "_format", "_model", "_provider", "_secret", "_timeout")

    def __init__(
        self,
        endpoint: Endpoint,
        format: Format,
        *,
        model: str,
        provider: str,
        secret: Secret | None,
        timeout: float,
    ) -> None:
        self._endpoint = endpoint
        self._format = format
        self._model = model
        self._provider = provider
        self._secret = secret
        self._timeout = timeout

    async def __call__(self, request: Request) -> Response:
        """One attempt, within the timeout or what is left of the call's budget."""
        name = request.journal_key()
        try:
            raw = await self._endpoint.post(
                self._format.encode(request),
                deadline=seconds_left(self._timeout),
                idempotency_key=name.hex() if name is not None else None,
            )
            # A server may repeat what it was sent, in an error or in an answer.
            body = raw.body if self._secret is None else self._secret.scrub_bytes(raw.body)
            return self._format.decode(raw.status, raw.headers, body)
        except LMError as error:
            error.model = error.model or self._model
            error.provider = error.provider or self._provider
            raise

    async def aclose(self) -> None:
        """Let go of the connection pool."""
        await self._endpoint.aclose()
