"""A message's content as servers send it: text, or blocks of text and of thinking."""

from __future__ import annotations

from typing import Any

__all__ = ["split_content"]


def split_content(content: Any) -> tuple[str, str]:
    """The text and the reasoning in a content, each in one piece.

    >>> split_content([{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": "yes"}])
    ('yes', 'hm')
    """
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        return "", ""
    texts, thoughts = [], []
    for block in content:
        if isinstance(block, dict):
            if isinstance(text := block.get("text"), str):
                texts.append(text)
            thoughts.append(_thinking(block.get("thinking")))
    return "".join(texts), "".join(thoughts)


def _thinking(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        pieces = [piece.get("text") for piece in value if isinstance(piece, dict)]
        return "".join([piece for piece in pieces if isinstance(piece, str)])
    return ""
