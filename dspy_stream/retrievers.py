"""Retrievers, under the name of their package in DSPy."""

from dspy_stream.modules.embeddings import Embeddings, EmbeddingsWithScores
from dspy_stream.modules.retrieve import Retrieve

__all__ = ["Embeddings", "EmbeddingsWithScores", "Retrieve"]
