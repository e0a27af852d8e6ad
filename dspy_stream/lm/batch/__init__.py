"""The batch lane: a step's calls through a provider's batch API, at half the price and within a day."""

from dspy_stream.lm.batch.plan import BatchOptions

__all__ = ["BatchOptions"]
