"""Modules: the callable parts that programs are made of."""

from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict

__all__ = ["ChainOfThought", "Module", "Predict"]
