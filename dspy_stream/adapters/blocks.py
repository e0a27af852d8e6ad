"""Content blocks within the text of a turn: pictures, sounds and files where their values stand."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import orjson
from pydantic_core import to_json

from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.program.types.base import Rendering, Type

__all__ = [
    *("Collector", "Content", "Pieces", "assembled", "broken_text", "flattened", "formatted", "joined"),
    "numbered_pieces",
]

Block = Mapping[str, Any]
Content = str | tuple[Block, ...]
"""What a message holds: text, or blocks."""

# Stands for a value while the data around it are written as JSON. Nothing in the data can hold it
# by intent, for it is another one in every process; and none is left in what is sent.
_MARK: Final = secrets.token_hex(12)
_PLACE: Final = re.compile(rf'"{_MARK}-(\d+)"')


class Pieces(tuple["str | Block", ...]):
    """A field's value as text and blocks, in their order; the texts are not escaped yet."""

    __slots__ = ()

    def __contains__(self, item: object) -> bool:
        return False  # it holds no marker of a layout: its texts are escaped when it is put together


class Collector(Rendering):
    """Takes the values of the types out of data, and puts their blocks where they stood."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: list[Sequence[Block]] = []

    def take(self, value: Type, plain: Callable[[Any], Any]) -> Any:  # noqa: ARG002 - not as data
        """The text of a value, or what stands for its blocks."""
        made = formatted(value)
        if isinstance(made, str):
            return made
        self._found.append(made)
        return f"{_MARK}-{len(self._found) - 1}"

    @property
    def empty(self) -> bool:
        """Whether all values were texts."""
        return not self._found

    def revealed(self, text: str) -> str:
        """JSON with the blocks themselves in it, to put things in an order that does not change."""
        if self.empty:
            return text
        return _PLACE.sub(lambda at: orjson.dumps(list(self._found[int(at[1])]), default=dict).decode(), text)

    def split(self, text: str) -> Pieces:
        """The JSON text with each value's blocks in its place."""
        parts = _PLACE.split(text)
        pieces: list[str | Block] = [parts[0]]
        for place, rest in zip(parts[1::2], parts[2::2], strict=True):
            pieces.extend(self._found[int(place)])
            pieces.append(rest)
        return Pieces(pieces)


def formatted(value: Type) -> str | Sequence[Block]:
    """What a value says that the model sees of it.

    Raises:
        ValueProblem: it says neither text nor blocks, or its own code failed.
    """
    try:
        made: Any = value.format()
    except Exception as error:  # the user's own code, which may raise anything
        problem = f"its format() failed: {type(error).__name__}: {error}"
        raise ValueProblem(f"a {type(value).__name__} cannot be written: {problem}") from error
    if isinstance(made, Mapping):
        made = [made] if _is_block(made) else to_json(made).decode()
    if isinstance(made, str):
        return made
    if isinstance(made, (list, tuple)) and all(_is_block(block) for block in made):
        return made
    raise ValueProblem(
        f"a {type(value).__name__} cannot be written: its format() gives a text, or a list of blocks that "
        f"are mappings with a `type`, not {type(made).__name__}"
    )


def _is_block(block: Any) -> bool:
    return isinstance(block, Mapping) and isinstance(block.get("type"), str)


def numbered_pieces(items: Sequence[Any], write: Callable[[Any], str | Pieces]) -> str | Pieces:
    """Several values for one field, numbered; later lines of a text set in.

    >>> numbered_pieces(["one", "two"], str)
    '1. one\\n2. two'
    """
    if not items:
        return "(none)"
    pieces: list[str | Block] = []
    for number, item in enumerate(items, 1):
        lead = f"{number}. "
        made = write(item)
        pieces.append(lead if number == 1 else f"\n{lead}")
        margin = "\n" + " " * len(lead)
        each = made if isinstance(made, Pieces) else (made,)
        pieces += [piece.replace("\n", margin) if isinstance(piece, str) else piece for piece in each]
    return Pieces(pieces) if any(not isinstance(p, str) for p in pieces) else "".join(map(str, pieces))


def assembled(parts: Iterable[str | Pieces], escape: Callable[[str], str]) -> Content:
    """One turn of texts, which are escaped already, and of pieces, which are not.

    Texts next to each other become one block. Without any other block the turn is one text.
    """
    blocks: list[Block] = []
    text: list[str] = []
    for piece, given in _each(parts):
        if isinstance(piece, str):
            text.append(escape(piece) if given else piece)
        elif piece["type"] == "text" and isinstance(piece.get("text"), str):
            text.append(escape(piece["text"]))
        else:
            _flush(text, blocks)
            blocks.append(piece)
    if not blocks:
        return "".join(text)
    _flush(text, blocks)
    return tuple(blocks)


def _each(parts: Iterable[str | Pieces]) -> Iterator[tuple[str | Block, bool]]:
    for part in parts:
        if isinstance(part, Pieces):
            for piece in part:
                yield piece, True
        else:
            yield part, False


def _flush(text: list[str], blocks: list[Block]) -> None:
    joined_text = "".join(text)
    text.clear()
    # Providers refuse blocks of blank text.
    if joined_text and not joined_text.isspace():
        blocks.append({"type": "text", "text": joined_text})


def joined(contents: Iterable[Content]) -> Content:
    """Contents one below the other, a blank line between them; empty ones are left out.

    >>> joined(["Look:", "", ({"type": "image_url", "image_url": {"url": "https://x"}},)])[0]
    {'type': 'text', 'text': 'Look:\\n\\n'}
    """
    kept = [content for content in contents if content]
    parts: list[str | Pieces] = []
    for number, content in enumerate(kept):
        if number:
            parts.append("\n\n")
        if isinstance(content, str):
            parts.append(content)
        else:
            parts.extend(b["text"] if b["type"] == "text" else Pieces((b,)) for b in content)
    return assembled(parts, str)


def flattened(content: Content, escape: Callable[[str], str]) -> Content:
    """The content for a model that does not cite: its documents as text, those in PDF as files."""
    if isinstance(content, str) or not any(block["type"] == "document" for block in content):
        return content
    parts: list[str | Pieces] = []
    for block in content:
        if block["type"] == "document" and isinstance(block.get("source"), Mapping):
            parts.append(Pieces((_document(block),)))
        elif block["type"] == "text":
            parts.append(block["text"])
        else:
            parts.append(Pieces((block,)))
    return assembled(parts, escape)


def _document(block: Block) -> str | Block:
    source, title = block["source"], block.get("title")
    if source.get("type") == "base64":
        data = f"data:{source.get('media_type')};base64,{source.get('data')}"
        return {"type": "file", "file": {"file_data": data, "filename": title or "document.pdf"}}
    return "\n\n".join(str(part) for part in (title, block.get("context"), source.get("data")) if part)


def broken_text(value: Any) -> bool:
    """Whether any text within plain data holds half of a surrogate pair."""
    if isinstance(value, str):
        return not value.isascii() and value.encode("utf-8", "ignore").decode() != value
    if isinstance(value, Mapping):
        return any(broken_text(item) for pair in value.items() for item in pair)
    return isinstance(value, (list, tuple)) and any(broken_text(item) for item in value)
