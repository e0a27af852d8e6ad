"""One call to a language model: what it is named, how it is asked, and the layers around it."""

from dspy_stream.configuration import checking
from dspy_stream.lm.backends import Backend
from dspy_stream.lm.base import LM, BaseLM, Model, resolve
from dspy_stream.lm.circuit import BreakerPolicy
from dspy_stream.lm.cost import Price
from dspy_stream.lm.dummy import DummyLM
from dspy_stream.lm.local import LocalLM
from dspy_stream.lm.providers import Provider, register_provider
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.types import Capabilities

__all__ = [
    "LM",
    "Backend",
    "BaseLM",
    "BreakerPolicy",
    "Capabilities",
    "DummyLM",
    "LocalLM",
    "Model",
    "Price",
    "Provider",
    "ScriptedLM",
    "register_provider",
    "resolve",
]

checking("lm", resolve)
