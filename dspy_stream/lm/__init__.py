"""One call to a language model: what it is named, how it is asked, and the layers around it."""

from dspy_stream.lm.base import LM, BaseLM, Model, resolve
from dspy_stream.lm.cost import Price
from dspy_stream.lm.local import LocalLM
from dspy_stream.lm.scripted import ScriptedLM

__all__ = ["LM", "BaseLM", "LocalLM", "Model", "Price", "ScriptedLM", "resolve"]
