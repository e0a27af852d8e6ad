"""Values that a model writes as elements within an element, where JSON was asked for."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from dspy_stream.adapters.tags import unescape

__all__ = ["json_of"]

_OPEN: Final = re.compile(r"\s*<([A-Za-z_][\w.-]*)>")
_REST: Final = re.compile(r"\s*\Z")
_ITEMS: Final = frozenset({"item", "element", "entry", "li"})
_DEEPEST: Final = 32


def json_of(body: str) -> str | None:
    """The elements that ``body`` consists of as JSON; None where it does not consist of elements alone.

    An element is the member of an object by its name; elements of one name are a list, and so are those
    called ``item`` and the like, or the only kind there is when it occurs more than once. What holds no
    elements is text, which is left to the field's type to read.

    >>> json_of("<name>Ada</name><tags><item>a</item><item>b</item></tags>")
    '{"name": "Ada", "tags": ["a", "b"]}'
    >>> json_of("<item>1</item>"), json_of("[1, 2]"), json_of("1 < 2")
    ('["1"]', None, None)
    """
    value = _value(body, 0)
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _value(body: str, depth: int) -> Any:
    """A dict or a list; None for text."""
    found: list[tuple[str, Any]] = []
    place = 0
    while not _REST.match(body, place):
        opening = _OPEN.match(body, place)
        end = _end(body, opening) if opening is not None and depth < _DEEPEST else None
        if opening is None or end is None:
            return None
        inner = body[opening.end() : end[0]]
        nested = _value(inner, depth + 1)
        found.append((opening.group(1), unescape(inner.strip()) if nested is None else nested))
        place = end[1]
    if not found:
        return None
    members: dict[str, list[Any]] = {}
    for name, value in found:
        members.setdefault(name, []).append(value)
    if len(members) == 1 and (found[0][0] in _ITEMS or len(found) > 1):
        return members[found[0][0]]
    return {name: values if len(values) > 1 else values[0] for name, values in members.items()}


def _end(body: str, opening: re.Match[str]) -> tuple[int, int] | None:
    """Where the element that is opened ends: before and after its closing tag."""
    name = re.escape(opening.group(1))
    open_ones = 1
    for tag in re.compile(rf"<(/?){name}>").finditer(body, opening.end()):
        open_ones += -1 if tag.group(1) else 1
        if open_ones == 0:
            return tag.start(), tag.end()
    return None
