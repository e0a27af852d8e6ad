"""What a call costs: list prices as dated data, and a lookup that costs nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["PRICES", "PRICES_AS_OF", "Price", "PriceSource", "price_of"]


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens; ``cached``: prompt tokens that the provider had in its cache.

    >>> Price(2.5, 10.0, 1.25).of(1000, 100)
    0.0035
    """

    prompt: float
    completion: float
    cached: float | None = None

    def of(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Cost of one call; ``cached_tokens`` are those of the prompt that were served from a cache."""
        cached = min(cached_tokens, prompt_tokens) if self.cached is not None else 0
        millionths = (
            (prompt_tokens - cached) * self.prompt
            + cached * (self.cached or 0.0)
            + completion_tokens * self.completion
        )
        return millionths / 1_000_000


PriceSource = Mapping[str, Price] | Callable[[str], Price | None]

PRICES_AS_OF: Final = "2025-12"

# List prices of the standard tier, without discounts for batches or long contexts.
PRICES: Final[Mapping[str, Price]] = {
    "openai/gpt-4o": Price(2.50, 10.00, 1.25),
    "openai/gpt-4o-mini": Price(0.15, 0.60, 0.075),
    "openai/gpt-4.1": Price(2.00, 8.00, 0.50),
    "openai/gpt-4.1-mini": Price(0.40, 1.60, 0.10),
    "openai/gpt-4.1-nano": Price(0.10, 0.40, 0.025),
    "openai/gpt-5": Price(1.25, 10.00, 0.125),
    "openai/gpt-5-mini": Price(0.25, 2.00, 0.025),
    "openai/gpt-5-nano": Price(0.05, 0.40, 0.005),
    "openai/gpt-3.5-turbo": Price(0.50, 1.50),
    "openai/o1": Price(15.00, 60.00, 7.50),
    "openai/o3": Price(2.00, 8.00, 0.50),
    "openai/o3-mini": Price(1.10, 4.40, 0.55),
    "openai/o4-mini": Price(1.10, 4.40, 0.275),
    "local/nearest": Price(0.0, 0.0),
}


def price_of(model: str, prices: PriceSource | None = None) -> Price | None:
    """The price of ``provider/name``; None where it is not known, which is not the same as free.

    ``prices`` is asked first: a mapping by full model name, or a function of it.

    >>> price_of("openai/gpt-4o-mini").prompt
    0.15
    >>> price_of("openai/private", {"openai/private": Price(1.0, 2.0)}).completion
    2.0
    """
    own = prices(model) if callable(prices) else prices.get(model) if prices is not None else None
    return own if own is not None else PRICES.get(model)
