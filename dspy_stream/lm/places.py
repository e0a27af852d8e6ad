"""From a place where a model can be asked to the layers that ask it there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dspy_stream.clock import Clock
from dspy_stream.lm.backends import Backend
from dspy_stream.lm.balance import Member
from dspy_stream.lm.breaker import Breaker, still_allowed
from dspy_stream.lm.circuit import BreakerPolicy, circuit_for
from dspy_stream.lm.client import Client
from dspy_stream.lm.cost import PriceSource, price_of
from dspy_stream.lm.health import HealthCheck
from dspy_stream.lm.limit import Limit, Limiter, Limits, limiter_for
from dspy_stream.lm.providers import Format, Target, locate
from dspy_stream.lm.secret import Secret
from dspy_stream.types import Layer

if TYPE_CHECKING:
    from dspy_stream.lm.transport import Endpoint

__all__ = ["Manner", "connected"]

_HEALTH_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Manner:
    """How a model is asked, wherever that is; see :class:`~dspy_stream.lm.base.LM`."""

    model: str
    model_type: str
    options: Mapping[str, Any]
    timeout: float
    prices: PriceSource | None
    limits: Limits | None
    breaker: BreakerPolicy | None
    health: str | None
    patient: bool = True


def connected(place: Backend, manner: Manner, *, clock: Clock, rng: random.Random) -> Member:
    """The layers for one place: breaker, limit, client. Does no I/O.

    Raises:
        LMConfigurationError: no address, no key, or a key that belongs elsewhere.
    """
    target = locate(
        place.model or manner.model,
        api_base=place.api_base,
        has_key=place.api_key is not None,
        model_type=manner.model_type,
        options=manner.options,
    )
    secret = place.api_key if isinstance(place.api_key, Secret) else target.key
    key = secret.reveal(target.address.origin) if secret is not None else None
    limiter = limiter_for(target.address.origin, _digest(key), manner.limits, scope=target.model)
    client, headers = _client(target, manner, secret, clock, limiter)
    if manner.breaker is None:
        limit = Limit(client, limiter, clock=clock, patient=manner.patient)
        return Member(limit, weight=place.weight, paused=limit.paused)
    circuit = circuit_for(target.address.url, target.model, manner.breaker, clock=clock, rng=rng)
    allowed = still_allowed(circuit, name=manner.model, clock=clock)
    limit = Limit(client, limiter, clock=clock, patient=manner.patient, allowed=allowed)
    layer = Breaker(
        limit,
        circuit,
        name=manner.model,
        clock=clock,
        trial=client,
        healthy=_check(target, headers, manner),
    )
    return Member(layer, weight=place.weight, circuit=circuit, paused=limit.paused)


def _client(
    target: Target, manner: Manner, secret: Secret | None, clock: Clock, limiter: Limiter
) -> tuple[Layer, Mapping[str, str]]:
    """What makes the calls, and the headers that they have in common."""
    from dspy_stream.lm.transport import Endpoint  # the HTTP library is loaded when it is needed

    provider = target.provider
    format = target.make(target.model, price=price_of(manner.model, manner.prices), now=clock.time)
    headers = format.headers(secret.reveal(target.address.origin) if secret is not None else None)
    client = Client(
        Endpoint(target.address.join(format.path), headers),
        format,
        model=manner.model,
        provider=provider.prefix,
        secret=secret,
        timeout=manner.timeout,
        streams=_streams(target, format, headers),
        observe=limiter.observer(clock),
    )
    return client, headers


def _streams(target: Target, format: Format, headers: Mapping[str, str]) -> Endpoint | None:
    if format.stream_path is None:
        return None
    from dspy_stream.lm.transport import Endpoint

    asked = {**headers, "Accept": "text/event-stream"}
    return Endpoint(target.address.join(format.stream_path), asked, streams=True)


def _check(target: Target, headers: Mapping[str, str], manner: Manner) -> HealthCheck | None:
    if manner.health is None:
        return None
    from dspy_stream.lm.transport import Endpoint

    endpoint = Endpoint(target.address.join(manner.health), headers)
    return HealthCheck(endpoint, deadline=min(_HEALTH_SECONDS, manner.timeout))


def _digest(key: str | None) -> str:
    """What stands for a key where limits are told apart by it."""
    return hashlib.blake2b((key or "").encode(), digest_size=8).hexdigest()
