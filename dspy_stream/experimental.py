"""What DSPy calls experimental and is settled here, under the same name."""

from dspy_stream.program.types import Citations, Document

__all__ = ["Citations", "Document"]
