"""Write an input that may hold more than plain data."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from dspy_stream.adapters.blocks import Collector, Pieces, formatted, numbered_pieces
from dspy_stream.adapters.choices import text_of
from dspy_stream.adapters.write import Plain, json_text
from dspy_stream.program.types.base import Type

__all__ = ["input_writer"]


def input_writer(
    plain: Plain, typed: Callable[[Any], Any] | None, *, lists: bool, textual: bool
) -> Callable[[Any], str | Pieces]:
    """A function from a value to its text, or to pieces where it holds content blocks.

    Args:
        plain: value to plain data.
        typed: makes values out of data, such as a picture out of its address; None where nothing
            of the kind is expected, which does not keep a value from holding some.
        lists: whether a list is written as several texts.
        textual: whether a value is a string in JSON, and is written without quotes.
    """

    def write(value: Any) -> str | Pieces:
        if typed is not None and not isinstance(value, Type):
            value = typed(value)
        return written(value)

    def written(value: Any) -> str | Pieces:
        if isinstance(value, enum.Enum):
            return text_of(value)
        if isinstance(value, str):
            return value
        if isinstance(value, Type):
            made = formatted(value)
            return made if isinstance(made, str) else Pieces(made)
        if isinstance(value, (list, tuple)) and (
            lists or (value and all(isinstance(v, Type) for v in value))
        ):
            return numbered_pieces(value, written)
        collector = Collector()
        data = plain(value, collector)
        text = data if textual and isinstance(data, str) else json_text(data)
        return text if collector.empty else collector.split(text)

    return write
