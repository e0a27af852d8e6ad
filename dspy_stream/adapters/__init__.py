"""How a question is put to a model, and how its answer is read: pure functions of text."""

from typing import Any

from dspy_stream import paths
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


def __getattr__(name: str) -> Any:
    return paths.member("adapters", name)  # the types, and DSPy's names of our modules
