"""Read one JSON value from text as models really send it, within fixed limits.

Models wrap JSON in prose and code fences, leave a comma before a closing bracket, write ``True``
and single quotes, forget to escape a line break, add a comment. All of that has one possible
meaning and is read. What has no single meaning is refused rather than guessed: NaN and
infinities, numbers that overflow, one key twice, halves of surrogate pairs, unclosed brackets,
and values beyond the limits below. Nothing here recurses, so no text can exhaust the stack, and
the only exception is :class:`NotJSON`.

Texts that are strict JSON take a short path through orjson, followed by one walk over the result
that finds what orjson lets pass: duplicate keys, depth, and integers turned into floats.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

import orjson

from dspy_stream.adapters.scan import MAX_DEPTH, MAX_DIGITS, MAX_NODES, TOO_DEEP, TOO_MANY, NotJSON, Scanner

__all__ = ["MAX_DEPTH", "MAX_DIGITS", "MAX_LENGTH", "MAX_NODES", "NotJSON", "first_object", "loads"]

MAX_LENGTH: Final = 4 * 1024 * 1024  # characters

_FENCE: Final = re.compile(r"```[A-Za-z0-9]*[ \t]*\r?\n\s*\Z")


def loads(text: str, openers: str = "{[") -> Any:
    """The one JSON value of ``text``; prose and fences may stand around an object or array.

    The whole text is tried first. Within prose only values that start with one of ``openers``
    count; a fenced one goes before others, and several different ones are refused. With no openers
    the whole text has to be the value.

    Raises:
        NotJSON: no value, several values, or one beyond the limits.

    >>> loads("Sure! ```json\\n{'ok': True, 'tags': ['a', 'b',],}\\n```")
    {'ok': True, 'tags': ['a', 'b']}
    >>> loads('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    dspy_stream.adapters.scan.NotJSON: the key 'a' is given twice
    """
    fast, value = _fast(text)
    if fast:
        return value
    scanner = Scanner(text)
    try:
        return scanner.whole()
    except NotJSON as error:
        if error.refused:
            raise
        whole = error
    found = scanner.embedded(openers) if openers else []
    if not found:
        raise whole
    fenced = [value for start, value in found if _FENCE.search(text, max(0, start - 64), start)]
    chosen = fenced if len(fenced) == 1 else [value for _, value in found]
    if any(other != chosen[0] for other in chosen[1:]):
        raise NotJSON(f"the text holds {len(chosen)} different JSON values; exactly one is expected")
    return chosen[0]


def first_object(text: str, wanted: Collection[str]) -> dict[str, Any]:
    """The first complete object of ``text`` that has at least one of the ``wanted`` keys.

    A model that runs on after its answer often invents the next question and answers that too,
    so the first object is the answer and what follows is ignored. An object that begins and then
    breaks off is an error: a later or inner one is never taken in its place.

    Raises:
        NotJSON: there is no such object, or it is not allowed.

    >>> first_object('I use {placeholders}: {"answer": 1} and then {"answer": 2}', {"answer"})
    {'answer': 1}
    """
    fast, value = _fast(text)
    if fast:
        objects = [item for item in (value if type(value) is list else [value]) if type(item) is dict]
    else:
        objects = [value for _, value in Scanner(text).embedded("{", wanted)]
    if not objects:
        raise NotJSON("there is no JSON object in the text")
    for candidate in objects:
        if not candidate.keys().isdisjoint(wanted):
            return candidate
    return objects[0]


def _fast(text: str) -> tuple[bool, Any]:
    if len(text) > MAX_LENGTH:
        raise NotJSON(f"the text is longer than {MAX_LENGTH} characters", refused=True)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False, None
    kind = type(value)
    if kind is dict or kind is list:
        return (True, value) if _is_faithful(value, text) else (False, None)
    if kind is float and abs(value) >= 2.0**63:
        return False, None
    return True, value


def _is_faithful(root: Any, text: str) -> bool:
    """Whether orjson's result is all that the text says.

    Every member of an object has one colon, and every other colon of the text lies in a string.
    If the colons add up no member was dropped, unless a colon was written as an escape.

    Raises:
        NotJSON: the result is too deep or too large.
    """
    colons = 0
    nodes = 1
    level = [root]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for container in level:
            nodes += len(container)
            if type(container) is dict:
                colons += len(container)
                for key in container:
                    colons += key.count(":")
            for value in container.values() if type(container) is dict else container:
                kind = type(value)
                if kind is str:
                    colons += value.count(":")
                elif kind is dict or kind is list:
                    deeper.append(value)
                elif kind is float and abs(value) >= 2.0**63:
                    return False
        if nodes > MAX_NODES:
            raise NotJSON(TOO_MANY, refused=True)
        if not deeper:
            return colons == text.count(":") and "\\u003" not in text
        level = deeper
    raise NotJSON(TOO_DEEP, refused=True)
