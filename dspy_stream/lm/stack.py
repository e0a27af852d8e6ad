"""The layers of a model, outermost first: single flight, cache, retry, and the model itself."""

from __future__ import annotations

import random

from dspy_stream.clock import Clock
from dspy_stream.lm.cache import Cache, Journal
from dspy_stream.lm.flight import SingleFlight
from dspy_stream.lm.retry import Retry
from dspy_stream.types import Layer

__all__ = ["stack"]


def stack(
    core: Layer,
    journal: Journal | None,
    *,
    num_retries: int,
    timeout: float,
    clock: Clock,
    rng: random.Random,
) -> Layer:
    """Put the layers around ``core``, the one attempt at a call.

    The single flight is outside the cache, so that between an answer's arrival and its entry in
    the journal nobody can ask, and pay, again.
    """
    layer: Layer = Retry(core, num_retries=num_retries, timeout=timeout, clock=clock, rng=rng)
    if journal is not None:
        layer = Cache(layer, journal)
    return SingleFlight(layer)
