"""How a question is put to a model, and how its answer is read: pure functions of text."""

from dspy_stream.adapters.base import Adapter, Prepared
from dspy_stream.adapters.chat import ChatAdapter
from dspy_stream.adapters.json import JSONAdapter

__all__ = ["Adapter", "ChatAdapter", "JSONAdapter", "Prepared"]
