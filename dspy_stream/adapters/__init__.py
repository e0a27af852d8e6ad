"""How a question is put to a model, and how its answer is read: pure functions of text."""

from dspy_stream.adapters.baml import BAMLAdapter
from dspy_stream.adapters.base import Adapter
from dspy_stream.adapters.chat import ChatAdapter
from dspy_stream.adapters.json import JSONAdapter
from dspy_stream.adapters.prepared import Prepared
from dspy_stream.adapters.two_step import TwoStepAdapter
from dspy_stream.adapters.xml import XMLAdapter

__all__ = [
    "Adapter",
    "BAMLAdapter",
    "ChatAdapter",
    "JSONAdapter",
    "Prepared",
    "TwoStepAdapter",
    "XMLAdapter",
]
