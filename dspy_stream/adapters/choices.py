"""Read one of a fixed set of values, as a Literal or an Enum names them."""

from __future__ import annotations

import copy
import enum
import functools
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import ValidationError

from dspy_stream.adapters.problem import ValueProblem, excerpt, unwrapped
from dspy_stream.adapters.write import json_text

__all__ = ["Choices", "mended", "text_of"]

_MISSING: Final = object()
_SHOWN: Final = 40
# Some models write the type that they were shown around the value.
_JOINT: Final = re.compile(r"[|,]")
_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_TYPED: Final = re.compile(r"(?:Literal|str)\[(.*)\]", re.DOTALL)


class Choices:
    """A table from what a model may write to the value that it means.

    Tried in order: the value as written; the name of an enum member, alone or behind its class; the text
    without quotes, backticks, bold or a final full stop, or the type's name around it, as in
    ``Literal["a"]``; the same in another case, where only one value fits. Members of a ``Flag`` may be
    joined, as in ``A | B`` and ``["A", "B"]``, or given as the number of their sum.

    >>> Choices(["card_arrival", "lost_card"]).parse('"Lost_Card".')
    'lost_card'
    """

    __slots__ = ("_exact", "_flag", "_folded", "values")

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)
        self._flag = type(self.values[0]) if self.values and isinstance(self.values[0], enum.Flag) else None
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
        value = self._one(plain)
        if value is _MISSING and self._flag is not None:
            value = self._joined(plain, self._flag)
        if value is _MISSING:
            raise ValueProblem(f"{excerpt(text)} is not one of {self.listed()}")
        return value

    def _one(self, plain: str) -> Any:
        value = self._exact.get(plain, _MISSING)
        return self._folded.get(plain.casefold(), _MISSING) if value is _MISSING else value

    def _joined(self, text: str, flag: type[enum.Flag]) -> Any:
        """Several members as one value."""
        if not _DIGITS.fullmatch(text):
            return self._each(text.strip("[]"), flag)
        bits = functools.reduce(operator.or_, [member.value for member in self.values])
        number = int(text)
        return _MISSING if number & ~bits else flag(number)

    def _each(self, text: str, flag: type[enum.Flag]) -> Any:
        members = [
            self._one(unwrapped(name).removeprefix(f"{flag.__name__}.")) for name in _JOINT.split(text)
        ]
        return _MISSING if _MISSING in members else functools.reduce(operator.or_, members)

    @property
    def sums(self) -> str:
        """In words, that several may be given as one number; empty where they may not."""
        if self._flag is None:
            return ""
        return "the sum of one or more of: " + "; ".join(f"{one.value} ({one.name})" for one in self.values)

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
        if isinstance(value, enum.Enum):
            yield f"{type(value).__name__}.{value.name}", value
    for value in values:
        yield str(value.value if isinstance(value, enum.Enum) else value), value


def mended(value: Any, error: ValidationError, inside: Sequence[Choices]) -> Any:
    """A copy of plain data in which whatever was no choice is the choice that it names.

    Args:
        value: what was refused.
        error: why.
        inside: the choices that the type holds somewhere.
    """
    if not inside:
        return value
    whole = [copy.deepcopy(value)]
    findings = error.errors(include_url=False, include_context=False)
    for item in sorted(findings, key=lambda item: item["loc"][-1:] == ("[key]",)):
        if item["type"] in ("enum", "literal_error"):
            meant = _meant(item["input"], inside)
            if meant is not _MISSING:
                _put(whole, item["loc"], item["input"], meant)
    return whole[0]


def _meant(given: Any, inside: Sequence[Choices]) -> Any:
    found = []
    for choices in inside:
        try:
            found.append(choices.parse(given if isinstance(given, str) else json_text(given)))
        except ValueProblem:  # noqa: PERF203
            continue
    same = all(type(one) is type(found[0]) and one == found[0] for one in found)
    return found[0] if found and same else _MISSING


def _put(whole: list[Any], place: Sequence[int | str], given: Any, meant: Any) -> None:
    """Replace what stands at a place that a finding names; steps that name an arm of a union are none."""
    home: Any = whole
    at: Any = 0
    for step in place:
        inner = home[at]
        if step == "[key]" and isinstance(home, dict):
            home[meant] = home.pop(at)
            return
        known = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        if step in known:
            home, at = inner, step
    if home[at] == given:
        home[at] = meant
