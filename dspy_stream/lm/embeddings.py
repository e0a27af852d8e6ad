"""A model that turns texts into vectors, over the same layers as the others."""

from __future__ import annotations

import hashlib
import random
from typing import Any, Final

from dspy_stream.clock import Clock
from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.backends import Keys, bound
from dspy_stream.lm.batcher import BATCH, Batcher, Whole
from dspy_stream.lm.cache import Journal
from dspy_stream.lm.client import Client
from dspy_stream.lm.cost import PriceSource, price_of
from dspy_stream.lm.kwargs import check_options
from dspy_stream.lm.limit import Limit, Limits, limiter_for
from dspy_stream.lm.model import CLOCK, Lane
from dspy_stream.lm.providers import Format, Target, locate
from dspy_stream.lm.providers.openai.embeddings import EmbeddingsFormat
from dspy_stream.lm.retry import Retry
from dspy_stream.lm.secret import Secret
from dspy_stream.lm.settled import SettledLM
from dspy_stream.lm.stack import Wrap
from dspy_stream.types import Head, Layer, Message, Request

__all__ = ["EmbeddingLM"]

_CHAT: Final = "/chat/completions"
_HEADS: Final = 64


class EmbeddingLM(SettledLM):
    """An embedding model of some provider, asked in the form that its provider speaks.

    Names, keys and addresses are those of :class:`~dspy_stream.lm.base.LM`. Texts that are asked for at
    the same time go together, at most ``batch_size`` of them, and no more than the provider takes; each
    vector has its own entry in the journal. ``options`` are sent as they are, but for ``dimensions``, which
    has another name at some.

    Raises:
        LMConfigurationError: an unknown provider, a bad address, or a bad option.
    """

    __slots__ = ("_heads", "_prices", "_secret", "api_base", "batch_size", "limits", "timeout")

    api_base: str | None
    batch_size: int
    limits: Limits | None
    timeout: float
    _heads: dict[Any, Head]
    _prices: PriceSource | None
    _secret: Secret | None

    def __init__(
        self,
        model: str,
        *,
        api_base: str | None = None,
        api_key: Keys = None,
        batch_size: int = 200,
        cache: bool = True,
        num_retries: int = 3,
        timeout: float = 120.0,
        prices: PriceSource | None = None,
        limits: Limits | None = None,
        **options: Any,
    ) -> None:
        api_base = options.pop("base_url", None) or api_base
        if batch_size < 1 or num_retries < 0 or not timeout > 0:
            raise LMConfigurationError(
                f"{model}: batch_size is at least 1, num_retries at least 0, and timeout above 0", model=model
            )
        if api_key is not None and not isinstance(api_key, (str, Secret)):
            raise LMConfigurationError(f"{model}: an embedding model has one api_key")
        self._fill(
            model=model,
            options=check_options(options),
            cache=cache,
            rollout_id=None,
            api_base=api_base,
            batch_size=batch_size,
            limits=limits,
            num_retries=num_retries,
            timeout=float(timeout),
            _heads={},
            _prices=prices,
            _secret=bound(model, api_base, api_key),
        )

    def question(
        self, text: str, *, batch_size: int | None = None, cache: bool | None = None, **options: Any
    ) -> Request:
        """The request for one text's vector."""
        merged = check_options({**self.options, **options})
        key = (batch_size, repr(sorted(merged.items())))
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            head = Head(self.model, (), merged, {BATCH: batch_size} if batch_size else {})
            self._heads[key] = head
        # The role keeps the journal from giving a vector for an answer to the same words.
        return Request(head, (Message("text", text),), None, self.cache if cache is None else cache)

    def connect(
        self,
        journal: Journal | None = None,
        *,
        clock: Clock = CLOCK,
        rng: random.Random | None = None,
        wrap: Wrap | None = None,
        lane: Lane | None = None,  # noqa: ARG002 - lanes are for answers in text
    ) -> Layer:
        """The stacked layers, whatever lane the answers of others take."""
        return super().connect(journal, clock=clock, rng=rng, wrap=wrap)

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:
        target = locate(
            self.model, api_base=self.api_base, has_key=self._secret is not None, options=self.options
        )
        secret = self._secret if self._secret is not None else target.key
        key = secret.reveal(target.address.origin) if secret is not None else None
        digest = hashlib.blake2b((key or "").encode(), digest_size=8).hexdigest()
        limiter = limiter_for(target.address.origin, digest, self.limits, scope=target.model)
        from dspy_stream.lm.transport import Endpoint  # the HTTP library is loaded when it is needed

        spoken = target.make(target.model, now=clock.time)
        format = _format_of(self.model, target, self._prices, clock)
        client = Client(
            Endpoint(_place(target, spoken, format), spoken.headers(key)),
            format,
            model=self.model,
            provider=target.provider.prefix,
            secret=secret,
            timeout=self.timeout,
            observe=limiter.observer(clock),
        )
        whole = Whole(Limit(client, limiter, clock=clock))
        retry = Retry(whole, num_retries=self.num_retries, timeout=self.timeout, clock=clock, rng=rng)
        return Batcher(retry, self.batch_size, most=format.most)

    def __repr__(self) -> str:
        return f"EmbeddingLM({self.model!r})"


def _format_of(model: str, target: Target, prices: PriceSource | None, clock: Clock) -> EmbeddingsFormat:
    made = target.provider.embeddings
    if made is None:
        raise LMConfigurationError(
            f"{model}: {target.provider.prefix} is not known to have embeddings; "
            "name another provider, or a server that has with api_base=URL",
            model=model,
        )
    return made(target.model, price=price_of(model, prices), now=clock.time)


def _place(target: Target, spoken: Format, format: EmbeddingsFormat) -> str:
    """The URL of the endpoint."""
    base, mark, query = target.address.url.partition("?")
    own = format.url(base)
    if own is not None:
        return own + mark + query
    # A neighbour of the usual one, which is the deployment's at Azure.
    path = spoken.path.removesuffix(_CHAT) if spoken.path.endswith(_CHAT) else ""
    return target.address.join(path + format.path)
