"""The splitters of answers whose fields stand below marker lines, or between tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from dspy_stream.adapters.markers import DONE, sections, unescape
from dspy_stream.adapters.splitter import Piece, Splitter
from dspy_stream.adapters.tags import Tags
from dspy_stream.adapters.tags import unescape as unescape_references

__all__ = ["ChatSplitter", "XMLSplitter"]

_BLANK: Final = " \t\r\f\v\ufeff\u200b"


_MARKER: Final = re.compile(rf"(\n|\A)[{_BLANK}]*(\[\[ *## *(\w+) *## *\]\])")
# What may become a marker line, or an escaped marker, with more text.
_MAYBE: Final = re.compile(
    rf"[{_BLANK}]*(?:\[(?:\[ *(?:#(?:# *(?:\w+ *(?:#(?:# *\]?)?)?)?)?)?)?)?\Z"
)  # fmt: skip
_MAYBE_ESCAPED: Final = re.compile(r"\[(?:\[ *\\*#?)?\Z")


class ChatSplitter(Splitter):
    r"""Splits an answer whose fields stand below marker lines.

    >>> splitter = ChatSplitter(["a"])
    >>> [*splitter.feed("[[ ## a ## ]]\nPar"), *splitter.feed("is \n[[ ## comp")]
    [Piece(field='a', chunk='Par', is_last=False), Piece(field='a', chunk='is', is_last=False)]
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__([name for name in names if name != DONE], _sections)
        self._name = ""
        self._begun = False  # something other than blanks has been told of the field
        self._fresh = True  # what is held begins at the start of a line

    def _take(self, text: str, pieces: list[Piece]) -> None:
        joined = self._joined(text, "\n]")
        if joined is None:
            return
        text = joined
        if not self._fresh and "[" not in text and "\n" not in text:  # nearly all: nothing to search for
            safe = len(text.rstrip())
            if safe:
                self._add(text[:safe], pieces)
            self._keep(text[safe:])
            return
        at = 0
        for match in _MARKER.finditer(text):
            if match.start() == 0 and not match.group(1) and not self._fresh:
                continue
            self._add(text[at : match.start(2)].rstrip(), pieces, last=True)
            self._name, self._begun, self._fresh = match.group(3), False, False
            at = match.end()
        text = text[at:]
        safe = self._safe(text)
        if safe:
            self._add(text[:safe], pieces)
            self._fresh = False
        self._keep(text[safe:])

    def _safe(self, text: str) -> int:
        """How much of the text is the field's whatever comes after it; never ends in blanks."""
        line = text.rfind("\n") + 1
        if (line or self._fresh) and _MAYBE.match(text, line):
            return len(text[:line].rstrip())
        escaped = _MAYBE_ESCAPED.search(text, line)
        return len((text[: escaped.start()] if escaped else text).rstrip())

    def _add(self, text: str, pieces: list[Piece], *, last: bool = False) -> None:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        self._tell(self._name, unescape(text), pieces, last=last)

    def _close(self, pieces: list[Piece]) -> None:
        self._add("".join(self._held).rstrip(), pieces, last=True)


def _sections(text: str) -> Mapping[str, Any]:
    return {name: unescape(body) for name, body in sections(text).items()}


_CDATA: Final = "<![CDATA["
_MAYBE_REFERENCE: Final = re.compile(r"&(?:#?[A-Za-z0-9]{0,8})?\Z")
_MAYBE_TAG: Final = re.compile(rf"[{_BLANK}]*(?:<[^<>]*)?\Z")


class XMLSplitter(Splitter):
    """Splits an answer whose fields stand between tags; those within lines come at the end.

    >>> splitter = XMLSplitter([], ["a"])
    >>> [*splitter.feed("<a> 1 &l"), *splitter.feed("t; 2</a"), *splitter.feed(">")]
    [Piece(field='a', chunk='1', is_last=False), Piece(field='a', chunk=' < 2', is_last=False), \
Piece(field='a', chunk='', is_last=True)]
    """

    def __init__(self, inputs: Collection[str], names: Collection[str]) -> None:
        self._tags = Tags(inputs, names)
        super().__init__(names, self._elements)
        every = "|".join(map(re.escape, names))
        self._opening = re.compile(rf"(\n|>|\A)[{_BLANK}]*<({every})(?:\s[^<>]*|/)?>")
        self._again = {name: re.compile(rf"<{re.escape(name)}(?:\s[^<>]*)?>") for name in names}
        self._closing = {name: re.compile(rf"</{re.escape(name)}(?:\s[^<>]*|/)?>") for name in names}
        self._name = ""
        self._begun = False
        self._fresh = True  # what is held begins where a tag may stand
        self._nested = False  # a value holds a tag of its own name: where it ends shows at the end

    def _elements(self, text: str) -> Mapping[str, Any]:
        found = self._tags.elements(self._tags.closed(text))
        return {name: unescape_references(body) for name, body in found.items()}

    def _take(self, text: str, pieces: list[Piece]) -> None:
        joined = None if self._nested else self._joined(text, "<>\n;")
        if joined is None:
            return
        rest: str | None = joined
        while rest is not None:
            self._keep(rest)
            rest = self._inside(rest, pieces) if self._name else self._outside(rest, pieces)

    def _outside(self, text: str, pieces: list[Piece]) -> str | None:
        """Look for the next field; where it begins, the text from there."""
        for match in self._opening.finditer(text):
            if match.start() == 0 and not match.group(1) and not self._fresh:
                continue
            self._fresh = True
            if text[match.end() - 2] == "/":
                self._tell(match.group(2), "", pieces, last=True)
            else:
                self._name, self._begun = match.group(2), False
            return text[match.end() :]
        anchor = max(text.rfind("\n"), text.rfind(">"))
        if anchor >= 0 and _MAYBE_TAG.match(text, anchor + 1):
            self._fresh = True
            self._keep(text[anchor + 1 :])
        elif anchor >= 0 or not self._fresh or not _MAYBE_TAG.match(text):
            self._fresh = False
            self._keep("")
        return None

    def _inside(self, text: str, pieces: list[Piece]) -> str | None:
        """Tell more of the field; where it ends, the text from there."""
        text = text if self._begun else text.lstrip()
        closing = self._closing[self._name].search(text)
        again = self._again[self._name].search(text, 0, len(text) if closing is None else closing.start())
        if again is not None:
            self._nested = True
            return None
        if closing is not None:
            body = text[: closing.start()].rstrip()
            self._tell(self._name, unescape_references(body), pieces, last=True)
            self._name, self._fresh = "", True
            return text[closing.end() :]
        # Whether it is a CDATA section shows at its end.
        cdata = not self._begun and (text.startswith(_CDATA) or _CDATA.startswith(text))
        safe = 0 if cdata else self._safe(text)
        if safe:
            self._begun = True
            self._tell(self._name, unescape_references(text[:safe]), pieces)
        self._keep(text[safe:])
        return None

    def _safe(self, text: str) -> int:
        """How much of the text is the field's whatever comes after it; never ends in blanks."""
        end = len(text)
        tag = text.rfind("<")
        if tag >= 0 and ">" not in text[tag:]:
            begun = text[tag:]
            for wanted in (f"</{self._name}", f"<{self._name}"):
                if wanted.startswith(begun) or begun.startswith(wanted):
                    end = tag
        reference = _MAYBE_REFERENCE.search(text, max(0, end - 16), end)
        return len(text[: reference.start() if reference else end].rstrip())
