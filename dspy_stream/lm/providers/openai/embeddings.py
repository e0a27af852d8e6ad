"""The embeddings format of OpenAI: texts in, vectors out."""

from __future__ import annotations

import base64
import binascii
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NoReturn

import orjson

from dspy_stream.errors import LMIncompleteError
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.counts import Counter
from dspy_stream.lm.providers.format import StreamDecoder
from dspy_stream.lm.providers.openai.dialect import sendable
from dspy_stream.lm.providers.wire import JsonFormat, text_of
from dspy_stream.types import Choice, Request, Response

__all__ = ["EmbeddingsFormat", "vector_of"]

_BYTES: Final = 4


class EmbeddingsFormat(JsonFormat):
    """A request's messages are the texts; each choice of the response is the vector of one.

    A vector travels as the base64 of its 32-bit floats, lowest byte first; :func:`vector_of` reads it.

    >>> format = EmbeddingsFormat("small")
    >>> format.encode(Request.of("openai/small", "hi", dimensions=2))
    b'{"model":"small","dimensions":2,"input":["hi"]}'
    """

    __slots__ = ("path", "stream_path")

    _wanted = "embeddings"
    most: ClassVar[int] = 2048  # texts that go together at most
    renamed: ClassVar[Mapping[str, str]] = {}  # options that have another name there

    def __init__(
        self, model: str, *, price: Price | None = None, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(model, price=price, now=now)
        self.path: Final = "/embeddings"
        self.stream_path: Final[str | None] = None

    def stream_decoder(self, headers: Mapping[str, str]) -> StreamDecoder:
        """There are no streams of vectors."""
        raise NotImplementedError("vectors are not streamed")

    def url(self, base: str) -> str | None:  # noqa: ARG002
        """The address of the endpoint; None where it is a neighbour of that for chat completions."""
        return None

    def _body(self, request: Request, stream: bool) -> bytes:  # noqa: ARG002
        texts = [text_of(message.content) for message in request.messages]
        options = {self.renamed.get(name, name): value for name, value in sendable(request.options).items()}
        return orjson.dumps(self._asked(options, texts))

    def _asked(self, options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        return {"model": self._model, **options, "input": texts}

    def _response(self, value: dict[str, Any], headers: Mapping[str, str]) -> Response | None:
        vectors = self._found(value)
        if not isinstance(vectors, list) or not vectors:
            return None
        counter, tokens = self._counted(value)
        usage = counter.usage(tokens, 0, self._price)
        model, request_id = value.get("model"), headers.get("x-request-id")
        choices = tuple(Choice(_packed(vector)) for vector in vectors)
        return Response(choices, usage, model if isinstance(model, str) else self._model, request_id)

    def _found(self, value: dict[str, Any]) -> Any:
        """The vectors in the order of the texts."""
        data = value.get("data")
        if not isinstance(data, list):
            return None
        if not all(isinstance(item, dict) for item in data):
            _broken("an item is no object")
        if all(isinstance(item.get("index"), int) for item in data):
            data = sorted(data, key=lambda item: int(item["index"]))
        return [item.get("embedding") for item in data]

    def _counted(self, value: dict[str, Any]) -> tuple[Counter, int]:
        counter = Counter(value.get("usage"))
        return counter, counter.take("prompt_tokens") or counter.take("total_tokens")


def _packed(vector: Any) -> str:
    if isinstance(vector, str):  # as the server packs it, where it was asked to
        try:
            data = base64.b64decode(vector, validate=True)
        except binascii.Error:
            _broken("a vector is no base64")
        if not data or len(data) % _BYTES:
            _broken("a vector has no whole number of floats")
        return vector
    if not isinstance(vector, list) or not vector:
        _broken("an item has no vector")
    try:
        floats = array("f", vector)
    except (TypeError, OverflowError):
        _broken("a vector has something other than numbers")
    return base64.b64encode(_little(floats).tobytes()).decode("ascii")


def vector_of(choice: Choice) -> bytes:
    """The vector's 32-bit floats, lowest byte first.

    >>> array("f", vector_of(Choice(_packed([1.0, 0.5])))).tolist()
    [1.0, 0.5]
    """
    return base64.b64decode(choice.text)


def _little(floats: array[float]) -> array[float]:
    if sys.byteorder == "big":
        floats.byteswap()
    return floats


def _broken(why: str) -> NoReturn:
    raise LMIncompleteError(f"the answer holds no embeddings that can be read: {why}")
