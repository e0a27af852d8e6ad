"""Turn a value into text for a prompt: the same text for the same value, in every process."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import pydantic_core
from pydantic import TypeAdapter

from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.program.example import Example

if TYPE_CHECKING:
    from dspy_stream.adapters.blocks import Collector

__all__ = ["Plain", "exact_json", "json_text", "numbered", "plainer", "refuse_unfinite"]


def json_text(value: Any) -> str:
    """JSON of plain data: no NaN, integers of any size.

    Raises:
        ValueProblem: the value is not plain data, or holds a number that JSON cannot say.

    >>> json_text({"a": [1, None], "b": "ü"})
    '{"a":[1,null],"b":"ü"}'
    """
    try:
        text = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
        if "null" not in text:
            return text
        # orjson writes NaN as null.
        refuse_unfinite(value)
    except TypeError:
        # Integers beyond 64 bits, or nesting deeper than orjson goes.
        return _slow_json(value)
    return text


def exact_json(value: Any) -> str:
    """The same of data with Decimals in it: a number where a float says the same, otherwise a text.

    >>> exact_json([Decimal("1.5"), Decimal("1.50")])
    '[1.5,"1.50"]'
    """
    return json_text(_told(value))


def _told(value: Any) -> Any:
    if isinstance(value, Decimal):
        number = float(value)
        return number if Decimal(repr(number)).as_tuple() == value.as_tuple() else str(value)
    if isinstance(value, dict):
        return {key: _told(item) for key, item in value.items()}
    return [_told(item) for item in value] if isinstance(value, list) else value


def _slow_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueProblem(f"cannot be written as JSON: {error}") from None


def refuse_unfinite(value: Any) -> None:
    """Check that no float within plain data is NaN or infinite.

    Raises:
        ValueProblem: one is.
    """
    level = [value]
    while level:
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, float):
                if not math.isfinite(item):
                    raise ValueProblem(f"{item} is not a finite number")
            elif isinstance(item, dict):
                deeper += item.values()
            elif isinstance(item, (list, tuple)):
                deeper += item
        level = deeper


def numbered(items: list[Any] | tuple[Any, ...], text_of: Callable[[Any], str]) -> str:
    """Several texts for a field of one text: numbered, later lines of an item set in.

    >>> print(numbered(["one", "two\\nlines"], str))
    1. one
    2. two
       lines
    >>> numbered([], str)
    '(none)'
    """
    if not items:
        return "(none)"
    lines = []
    for number, item in enumerate(items, 1):
        lead = f"{number}. "
        lines.append(lead + text_of(item).replace("\n", "\n" + " " * len(lead)))
    return "\n".join(lines)


class Plain(Protocol):
    """Turns a value into plain data."""

    def __call__(self, value: Any, collector: Collector | None = None) -> Any:
        """Dicts, lists, strings, numbers; ``collector`` takes the values that are more than data."""
        ...


def plainer(validator: TypeAdapter[Any], *, has_sets: bool) -> Plain:
    """A function from a value of the type to plain data (dicts, lists, strings, numbers).

    A value of another type is written by what it is: a prediction or an example as its fields, an object
    of no known type as the text that it has for itself. Sets are sorted: their own order changes
    from process to process, and with it the prompt and the key of the call.
    """
    to_python = validator.serializer.to_python

    def plain(value: Any, collector: Collector | None = None) -> Any:
        try:
            if has_sets or isinstance(value, (set, frozenset)):
                data = to_python(value, mode="python", by_alias=True, warnings=False, context=collector)
                data = _sorted_sets(data, str if collector is None else collector.revealed)
            else:
                data = to_python(
                    value, mode="json", by_alias=True, warnings=False, context=collector, fallback=_by_itself
                )
        except (pydantic_core.PydanticSerializationError, UnicodeDecodeError, RecursionError) as error:
            raise ValueProblem(f"a {type(value).__name__} cannot be written as text: {error}") from None
        # A NaN where the type has none, as in a table's empty cell, has become a string by now.
        refuse_unfinite(value)
        return data

    return plain


def _by_itself(value: Any) -> Any:
    """What stands for a value that no serializer knows.

    An object without a text of its own has only its address, which is another one in every process.
    """
    if isinstance(value, Example):
        return dict(value.items())
    kind: Any = type(value)
    if kind.__str__ is not object.__str__:
        return str(value)
    raise pydantic_core.PydanticSerializationError(f"Unable to serialize unknown type: {type(value)}")


def _sorted_sets(value: Any, shown: Callable[[str], str]) -> Any:
    if isinstance(value, (set, frozenset)):
        items = [_sorted_sets(item, shown) for item in value]
        return sorted(items, key=lambda item: shown(json_text(item)))
    if isinstance(value, dict):
        return {key: _sorted_sets(item, shown) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sorted_sets(item, shown) for item in value]
    return pydantic_core.to_jsonable_python(value, by_alias=True)
