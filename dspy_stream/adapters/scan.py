"""A scanner for JSON as people write it: an explicit stack, and limits that no text can pass."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any, Final

__all__ = ["MAX_DEPTH", "MAX_DIGITS", "MAX_NODES", "NotJSON", "Scanner", "exact_number"]

MAX_DEPTH: Final = 64
MAX_NODES: Final = 100_000
MAX_DIGITS: Final = 300
_MAX_STARTS: Final = 32  # places in a prose text where a value is looked for

TOO_DEEP: Final = f"the value is nested deeper than {MAX_DEPTH} levels"
TOO_MANY: Final = f"the value has more than {MAX_NODES} parts"

_BLANK: Final = re.compile(r"[ \t\r\n\ufeff\u00a0]*")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WORD: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_CONSTANT: Final = re.compile(
    r"(?:true|True|TRUE|false|False|FALSE|null|None|[+-]?(?:NaN|nan|Infinity|infinity|inf))\b"
)
_ESCAPE: Final = re.compile(
    r"\\(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SIMPLE: Final = {
    "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_WORDS: Final[dict[str, bool | None]] = {
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
    "null": None, "None": None,
}  # fmt: skip
_CLOSER: Final = {"{": "}", "[": "]", "(": ")"}
_QUOTES: Final = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_OPENING: Final = tuple(_QUOTES)
_ENDS: Final = re.compile(r"\s*(?:[,:}\])#]|//|/\*|\Z)|[ \t\r]*\n")  # what follows a string
_WORD_ENDS: Final = re.compile(r"\s*[,}\])]")


class NotJSON(ValueError):
    """The text holds no JSON value that may be used.

    Attributes:
        refused: True where a value was understood but is not allowed (NaN, a key twice, a limit),
            so that no other reading of the text should be tried.
        begun: True where the value had begun beyond doubt, that is, a first member was read.
        at: offset of the failure in the text.
    """

    def __init__(self, reason: str, *, at: int = 0, refused: bool = False, begun: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at
        self.refused = refused
        self.begun = begun


def exact_number(digits: str) -> Decimal:
    """The number with every digit that was written, and no other.

    Raises:
        ValueError: it has too many digits, or as many before or after its point.

    >>> exact_number("-1.10")
    Decimal('-1.10')
    """
    if len(digits) > MAX_DIGITS + 10:  # a sign, a point, an exponent
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    number = Decimal(digits)
    scale = number.as_tuple().exponent
    if not isinstance(scale, int) or abs(scale) > MAX_DIGITS or number.adjusted() > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits before or after its point")
    return number


class _Frame:
    """A container that is being read."""

    __slots__ = ("closer", "items", "key", "members")

    def __init__(self, opener: str) -> None:
        self.closer = _CLOSER[opener]
        self.items: list[Any] = []
        self.members: dict[str, Any] | None = {} if opener == "{" else None
        self.key = ""

    def add(self, value: Any) -> None:
        if self.members is None:
            self.items.append(value)
        else:
            self.members[self.key] = value

    @property
    def value(self) -> Any:
        return self.items if self.members is None else self.members


class Scanner:
    """One text, and how many nodes have been read from it.

    With ``exact``, a number that is not whole is a Decimal.
    """

    __slots__ = ("begun", "exact", "nodes", "pos", "text", "words")

    def __init__(self, text: str, *, exact: bool = False) -> None:
        self.text = text
        self.exact = exact
        self.pos = 0
        self.nodes = 0
        self.begun = False
        self.words = False

    def whole(self, *, words: bool = True) -> Any:
        """The value that is the whole text; ``words`` in it may stand for strings without quotes."""
        self.pos = 0
        self.words = words
        value = self._value()
        self.words = False
        self._skip()
        if self.pos < len(self.text):
            raise self._error("there is text after the JSON value")
        return value

    def embedded(self, openers: str, wanted: Collection[str] | None = None) -> list[tuple[int, Any]]:
        """Complete containers in the order of the text, with their offsets.

        Where keys are ``wanted``, what cannot be read counts up to the first object that has one.
        """
        found: list[tuple[int, Any]] = []
        opener = re.compile("[" + re.escape(openers) + "]")
        answered = False
        at = 0
        for _ in range(_MAX_STARTS):
            match = opener.search(self.text, at)
            if match is None:
                break
            self.pos = match.start()
            try:
                value = self._value()
            except NotJSON as error:
                if error.refused or error.begun:
                    if answered:
                        break
                    raise
                at = match.end()
                continue
            found.append((match.start(), value))
            if wanted is not None and isinstance(value, dict):
                answered = answered or not value.keys().isdisjoint(wanted)
            at = self.pos
        return found

    def _error(self, reason: str, *, refused: bool = False) -> NotJSON:
        near = self.text[self.pos : self.pos + 20]
        where = f" near {near!r}" if near else " at its end"
        return NotJSON(reason + where, at=self.pos, refused=refused, begun=self.begun)

    def _skip(self) -> None:
        """Pass over blanks and comments."""
        text = self.text
        while True:
            match = _BLANK.match(text, self.pos)
            if match is not None:
                self.pos = match.end()
            if text.startswith(("//", "#"), self.pos):
                end = text.find("\n", self.pos)
                self.pos = len(text) if end < 0 else end
            elif text.startswith("/*", self.pos):
                end = text.find("*/", self.pos + 2)
                if end < 0:
                    raise self._error("a comment is not closed")
                self.pos = end + 2
            else:
                return

    def _value(self) -> Any:
        """Read one value from ``pos``, with an explicit stack in place of recursion."""
        self.begun = False
        stack: list[_Frame] = []
        while True:
            self._skip()
            opener = self.text[self.pos : self.pos + 1]
            if opener in _CLOSER:
                self._open(opener, stack)
                if not self._closes(stack[-1]):
                    self._item(stack[-1], within=len(stack) > 1)
                    continue
                value = stack.pop().value
            else:
                value = self._scalar(within=bool(stack))
            while True:
                if not stack:
                    return value
                frame = stack[-1]
                frame.add(value)
                self.begun = True
                if self._more(frame):
                    self._item(frame)
                    break
                value = stack.pop().value

    def _open(self, opener: str, stack: list[_Frame]) -> None:
        self._count()
        if len(stack) >= MAX_DEPTH:
            raise self._error(TOO_DEEP, refused=True)
        stack.append(_Frame(opener))
        self.pos += 1

    def _count(self) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self._error(TOO_MANY, refused=True)

    def _closes(self, frame: _Frame) -> bool:
        self._skip()
        if self.text.startswith(frame.closer, self.pos):
            self.pos += 1
            return True
        return False

    def _more(self, frame: _Frame) -> bool:
        """Whether another item follows; passes over the comma, or over the closing bracket.

        A line break may stand for the comma.
        """
        before = self.pos
        self._skip()
        if self.text.startswith(",", self.pos):
            self.pos += 1
            return not self._closes(frame)
        if self._closes(frame):
            return False
        if frame.closer != ")" and "\n" in self.text[before : self.pos] and self.pos < len(self.text):
            return True
        raise self._error(f"expected ',' or {frame.closer!r}")

    def _item(self, frame: _Frame, *, within: bool = False) -> None:
        """Read what comes before an item's value: for an object, its key and colon.

        Braces ``within`` another container may hold items instead, as of a set in Python.
        """
        members = frame.members
        if members is None:
            return
        self._skip()
        start = self.pos
        key = self._key()
        self._skip()
        if not self.text.startswith(":", self.pos):
            if within and not members and self.text.startswith((",", "}"), self.pos):
                frame.members = None
                self.pos = start
                return
            raise self._error("expected ':' after a key")
        self.pos += 1
        self.begun = True
        if key in members:
            raise NotJSON(f"the key {key[:60]!r} is given twice", at=self.pos, refused=True)
        frame.key = key

    def _key(self) -> str:
        if self.text.startswith(_OPENING, self.pos):
            return self._string()
        match = _WORD.match(self.text, self.pos) or _NUMBER.match(self.text, self.pos)
        if match is None:
            raise self._error("expected a key")
        self.pos = match.end()
        return match.group()

    def _scalar(self, *, within: bool) -> Any:
        self._count()
        if self.text.startswith(_OPENING, self.pos):
            return self._string()
        match = _NUMBER.match(self.text, self.pos)
        if match is not None:
            return self._number(match)
        match = _CONSTANT.match(self.text, self.pos)
        if match is None:
            bare = _WORD.match(self.text, self.pos) if within and self.words else None
            if bare is None or bare.group() == "undefined" or not _WORD_ENDS.match(self.text, bare.end()):
                raise self._error("expected a JSON value")
            self.pos = bare.end()
            return bare.group()
        word = match.group()
        if word not in _WORDS:
            raise self._error("numbers have to be finite", refused=True)
        self.pos = match.end()
        return _WORDS[word]

    def _number(self, match: re.Match[str]) -> int | float | Decimal:
        digits = match.group()
        follower = self.text[match.end() : match.end() + 1]
        bare = digits.lstrip("+-")
        if follower.isalnum() or follower in ("_", ".") or (bare[0] == "0" and bare[1:2].isdigit()):
            raise self._error("this is not a number")
        if bare.isdigit():
            if len(bare) > MAX_DIGITS:
                raise self._error(f"an integer has more than {MAX_DIGITS} digits", refused=True)
            self.pos = match.end()
            return int(digits)
        if self.exact:
            try:
                exact = exact_number(digits)
            except ValueError as error:
                raise self._error(str(error), refused=True) from None
            self.pos = match.end()
            return exact
        number = float(digits)
        if not math.isfinite(number):
            raise self._error("numbers have to be finite", refused=True)
        self.pos = match.end()
        return number

    def _string(self) -> str:
        text = self.text
        quote = _QUOTES[text[self.pos]]
        start = self.pos + 1
        end = _quote_at(text, quote, start, start)
        if end < 0:
            raise self._error("a string is not closed")
        if quote == '"' and not _ENDS.match(text, end + 1):
            end = _past_quotations(text, start, end, self._count)
        raw = text[start:end]
        if "\\" in raw:
            raw = _ESCAPE.sub(_unescape, raw)
        if not raw.isascii() and _SURROGATE.search(raw):
            raise self._error("a string holds half of a surrogate pair", refused=True)
        self.pos = end + 1
        return raw


def _quote_at(text: str, quote: str, start: int, at: int) -> int:
    """Where the next quote of a string is that begins at ``start``; below 0 for nowhere."""
    end = text.find(quote, at)
    while end >= 0 and _is_escaped(text, start, end):
        end = text.find(quote, end + 1)
    return end


def _past_quotations(text: str, start: int, first: int, count: Callable[[], None]) -> int:
    """The end of a string with quotations in quotes that are not escaped; ``first`` where that is in doubt.

    What is quoted stands within a pair of quotes, apart from the words around it; no quote that could
    end the string may stand in the middle of a pair. Each pair counts as a part of the value: a text is
    tried from several places, and would be walked through from each.
    """
    opening = first
    while True:
        count()
        before, after = text[opening - 1], text[opening + 1 : opening + 2]
        if not (opening == start or before.isspace() or before in "([{") or after.isspace() or after == '"':
            return first
        closing = _quote_at(text, '"', start, opening + 1)
        if closing < 0 or text[closing - 1].isspace() or _ENDS.match(text, closing + 1):
            return first
        if text[closing + 1 : closing + 2].isalnum():
            return first
        opening = _quote_at(text, '"', start, closing + 1)
        if opening < 0:
            return first
        if _ENDS.match(text, opening + 1):
            return opening


def _is_escaped(text: str, start: int, end: int) -> bool:
    before = end
    while before > start and text[before - 1] == "\\":
        before -= 1
    return (end - before) % 2 == 1


def _unescape(match: re.Match[str]) -> str:
    body = match.group(1)
    simple = _SIMPLE.get(body)
    if simple is not None:
        return simple
    if body[0] == "u" and len(body) == 5:
        return chr(int(body[1:], 16))
    if body[0] == "u" and len(body) == 11:
        high, low = int(body[1:5], 16), int(body[7:], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    # Not an escape of JSON, such as the "\(" of a formula: both characters are meant.
    return match.group()
