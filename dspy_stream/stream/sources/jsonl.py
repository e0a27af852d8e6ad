"""JSON lines: one object a line, in UTF-8.

Each line is judged alone. NaN, Infinity, numbers outside the range of a double, lone surrogates,
raw control characters, trailing garbage, nesting beyond 200 levels and numbers of thousands of digits
are refused, and so is an object with one key twice. Blank lines are skipped, a byte order mark at the
start too, and the last line needs no newline.
"""

from __future__ import annotations

import json
from typing import Any, Final

import orjson

from dspy_stream.errors import InputError
from dspy_stream.program.document import unique_keys
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources.feed import BOM, FeedPartition
from dspy_stream.stream.sources.ids import ROW_ID
from dspy_stream.stream.sources.lines import TooLong

__all__ = ["JsonlPartition"]

_KEY: Final = b'":'  # as a key ends where nobody puts spaces
_DEEPEST: Final = 200  # levels; deeper values could not be kept through a crash, nor shown to a model
_ZEROS: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG: Final = b"0" * 19


def _large(text: bytes) -> bool:
    """Whether there are digits in it that may be a number beyond 64 bits."""
    # Not a pattern: that would take ten times as long, more than all the rest of a long line.
    return _LONG in text.translate(_ZEROS)


def _again(text: bytes, value: Any) -> Any:
    """The value of an unusual line, its numbers exact.

    Raises:
        ValueError: it is nested too deeply, or a number has thousands of digits.
    """
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list))
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return json.loads(text) if _large(text) else value
    raise ValueError(f"it is nested beyond {_DEEPEST} levels")


def _check_keys(text: bytes, value: dict[str, Any]) -> None:
    """Refuse an object that has a key twice, at any depth.

    Raises:
        ValueError: one has.
    """
    keys = 0
    level: list[Any] = [value]
    while level:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                keys += len(one)
                inner += one.values()
            else:
                inner += one
        level = [item for item in inner if isinstance(item, (dict, list))]
    if keys != text.count(_KEY):  # a text may hold what looks like the end of a key
        json.loads(text, object_pairs_hook=unique_keys, parse_int=str)


class JsonlPartition(FeedPartition):
    """The rows of one feed of lines."""

    def read(self, limit: int) -> list[Row | DeadLetter]:
        """Return the next records; see :class:`~dspy_stream.stream.sources.base.Partition`."""
        records: list[Row | DeadLetter] = []
        feed = self._feed
        try:
            while len(records) < limit:
                line, offset = feed.line, feed.offset
                lines = feed.take(limit - len(records))
                if not lines:
                    break
                if offset == 0 and isinstance(lines[0], bytes) and lines[0].startswith(BOM):
                    lines[0] = lines[0][len(BOM) :]
                self._parse(lines, line, records)
        except InputError:
            if not records:
                raise
        return records

    def _parse(self, lines: list[bytes | TooLong], first: int, records: list[Row | DeadLetter]) -> None:
        rows, loads, append = self._rows, orjson.loads, records.append
        make, derive, plain = rows.make, rows.derive, rows.plain
        number = self._number
        for line, text in enumerate(lines, first):
            try:
                # A line over the cap is no bytes and is refused like any other bad line.
                value = loads(text)  # type: ignore[arg-type]
                if _large(text) or text.count(b"[") + text.count(b"{") > _DEEPEST:  # type: ignore[arg-type,union-attr]
                    value = _again(text, value)  # type: ignore[arg-type]
                if type(value) is dict and text.count(_KEY) != len(value):  # type: ignore[union-attr]
                    _check_keys(text, value)  # type: ignore[arg-type]
            except ValueError as error:
                if isinstance(text, bytes) and not text.strip():
                    continue
                reason = f"not JSON: {error}" if isinstance(error, orjson.JSONDecodeError) else str(error)
                append(self._refuse(text, reason, number, line))
            else:
                if type(value) is not dict:
                    append(self._not_an_object(text, value, number, line))
                elif plain and ROW_ID not in value:
                    append(make(derive(number), value, number, line, text))  # type: ignore[arg-type]
                else:
                    append(rows.build(value, number, line=line, raw=text))  # type: ignore[arg-type]
            number += 1
        self._number = number

    def _refuse(self, text: bytes | TooLong, reason: str, number: int, line: int) -> DeadLetter:
        if isinstance(text, TooLong):
            return self._rows.too_long(text, self._cap, number=number, line=line)
        code, message = "bad_json", reason
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            code = "bad_utf8"
            message = f"not UTF-8: byte 0x{text[error.start]:02x} at byte {error.start} of the line"
        if self._feed.torn and line == self._feed.line - 1:
            message += "; the file ends inside this line"
        return self._rows.refuse(code, message, number=number, line=line, raw=text)

    def _not_an_object(self, text: bytes | TooLong, value: object, number: int, line: int) -> DeadLetter:
        kind = {list: "an array", str: "a string", type(None): "null", bool: "a boolean"}.get(
            type(value), "a number"
        )
        message = f"each line must be one JSON object; this one is {kind}"
        raw = text if isinstance(text, bytes) else text.head
        return self._rows.refuse("not_an_object", message, number=number, line=line, raw=raw)
