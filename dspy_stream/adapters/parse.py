"""Read one JSON value from text as models really send it, within fixed limits.

Models wrap JSON in prose and code fences, leave a comma before a closing bracket or none at the end of a
line, write ``True`` and single or curly quotes, forget to escape a line break or the quotes around a
quotation, add a comment. All of that has one possible meaning and is read. What has no single meaning is
refused rather than guessed: NaN and infinities, numbers that overflow, one key twice, halves of surrogate
pairs, unclosed brackets, and values beyond the limits below. Nothing here recurses, so no text can
exhaust the stack, and the only exception is :class:`NotJSON`.

Texts that are strict JSON take a short path through orjson, followed by one walk over the result
that finds what orjson lets pass: duplicate keys, depth, and integers turned into floats. Where a
number has to keep its digits, the reader of the standard library takes the place of orjson, which
knows no numbers but floats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any, Final

import orjson

from dspy_stream.adapters.scan import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_NODES,
    TOO_DEEP,
    TOO_MANY,
    NotJSON,
    Scanner,
    exact_number,
)

__all__ = [
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_LENGTH",
    "MAX_NODES",
    "NotJSON",
    "answers",
    "floats",
    "items",
    "loads",
]

MAX_LENGTH: Final = 4 * 1024 * 1024  # characters

_SPACED: Final = re.compile(r",\s")  # "1,234" is more likely one number
_FENCE: Final = re.compile(r"```[A-Za-z0-9]*[ \t]*\r?\n\s*\Z")


def loads(text: str, openers: str = "{[", *, exact: bool = False) -> Any:
    """The one JSON value of ``text``; prose and fences may stand around an object or array.

    The whole text is tried first. Within prose only values that start with one of ``openers``
    count; a fenced one goes before others, and several different ones are refused. With no openers
    the whole text has to be the value. With ``exact``, a number that is not whole is a Decimal.

    Raises:
        NotJSON: no value, several values, or one beyond the limits.

    >>> loads("Sure! ```json\\n{'ok': True, 'tags': ['a', 'b',],}\\n```")
    {'ok': True, 'tags': ['a', 'b']}
    >>> loads('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    dspy_stream.adapters.scan.NotJSON: the key 'a' is given twice
    """
    fast, value = _fast(text, exact)
    if fast:
        return value
    scanner = Scanner(text, exact=exact)
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


def items(text: str, *, exact: bool = False) -> list[Any]:
    """Several JSON values with commas between them, as an array whose brackets were left out.

    Raises:
        NotJSON: the text is something else, or a single value.

    >>> items('"a", "b"')
    ['a', 'b']
    """
    found: list[Any] = Scanner(f"[{text}]", exact=exact).whole(words=False)
    if len(found) < 2 or _SPACED.search(text) is None:
        raise NotJSON("it is a single value")
    return found


def answers(
    text: str, wanted: Collection[str], *, exact: bool = False
) -> Sequence[tuple[int, dict[str, Any]]]:
    """The complete objects of ``text`` that have at least one of the ``wanted`` keys, with their offsets.

    The first is the answer. Where none has such a key, it is the first object, alone. An object that
    begins and then breaks off is an error: a later or inner one is never taken in its place. What comes
    after the answer and cannot be read is ignored. ``exact`` as for :func:`loads`.

    Raises:
        NotJSON: there is no object, or it is not allowed.

    >>> answers('I use {placeholders}: {"answer": 1} and then {"answer": 2}', {"answer"})
    [(22, {'answer': 1}), (45, {'answer': 2})]
    """
    fast, value = _fast(text, exact)
    if fast and type(value) is dict:
        return ((0, value),)
    if fast and type(value) is str:  # JSON within a string of JSON
        return answers(value, wanted, exact=exact)
    if fast:
        objects = [(0, item) for item in (value if type(value) is list else ()) if type(item) is dict]
    else:
        objects = Scanner(text, exact=exact).embedded("{", wanted)
    if not objects:
        raise NotJSON("there is no JSON object in the text")
    return [one for one in objects if not one[1].keys().isdisjoint(wanted)] or objects[:1]


def floats(value: Any) -> Any:
    """The same plain data with every Decimal in it made a float; at most as deep as the parser goes."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: floats(item) for key, item in value.items()}
    return [floats(item) for item in value] if isinstance(value, list) else value


def _fast(text: str, exact: bool = False) -> tuple[bool, Any]:
    if len(text) > MAX_LENGTH:
        raise NotJSON(f"the text is longer than {MAX_LENGTH} characters", refused=True)
    try:
        value = _exact_loads(text) if exact else orjson.loads(text)
    except (ValueError, RecursionError):
        return False, None
    kind = type(value)
    if kind is dict or kind is list:
        return (True, value) if _is_faithful(value, text) else (False, None)
    if kind is float and abs(value) >= 2.0**63:
        return False, None
    return True, value


def _exact_loads(text: str) -> Any:
    """Strict JSON; ValueError for what else Python's reader takes, which is for the scanner to judge."""
    if "\\u" in text:  # halves of surrogate pairs, among others
        raise ValueError
    text.encode()  # which these, standing by themselves, do not pass
    return json.loads(text, parse_float=exact_number, parse_int=_whole, parse_constant=_no_number)


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError
    return int(digits)


def _no_number(word: str) -> Any:
    raise ValueError(word)


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
