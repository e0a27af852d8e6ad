"""Anthropic's messages format."""

from dspy_stream.lm.providers.anthropic.messages import Messages

__all__ = ["Messages"]
