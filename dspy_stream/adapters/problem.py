"""What can be wrong with one value, in words that a model can act on."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

__all__ = ["ValueProblem", "excerpt", "unwrapped", "why_invalid"]

_WRAPPING: Final = "`*\"' \t\r\n"
_SHOWN: Final = 3


class ValueProblem(ValueError):
    """A value that cannot be read or written; the message names neither field nor adapter."""


def excerpt(text: str, limit: int = 80) -> str:
    """The text in quotes, shortened to ``limit`` characters.

    >>> excerpt("a" * 100, 5)
    "'aaaaa...'"
    """
    return repr(text if len(text) <= limit else text[:limit] + "...")


def unwrapped(text: str) -> str:
    """A short value without the quotes, fence, bold or final full stop around it.

    >>> unwrapped("**42**."), unwrapped("```\\n42\\n```")
    ('42', '42')
    """
    text = text.strip()
    if text.startswith("```") and "\n" in text:
        text = text[text.index("\n") :]
    text = text.strip(_WRAPPING)
    return text[:-1].rstrip(_WRAPPING) if text.endswith(".") else text


def why_invalid(error: ValidationError) -> str:
    """The first findings of a validation, with the place of each within the value."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    parts = []
    for item in found[:_SHOWN]:
        place = ".".join(str(step) for step in item["loc"])[:60]
        words = item["msg"][:200]
        parts.append(f"{place}: {words}" if place else words)
    more = len(found) - _SHOWN
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
