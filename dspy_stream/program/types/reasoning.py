"""Reasoning: what a model thought before it answered."""

from __future__ import annotations

from typing_extensions import Self

from dspy_stream.program.types.base import Text

__all__ = ["Reasoning"]


class Reasoning(Text):
    """A model's reasoning: a ``str``, which comes from the model's own thinking where it has any.

    As the type of an output field it is asked for like any text, but not from a model that is known
    to reason by itself: the field then leaves the prompt, and is filled from the thoughts that the
    provider sends along. It is empty where the provider keeps them to itself.

    >>> thought = Reasoning("2 and 2 make 4")
    >>> thought.content, thought.upper(), thought == "2 and 2 make 4"
    ('2 and 2 make 4', '2 AND 2 MAKE 4', True)
    """

    __slots__ = ()

    _field = "content"

    def __new__(cls, content: str = "") -> Self:  # noqa: D102
        return super().__new__(cls, content)

    @property
    def content(self) -> str:
        """The text alone."""
        return str(self)

    def __add__(self, other: str) -> str:
        made = super().__add__(other)
        return type(self)(made) if isinstance(other, Reasoning) else made

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "your reasoning, step by step"

    def __reduce__(self) -> tuple[type[Reasoning], tuple[str]]:
        return type(self), (str(self),)
