"""Fields that an answer gives more than once.

The first value of a field is its value. A later one that reads as something else makes two answers of
one, and which of them is meant nobody can tell: the reader refuses it, so that the model is asked to
decide. (DSPy takes the first below markers and the last in JSON, and refuses both between tags. What
programs have of the first is that a model may run on, and that is kept; where a text quotes a marker at
the start of a line, the first is as often the quotation.)

What is no second answer: a repetition of the same value, something that is no value of the field's type,
a field after the answer's end, and one after the model went on with the next question, as some do.
Whatever stands within a value belongs to the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Repeated", "differ", "with_repeats"]


class Repeated(dict[str, Any]):
    """Raw values by name, with the later ones of fields that were given again.

    Attributes:
        again: names and values, in the order of the answer.
    """

    __slots__ = ("again",)

    def __init__(self, found: Mapping[str, Any], again: Iterable[tuple[str, Any]]) -> None:
        super().__init__(found)
        self.again = tuple(again)


def with_repeats(found: Mapping[str, Any], again: Iterable[tuple[str, Any]]) -> Mapping[str, Any]:
    """The values found, with later ones that are written in another way; as they are, without any.

    >>> with_repeats({"a": "1"}, [("a", "1"), ("a", "2")]).again
    (('a', '2'),)
    >>> type(with_repeats({"a": "1"}, [("a", "1")]))
    <class 'dict'>
    """
    other = [(name, raw) for name, raw in again if name in found and differ(raw, found[name])]
    return Repeated(found, other) if other else found


def differ(one: Any, other: Any) -> bool:
    """Whether two values are not equal; those that cannot be compared are not."""
    try:
        return not bool(one == other)
    except Exception:  # noqa: BLE001 - a comparison of the user's, which may raise anything
        return True
