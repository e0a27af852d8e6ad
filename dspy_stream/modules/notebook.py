"""What a model sees of its work with an interpreter: the variables it has, and its steps so far."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from dspy_stream.adapters.bound import Bound
from dspy_stream.errors import ConfigurationError
from dspy_stream.program.jsonable import to_jsonable

__all__ = ["Step", "shortened", "shown_steps", "shown_variables"]

_PREVIEW: Final = 1000  # characters of a variable


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of code: why it was written, what it was, what came of it."""

    reasoning: str
    code: str
    output: str

    def to_dict(self) -> dict[str, str]:
        """The same as a dict."""
        return asdict(self)


def shortened(text: str, limit: int) -> str:
    """The beginning and the end of a text that is longer than a limit, in characters.

    >>> shortened("abcdefgh", 4)
    'ab\\n... (4 characters left out) ...\\ngh'
    """
    if len(text) <= limit:
        return text
    head, tail = limit // 2, limit - limit // 2
    return f"{text[:head]}\n... ({len(text) - limit:,} characters left out) ...\n{text[len(text) - tail :]}"


def shown_steps(steps: Iterable[Step], limit: int) -> str:
    """The steps as a text, each output shortened to a limit."""
    parts = []
    for number, step in enumerate(steps, 1):
        thought = f"Reasoning: {step.reasoning}\n" if step.reasoning else ""
        parts.append(
            f"=== Step {number} ===\n{thought}Code:\n```python\n{step.code}\n```\n"
            f"Output ({len(step.output):,} characters):\n{shortened(step.output, limit)}"
        )
    return "\n".join(parts) or "(no code was run so far)"


def shown_variables(values: Mapping[str, Any], fields: Iterable[Bound]) -> str:
    """What the variables are, and how each begins and ends; never more of them."""
    parts = []
    for bound in fields:
        value = values[bound.name]
        text = _text(value)
        parts.append(
            f"{bound.line}\nIn Python a {type(value).__name__}; as text {len(text):,} characters:\n"
            f"```\n{shortened(text, _PREVIEW)}\n```"
        )
    return "\n\n".join(parts)


def _text(value: Any) -> str:
    try:
        plain = to_jsonable(value)
    except ConfigurationError:
        return str(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, indent=2)
