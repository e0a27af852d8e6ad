"""The splitter of answers that are one JSON object: its members, while they come."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from dspy_stream.adapters.markers import unescape
from dspy_stream.adapters.parse import answers
from dspy_stream.adapters.splitter import Piece, Splitter
from dspy_stream.adapters.write import json_text

__all__ = ["JSONSplitter"]

_KEY: Final = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([A-Za-z_$][\w$-]*))\s*:\s*""")
_MAYBE_KEY: Final = re.compile(
    r"""\s*(?:(?:"(?:[^"\\]|\\.)*(?:"\s*|\\)?|'(?:[^'\\]|\\.)*(?:'\s*|\\)?|[A-Za-z_$][\w$-]*\s*)?)\Z"""
)
_LONGEST_KEY: Final = 512
# Text of a string up to its end, or up to an escape that is not whole yet.
_RUN: Final = {
    quote: re.compile(
        rf"[^{quote}\\]*(?:\\(?:u[0-9a-fA-F]{{4}}|u(?![0-9a-fA-F]{{0,3}}\Z)|[^u])[^{quote}\\]*)*", re.DOTALL
    )
    for quote in "\"'"
}
_IN_STRING: Final = re.compile(r'["\\]')
_IN_VALUE: Final = re.compile(r'["{}\[\],]')
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SIMPLE: Final = {
    "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip
_MAYBE_ESCAPED: Final = re.compile(r"\[(?:\[ *\\*#?)?\Z")


class JSONSplitter(Splitter):
    """Splits one JSON object with prose or fences around it.

    Texts come unescaped, other values as they were written.

    >>> splitter = JSONSplitter(["a", "n"])
    >>> [*splitter.feed('{"a": "one'), *splitter.feed('\\\\n'), *splitter.feed('two", "n": [1]}')]
    [Piece(field='a', chunk='one', is_last=False), Piece(field='a', chunk='\\n', is_last=False), \
Piece(field='a', chunk='two', is_last=True), Piece(field='n', chunk='[1]', is_last=True)]
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names, self._whole)
        self._left = ""
        self._state: Callable[[list[Piece]], bool] = self._seek
        self._name = ""
        self._quote = ""
        self._depth = 0
        self._inner = False  # within a string of a value that is no string itself
        self._begun = False  # the object has a member
        self._wanted = False  # and one that is wanted
        self._decoded = ""  # decoded, but perhaps the beginning of an escaped marker
        self._high = ""  # half of a surrogate pair

    def _whole(self, text: str) -> Mapping[str, Any]:
        found = answers(text, self.names)[0][1]
        kept = {name: found[name] for name in self.names if found.get(name) is not None}
        return {
            name: unescape(value) if isinstance(value, str) else json_text(value)
            for name, value in kept.items()
        }

    def _take(self, text: str, pieces: list[Piece]) -> None:
        joined = self._joined(text, "\"'}:,\\")
        if joined is None:
            return
        self._left = joined
        while self._left and self._state(pieces):
            pass
        self._keep(self._left)

    # ------------------------------------------------- the states; each says whether to go on

    def _seek(self, pieces: list[Piece]) -> bool:  # noqa: ARG002
        """Before the object."""
        start = self._left.find("{")
        self._left = self._left[start + 1 :] if start >= 0 else ""
        self._begun = self._wanted = False
        self._state = self._key
        if start < 0:
            self._state = self._seek
        return start >= 0

    def _key(self, pieces: list[Piece]) -> bool:  # noqa: ARG002
        match = _KEY.match(self._left)
        if match is not None:
            if match.end() == len(self._left):
                return False  # of what kind the value is shows its first character
            name = next(key for key in match.groups() if key is not None)
            self._name = name if "\\" not in name else ""
            self._begun = True
            self._wanted = self._wanted or self._name in self.names
            self._left = self._left[match.end() :]
            self._quote = self._left[0] if self._left[0] in "\"'" else ""
            self._depth, self._inner, self._decoded, self._high = 0, False, "", ""
            self._state = self._string if self._quote else self._value
            self._left = self._left[1:] if self._quote else self._left
            return True
        if self._left.lstrip().startswith("}"):
            self._left = self._left.lstrip()
            self._state = self._after
            return True
        if len(self._left) < _LONGEST_KEY and _MAYBE_KEY.match(self._left):
            return False
        # Braces in prose; once a member was read it is an object, in a form that is read at the end.
        self._state = self._done if self._begun else self._seek
        return True

    def _string(self, pieces: list[Piece]) -> bool:
        text = self._left
        match = _RUN[self._quote].match(text)
        end = match.end() if match is not None else 0
        closed = text[end : end + 1] == self._quote
        self._left = text[end + closed :]
        self._add(text[:end], pieces, last=closed)
        if closed:
            self._state = self._after
        return closed

    def _value(self, pieces: list[Piece]) -> bool:
        """A value that is no string, told as it is written."""
        text = self._left
        at = 0
        while True:
            match = (_IN_STRING if self._inner else _IN_VALUE).search(text, at)
            if match is None:
                break
            at = match.end()
            sign = match.group()
            if self._inner:
                if sign == "\\":
                    if at == len(text):
                        at -= 1
                        break
                    at += 1
                else:
                    self._inner = False
            elif sign == '"':
                self._inner = True
            elif sign in "{[":
                self._depth += 1
            elif self._depth:
                self._depth -= sign in "}]"
            else:
                self._tell(self._name, text[: match.start()].rstrip(), pieces, last=True)
                self._left = text[match.start() :]
                self._state = self._after
                return True
        scanned = at if match is not None else len(text)
        safe = len(text[:scanned].rstrip())
        self._tell(self._name, text[:safe], pieces)
        self._left = text[safe:]
        return False

    def _after(self, pieces: list[Piece]) -> bool:  # noqa: ARG002
        """After a member."""
        self._left = self._left.lstrip()
        sign, self._left = self._left[:1], self._left[1:]
        if sign == ",":
            self._state = self._key
        elif sign == "}":
            self._state = self._done if self._wanted else self._seek
        elif sign:
            self._state = self._done
        return bool(sign)

    def _done(self, pieces: list[Piece]) -> bool:  # noqa: ARG002
        """After the answer, or where its form is not known here."""
        self._left = ""
        return False

    # -------------------------------------------------------------------- the text of a string

    def _add(self, text: str, pieces: list[Piece], *, last: bool) -> None:
        if self._name not in self.names:
            return
        text = self._high + (_ESCAPE.sub(_character, text) if "\\" in text else text)
        self._high = ""
        if not text.isascii() and _SURROGATE.search(text):
            if not last and "\ud800" <= text[-1] < "\udc00":
                text, self._high = text[:-1], text[-1]
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        text = self._decoded + text
        maybe = None if last else _MAYBE_ESCAPED.search(text)
        safe = maybe.start() if maybe else len(text)
        self._decoded = text[safe:]
        self._tell(self._name, unescape(text[:safe]), pieces, last=last)


def _character(escape: re.Match[str]) -> str:
    code, plain = escape.groups()
    # What is no escape of JSON is meant as it stands, both of it.
    return chr(int(code, 16)) if code is not None else _SIMPLE.get(plain, escape.group())
