"""Embedder: texts to vectors, by a provider's model or by a function."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from dspy_stream.engine import Ticket
from dspy_stream.lm.embeddings import EmbeddingLM
from dspy_stream.lm.providers.openai.embeddings import vector_of
from dspy_stream.modules.scope import SCOPE, TICKET, process_clients
from dspy_stream.modules.vectors import matrix, of_bytes
from dspy_stream.runtime import Steps, aperform, hop, perform
from dspy_stream.types import Layer, Request, Response

if TYPE_CHECKING:
    from dspy_stream.modules.vectors import Matrix

__all__ = ["Embedder"]


class Embedder:
    """Turn texts into vectors: ``Embedder("openai/text-embedding-3-small")(["hello", "world"])``.

    A model's name is asked for at the provider's embeddings endpoint, over the same connections, limits
    and retries as other models. Each vector is kept in the journal, so that a text is paid for once;
    texts that are wanted at the same time, by however many rows, go together. ``kwargs`` are those of
    ``LM`` (``api_base``, ``api_key``, ``num_retries``, ``timeout``, ``prices``), and options that are sent
    as they are, such as ``dimensions``.

    A function takes a list of texts and ``kwargs``, and returns a vector for each; it may be a
    coroutine function. It is called where the program runs, and nothing is kept.

    Inside a ``forward`` a call lets other rows go on; elsewhere it blocks. Needs the extra ``vectors``.

    Args:
        model: the name, or the function.
        batch_size: texts that go together at most.
        caching: whether vectors of a named model are looked up and kept.

    Raises:
        ValueError: (when called) something other than texts, or vectors that do not fit together.
        LMError: the provider could not be asked.

    >>> lengths = Embedder(lambda texts: [[len(text), 1.0] for text in texts])
    >>> lengths(["a", "abc"]).tolist()
    [[1.0, 1.0], [3.0, 1.0]]
    """

    def __init__(
        self, model: str | Callable[..., Any], batch_size: int = 200, caching: bool = True, **kwargs: Any
    ) -> None:
        if not isinstance(model, str) and not callable(model):
            raise ValueError(f"`model` of an Embedder must be a string or a callable, but got {type(model)}.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least one text goes with a request")
        self.model = model
        self.batch_size = batch_size
        self.caching = caching
        self.default_kwargs = kwargs
        self._lm = EmbeddingLM(model, batch_size=batch_size, **kwargs) if isinstance(model, str) else None

    def __call__(
        self,
        inputs: str | Sequence[str],
        batch_size: int | None = None,
        caching: bool | None = None,
        **kwargs: Any,
    ) -> Matrix:
        """The vectors as rows of a numpy array, in the order of the texts; of a single text its vector."""
        return perform(self._embedded(inputs, batch_size, caching, kwargs))

    async def acall(
        self,
        inputs: str | Sequence[str],
        batch_size: int | None = None,
        caching: bool | None = None,
        **kwargs: Any,
    ) -> Matrix:
        """The same from a coroutine."""
        return await aperform(self._embedded(inputs, batch_size, caching, kwargs))

    def _embedded(
        self,
        inputs: str | Sequence[str],
        batch_size: int | None,
        caching: bool | None,
        kwargs: dict[str, Any],
    ) -> Steps[Matrix]:
        matrix([])  # where numpy is missing, nothing is asked and paid
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("All inputs must be strings.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least one text goes with a request")
        if self._lm is not None:
            cache = self.caching if caching is None else caching
            made = yield from self._asked(
                self._lm,
                [self._lm.question(text, batch_size=batch_size, cache=cache, **kwargs) for text in texts],
            )
        else:
            made = yield from self._called(texts, batch_size or self.batch_size, kwargs)
        if len(made) != len(texts):
            raise ValueError(f"{len(texts)} texts were embedded, and {len(made)} vectors came back")
        return made[0] if isinstance(inputs, str) else made

    def _asked(self, lm: EmbeddingLM, requests: list[Request]) -> Steps[Matrix]:
        scope = SCOPE.get()
        layer = (scope.clients if scope is not None else process_clients()).get(lm)
        look: Callable[[Request], Response | None] = getattr(layer, "peek", _nothing)
        found = [look(request) if request.cache else None for request in requests]
        missing = [number for number, response in enumerate(found) if response is None]
        if missing:
            asked = yield hop(_all(layer, [requests[number] for number in missing]))
            for number, response in zip(missing, asked, strict=True):
                found[number] = response
        responses = [response for response in found if response is not None]
        ticket = TICKET.get() or Ticket()
        for response in responses:
            ticket.count(response, lm.model)
        return of_bytes([vector_of(response.choices[0]) for response in responses])

    def _called(self, texts: list[str], batch_size: int, kwargs: dict[str, Any]) -> Steps[Matrix]:
        assert callable(self.model)
        rows: list[Any] = []
        for start in range(0, len(texts), batch_size):
            made = self.model(texts[start : start + batch_size], **{**self.default_kwargs, **kwargs})
            if inspect.isawaitable(made):
                made = yield made
            rows.extend(made)
        return matrix(rows)

    def __repr__(self) -> str:
        return f"Embedder({self.model!r})"


def _nothing(_request: Request) -> None:
    return None


def _all(layer: Layer, requests: list[Request]) -> Coroutine[Any, Any, list[Response]]:
    async def ask() -> list[Response]:
        return list(await asyncio.gather(*(layer(request) for request in requests)))

    return ask()
