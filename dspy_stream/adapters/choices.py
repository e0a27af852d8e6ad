"""Read one of a fixed set of values, as a Literal or an Enum names them."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from dspy_stream.adapters.problem import ValueProblem, excerpt, unwrapped
from dspy_stream.adapters.write import json_text

__all__ = ["Choices"]

_MISSING: Final = object()
_SHOWN: Final = 40
# Some models write the type that they were shown around the value.
_TYPED: Final = re.compile(r"(?:Literal|str)\[(.*)\]", re.DOTALL)


class Choices:
    """A table from what a model may write to the value that it means.

    Tried in order: the value as written; the name of an enum member; the text without quotes,
    backticks, bold or a final full stop, or the type's name around it, as in ``Literal["a"]``; the
    same in another case, where only one value fits.

    >>> Choices(["card_arrival", "lost_card"]).parse('"Lost_Card".')
    'lost_card'
    """

    __slots__ = ("_exact", "_folded", "values")

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)
        self._exact: dict[str, Any] = {}
        self._folded: dict[str, Any] = {}
        for form, value in _forms(self.values):
            self._exact.setdefault(form, value)
        for form, value in self._exact.items():
            folded = form.casefold()
            known = self._folded.get(folded, value)
            self._folded[folded] = value if known is value else _MISSING

    def parse(self, text: str) -> Any:
        """The value that ``text`` means.

        Raises:
            ValueProblem: it means none, or could mean two.
        """
        value = self._exact.get(text, _MISSING)
        if value is not _MISSING:
            return value
        plain = unwrapped(text)
        if plain.endswith("]") and (typed := _TYPED.fullmatch(plain)):
            plain = unwrapped(typed.group(1))
        value = self._exact.get(plain, _MISSING)
        if value is _MISSING:
            value = self._folded.get(plain.casefold(), _MISSING)
        if value is _MISSING:
            raise ValueProblem(f"{excerpt(text)} is not one of {self.listed()}")
        return value

    def listed(self) -> str:
        """The allowed values in words; all of them up to forty."""
        names = [text_of(value) for value in self.values[:_SHOWN]]
        more = len(self.values) - len(names)
        return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def text_of(value: Any) -> str:
    """How one choice is written: a string as it is, everything else as JSON.

    An enum member whose value is no JSON is written by its name.
    """
    inner = value.value if isinstance(value, enum.Enum) else value
    if isinstance(inner, str):
        return inner
    try:
        return json_text(inner)
    except ValueProblem:
        return str(getattr(value, "name", value))


def _forms(values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for value in values:
        written = text_of(value)
        yield written, value
        yield written.strip(), value
    for value in values:
        if isinstance(value, enum.Enum):
            yield value.name, value
    for value in values:
        yield str(value.value if isinstance(value, enum.Enum) else value), value
