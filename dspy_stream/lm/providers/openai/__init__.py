"""The formats of OpenAI: chat completions, which most servers speak, responses, and old completions."""

from dspy_stream.lm.providers.openai.chat import ChatCompletions
from dspy_stream.lm.providers.openai.dialect import Dialect
from dspy_stream.lm.providers.openai.responses import Responses
from dspy_stream.lm.providers.openai.text import TextCompletions

__all__ = ["ChatCompletions", "Dialect", "Responses", "TextCompletions"]
