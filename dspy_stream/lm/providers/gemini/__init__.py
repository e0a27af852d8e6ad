"""Google's generateContent format."""

from dspy_stream.lm.providers.gemini.content import GenerateContent

__all__ = ["GenerateContent"]
