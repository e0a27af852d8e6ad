"""Whose batch API answers for a model, and where it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from dspy_stream.clock import Clock
from dspy_stream.errors import FlowError
from dspy_stream.lm.address import Address
from dspy_stream.lm.base import LM
from dspy_stream.lm.batch.anthropic import AnthropicBatches
from dspy_stream.lm.batch.codec import BatchCodec
from dspy_stream.lm.batch.openai import OpenAIBatches
from dspy_stream.lm.cost import Price, price_of
from dspy_stream.lm.model import Model
from dspy_stream.lm.providers import locate
from dspy_stream.lm.providers.format import Format
from dspy_stream.lm.secret import Secret

if TYPE_CHECKING:
    from dspy_stream.lm.batch.api import BatchApi

__all__ = ["BatchTarget", "target_of"]

_KNOWN: Final = ("openai", "anthropic")


@dataclass(frozen=True, slots=True)
class BatchTarget:
    """The batch API of a model. ``name`` tells lanes apart: provider, server and model, no key.

    ``price`` is that of a call in a batch.
    """

    name: str
    model: str
    provider: str
    address: Address
    format: Format
    codec: BatchCodec
    secret: Secret | None
    price: Price | None

    def api(self) -> BatchApi:
        """Calls to it, over a connection pool."""
        from dspy_stream.lm.batch.api import BatchApi  # the HTTP library is loaded when it is needed

        key = self.secret.reveal(self.address.origin) if self.secret is not None else None
        return BatchApi(
            self.codec,
            self.address,
            self.format.headers(key),
            model=self.model,
            provider=self.provider,
            secret=self.secret,
        )


def target_of(model: Model, clock: Clock) -> BatchTarget:
    """The batch API of a model; nothing is asked.

    Raises:
        FlowError: there is none, or none that is known here.
        LMConfigurationError: the model cannot be called with its settings.
    """
    prefix = model.model.partition("/")[0]
    if not isinstance(model, LM) or prefix not in _KNOWN:
        raise FlowError(
            f"lane='batch': {model.model} has no batch API that is known here; models of "
            f"{' and '.join(f'{name}/' for name in _KNOWN)} have one. Leave the lane out to call it directly"
        )
    if model.endpoints:
        raise FlowError(
            f"lane='batch': {model.model} is in several places or has several keys; batches belong to one "
            "account, so name one"
        )
    target = locate(
        model.model,
        api_base=model.api_base,
        has_key=model._secret is not None,
        model_type=model.model_type,
        options=model.options,
    )
    secret = model._secret if model._secret is not None else target.key
    price = price_of(model.model, model._prices)
    if price is not None:
        price = _scaled(price, price.batch)
    format = target.make(target.model, price=price, now=clock.time)
    return BatchTarget(
        name=f"{prefix} {target.address.origin} {format.path} {target.model}",
        model=model.model,
        provider=prefix,
        address=target.address,
        format=format,
        codec=_codec(prefix, format, clock),
        secret=secret,
        price=price,
    )


def _codec(prefix: str, format: Format, clock: Clock) -> BatchCodec:
    if prefix == "anthropic":
        return AnthropicBatches(format, now=clock.time)
    # Whatever proxy or path the server is behind, the lines of the file name OpenAI's own paths.
    return OpenAIBatches(format, "/v1", now=clock.time)


def _scaled(price: Price, factor: float) -> Price:
    """The price of a call that is part of a batch."""

    def part(value: float | None) -> float | None:
        return None if value is None else value * factor

    return replace(
        price,
        prompt=price.prompt * factor,
        completion=price.completion * factor,
        cached=part(price.cached),
        written=part(price.written),
        long=None if price.long is None else _scaled(price.long, factor),
        batch=1.0,
    )
