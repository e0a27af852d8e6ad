"""A signature string cut into its fields, before anybody looks at the types.

``name: type = default`` pieces are found by commas outside brackets and quotes; no piece is
interpreted here.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dspy_stream.errors import SignatureError
from dspy_stream.program.fields import Direction
from dspy_stream.program.refusals import Unreadable

__all__ = ["MAX_DEPTH", "MAX_LENGTH", "QUOTED", "Piece", "check_name", "pieces_of"]

MAX_LENGTH: Final = 20_000
MAX_DEPTH: Final = 32

_OPEN: Final = {"[": "]", "(": ")", "{": "}"}
QUOTED: Final = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)

_CLOSE: Final = frozenset(_OPEN.values())
_ARROW_LIKE: Final = ("=>", "→", "⇒", "- >", "<-")


@dataclass(frozen=True, slots=True)
class Piece:
    """One field as it was written; ``type`` and ``default`` are source text or None."""

    direction: Direction
    name: str
    type: str | None
    default: str | None


def pieces_of(text: str) -> list[Piece]:
    """Cut a signature string into its fields, inputs first.

    Raises:
        SignatureError: the text has not exactly one ``->``, no output, an unusable or a repeated
            name, an open bracket or quote, or is too long or too deep.

    >>> [(p.direction, p.name, p.type, p.default) for p in pieces_of("a, b: int = 3 -> c: list[str]")]
    [('input', 'a', None, None), ('input', 'b', 'int', '3'), ('output', 'c', 'list[str]', None)]
    """
    if len(text) > MAX_LENGTH:
        raise SignatureError(
            f"the signature has {len(text)} characters; {MAX_LENGTH} are allowed. "
            "Declare long ones as a class"
        )
    left, right = _sides(text)
    pieces = _side(left, "input") + _side(right, "output")
    if not any(piece.direction == "output" for piece in pieces):
        raise SignatureError(
            f"signature {short(text)} names no output: "
            "write at least one field after `->`, as in 'question -> answer'"
        )
    seen: dict[str, Piece] = {}
    for piece in pieces:
        if piece.name in seen:
            where = "on both sides" if seen[piece.name].direction != piece.direction else "twice"
            raise SignatureError(
                f"Input and output fields must have distinct names, but field `{piece.name}` is named {where}"
            )
        seen[piece.name] = piece
    return pieces


def check_name(name: str) -> None:
    """Refuse a name that cannot be a field.

    Raises:
        SignatureError: it is no identifier, a keyword, begins with an underscore, or is taken.
    """
    if not name.isidentifier():
        raise Unreadable(_no_identifier(name))
    if keyword.iskeyword(name):
        raise Unreadable(f"field `{name}`: this is a word of Python; take another name, such as `{name}_`")
    if name.startswith("_"):
        raise SignatureError(f"field `{name}`: names of fields do not begin with an underscore")
    if name == "model_config":
        raise SignatureError("field `model_config`: pydantic keeps this name for itself; take another")


def short(text: str, limit: int = 80) -> str:
    """Source text for an error message, quoted and cut."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def _no_identifier(name: str) -> str:
    words = name.split()
    if len(words) > 1 and all(word.isidentifier() for word in words):
        comma = f"put a comma between fields, as in '{words[0]}, {words[1]}'"
        return f"field {short(name)}: a name is one word; {comma}"
    if name.startswith("*") or name == "/":
        return f"field {short(name)}: a signature lists its fields by name, without `*` and `/`"
    return f"field {short(name)}: not a name; use letters, digits and underscores, not beginning with a digit"


def _sides(text: str) -> tuple[str, str]:
    arrows = [at for at in _outside(text, check=False) if text.startswith("->", at)]
    if len(arrows) == 1:
        return text[: arrows[0]], text[arrows[0] + 2 :]
    if arrows:
        raise SignatureError(
            f"Invalid signature format: {short(text)} has {len(arrows)} `->`; "
            "it must contain exactly one '->', between inputs and outputs"
        )
    meant = next((arrow for arrow in _ARROW_LIKE if arrow in text), None)
    hint = (
        f"write `->` in place of `{meant}`"
        if meant
        else "write inputs, `->`, outputs, as in 'question -> answer'"
    )
    raise SignatureError(
        f"Invalid signature format: {short(text)} has no `->`, and must contain exactly one '->': {hint}"
    )


def _side(text: str, direction: Direction) -> list[Piece]:
    cuts = [at for at in _outside(text) if text[at] == ","]
    bounds = [-1, *cuts, len(text)]
    parts = [text[a + 1 : b].strip() for a, b in pairwise(bounds)]
    if parts[-1] == "":  # nothing on this side, or a comma at its end
        parts.pop()
    pieces = []
    for number, part in enumerate(parts, 1):
        if not part:
            raise Unreadable(f"{direction} {number} of the signature is empty: two commas follow each other")
        pieces.append(_piece(part, direction))
    return pieces


def _piece(part: str, direction: Direction) -> Piece:
    marks = {":": -1, "=": -1}
    for at in _outside(part):
        if part[at] in marks and marks[part[at]] < 0:
            marks[part[at]] = at
    colon, equals = marks[":"], marks["="]
    if 0 <= equals < colon:
        raise Unreadable(
            f"field {short(part)}: the type comes before the default, as in 'name: type = default'"
        )
    default = part[equals + 1 :].strip() if equals >= 0 else None
    head = part[:equals] if equals >= 0 else part
    type_ = head[colon + 1 :].strip() if colon >= 0 else None
    # Python reads identifiers in this form, so a field written here is found under the same name.
    name = unicodedata.normalize("NFKC", (head[:colon] if colon >= 0 else head).strip())
    check_name(name)
    if type_ == "":
        raise Unreadable(f"field `{name}`: a type is missing after the colon")
    if default == "":
        raise Unreadable(f"field `{name}`: a value is missing after the equals sign")
    return Piece(direction, name, type_, default)


def _outside(text: str, *, check: bool = True) -> list[int]:
    """Positions of the characters outside of all brackets and quotes.

    With ``check=False``, brackets are not followed: an arrow parts the sides wherever it stands
    outside quotes, so that a forgotten bracket is reported with its own field.
    """
    found = []
    stack: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char in "'\"":
            at = _string_end(text, at, check)
            continue
        if check and char in _OPEN:
            stack.append(_OPEN[char])
            if len(stack) > MAX_DEPTH:
                raise Unreadable(f"field {short(text)}: brackets nest deeper than {MAX_DEPTH}")
        elif check and char in _CLOSE:
            if not stack or stack.pop() != char:
                raise Unreadable(f"field {short(_around(text, at))}: `{char}` closes nothing that was opened")
        elif not stack:
            found.append(at)
        at += 1
    if stack:
        raise Unreadable(f"field {short(text.strip())}: `{stack[-1]}` is missing")
    return found


def _string_end(text: str, start: int, check: bool) -> int:
    match = QUOTED.match(text, start)
    if match is not None:
        return match.end()
    if check:
        raise Unreadable(f"field {short(_around(text, start))}: a quote is opened and not closed")
    return start + 1


def _around(text: str, at: int) -> str:
    return text[max(0, at - 40) : at + 40].strip()
