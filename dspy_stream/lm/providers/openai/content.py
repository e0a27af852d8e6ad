"""A message's content as servers send it: text, or blocks of text and of thinking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dspy_stream.lm.providers.blocks import blocks

__all__ = ["documents", "split_content"]


def documents(content: Any) -> Iterator[Mapping[str, Any]]:
    """The blocks of a content, its files as Mistral takes them."""
    for block in blocks(content):
        if block["type"] != "file":
            yield block
            continue
        given = block["file"]
        if given.get("file_data"):
            made = {"type": "document_url", "document_url": given["file_data"]}
            yield {**made, "document_name": given["filename"]} if given.get("filename") else made
        else:
            yield {"type": "file", "file_id": given["file_id"]}


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
