"""What a wire format is: pure functions from requests to bytes and from bytes to responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from dspy_stream.lm.cost import Price
from dspy_stream.types import Delta, Request, Response

__all__ = ["Format", "FormatMaker", "StreamDecoder"]


class StreamDecoder(Protocol):
    """One streamed answer, put together from its server-sent events.

    ``over`` says that the event has come after which there is no other.
    """

    @property
    def over(self) -> bool: ...  # noqa: D102

    def feed(self, event: str, data: bytes) -> list[Delta]:
        """Take one event; what it adds to the answer.

        Raises:
            LMError: the event is an error, or not what the format knows.
        """
        ...

    def finish(self) -> Response:
        """The whole answer, as if it had not been streamed.

        Raises:
            LMIncompleteError: the stream ended without its terminal event.
        """
        ...


class Format(Protocol):
    """A wire format, bound to one model.

    A format without streams has a ``stream_path`` of None; its answers come in one piece.
    """

    @property
    def path(self) -> str:
        """Where requests go, below the provider's address."""
        ...

    @property
    def stream_path(self) -> str | None:
        """Where requests for streams go."""
        ...

    def headers(self, key: str | None) -> dict[str, str]:
        """The constant headers of a request."""
        ...

    def encode(self, request: Request, *, stream: bool = False) -> bytes:
        """The body of a request."""
        ...

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        """The response, or an LM error."""
        ...

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder:
        """A decoder for one answer; ``headers`` are those it came with."""
        ...


class FormatMaker(Protocol):
    """Makes the format of one model."""

    def __call__(self, model: str, *, price: Price | None = None, now: Callable[[], float]) -> Format:
        """``now`` is the wall clock."""
        ...
