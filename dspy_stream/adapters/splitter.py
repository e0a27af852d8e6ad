"""What splits a streamed answer into its fields while it comes; the layouts are apart.

A splitter is fed text in any slices, and says which pieces of which fields that adds. It holds
back only what may still turn out to be a marker, an escape, or outer blanks. What cannot be told
on the way, because only the whole answer explains it, is told in one piece at the end, by the
rules by which the answer itself is read. A field that was told wrongly nevertheless belongs to an
answer that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

__all__ = ["Piece", "Splitter"]

_OPENING: Final = "<think>"
_CLOSING: Final = "</think>"
_LONG: Final = 512  # characters
_BLANKS: Final = 64 - len(_OPENING)  # at most so many before it, as the readers have it


class Piece(NamedTuple):
    """Some of a field's text; ``is_last`` says that nothing of it follows."""

    field: str
    chunk: str
    is_last: bool


class Splitter:
    """One answer, of which the fields ``names`` are wanted; ``find`` reads a whole answer.

    Of a repeated field the first counts. This base knows no layout, and tells everything at the end.

    >>> splitter = Splitter(["a"], lambda text: {"a": text.strip()})
    >>> splitter.feed("Par"), splitter.feed("is ")
    ([], [])
    >>> splitter.end()
    [Piece(field='a', chunk='Paris', is_last=True)]
    """

    def __init__(self, names: Collection[str], find: Callable[[str], Mapping[str, Any]]) -> None:
        self.names = tuple(names)
        self._thoughts: str | None = None
        self._find = find
        self._told: dict[str, list[str]] = {}
        self._ended: set[str] = set()
        self._parts: list[str] = []
        # The beginning, while it may be thoughts that a server did not split off; then, its end.
        self._lead: str | None = ""
        self._thinks = False
        self._held: list[str] = []
        self._size = 0

    def feed(self, text: str) -> list[Piece]:
        """The next text; what it adds."""
        self._parts.append(text)
        if self._lead is not None:
            text = self._begin(self._lead + text)
        pieces: list[Piece] = []
        if text:
            self._take(text, pieces)
        return pieces

    def expect_thoughts(self, name: str) -> None:
        """Name the field that is what the model thinks, where that comes beside the text."""
        self.names = (*self.names, name)
        self._thoughts = name

    def think(self, text: str) -> list[Piece]:
        """The next of the model's thoughts; what it adds."""
        pieces: list[Piece] = []
        if self._thoughts is not None:
            self._tell(self._thoughts, text, pieces)
        return pieces

    def end(self) -> list[Piece]:
        """The answer is over; what was held back."""
        pieces: list[Piece] = []
        if self._lead:  # thoughts without an end are the answer
            self._take("".join(self._parts), pieces)
        self._lead = None
        self._close(pieces)
        if len(self._ended) < len(self.names):
            self._rest(pieces)
        for name in self._told:  # thoughts, and what cannot be read
            self._tell(name, "", pieces, last=True)
        return pieces

    def _take(self, text: str, pieces: list[Piece]) -> None:
        """Take text of the answer proper."""

    def _close(self, pieces: list[Piece]) -> None:
        """Add what is held back, where its field needs no closing."""

    def _joined(self, text: str, deciding: str) -> str | None:
        """The text with what is held before it; None where it is too early to look at that again.

        Blanks decide nothing, and of a long text only the ``deciding`` characters do. Looking at
        all of it with every slice would take the square of its length.
        """
        waits = self._size > 0
        self._held.append(text)
        self._size += len(text)
        if waits and (text.isspace() or (self._size > _LONG and not any(sign in text for sign in deciding))):
            return None
        return "".join(self._held)

    def _keep(self, text: str) -> None:
        """Hold this, and nothing else, back."""
        self._held = [text] if text else []
        self._size = len(text)

    def _begin(self, text: str) -> str:
        """What of the text is the answer's."""
        if not self._thinks:
            stripped = text.lstrip()
            self._thinks = stripped.startswith(_OPENING)
            if len(text) - len(stripped) > _BLANKS or not (self._thinks or _OPENING.startswith(stripped)):
                self._lead = None
                return text
        end = text.find(_CLOSING) if self._thinks else -1
        if end < 0:
            self._lead = text[-len(_CLOSING) :] if self._thinks else text
            return ""
        self._lead = None
        return text[end + len(_CLOSING) :]

    def _tell(self, name: str, chunk: str, pieces: list[Piece], *, last: bool = False) -> None:
        if name in self._ended or name not in self.names or not (chunk or last):
            return
        self._told.setdefault(name, []).append(chunk)
        if last:
            self._ended.add(name)
        pieces.append(Piece(name, chunk, last))

    def _rest(self, pieces: list[Piece]) -> None:
        """Tell what the way did not, from the whole answer."""
        text = "".join(self._parts)
        if self._thinks and _CLOSING in text:
            text = text.partition(_CLOSING)[2]
        try:
            found = self._find(text)
        except ValueError:  # it is no answer; whoever reads it says so
            return
        for name in self.names:
            value = found.get(name)
            told = "".join(self._told.get(name, ()))
            if isinstance(value, str) and name not in self._ended and value.startswith(told):
                self._tell(name, value[len(told) :], pieces, last=True)
