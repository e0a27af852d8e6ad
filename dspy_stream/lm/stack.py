"""The layers of a model, outermost first: single flight, cache, what a run puts around it, the model."""

from __future__ import annotations

from collections.abc import Callable

from dspy_stream.lm.cache import Cache, Journal
from dspy_stream.lm.flight import SingleFlight
from dspy_stream.types import Layer

__all__ = ["Wrap", "stack"]

Wrap = Callable[[str, Layer], Layer]
"""What a run puts around what is paid for: given the model's name and its layers, the outer layer."""


def stack(paid: Layer, journal: Journal | None, model: str, wrap: Wrap | None = None) -> Layer:
    """Put the layers around ``paid``: the call as it is paid for, its retries included.

    The single flight is outside the cache, so that between an answer's arrival and its entry in
    the journal nobody can ask, and pay, again.
    """
    layer = paid if wrap is None else wrap(model, paid)
    if journal is not None:
        layer = Cache(layer, journal)
    return SingleFlight(layer)
