"""Content blocks and tool calls in their canonical form, checked and taken apart for other formats."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from dspy_stream.errors import LMInvalidRequestError
from dspy_stream.types import Message

__all__ = [
    *("Call", "Media", "arguments_object", "blocks", "calls", "canonical", "file_source", "image_url"),
    "split",
]

_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)


class Media(NamedTuple):
    """Bytes in base64 and their kind, or a place where the provider finds them (``url``)."""

    mime: str
    data: str
    url: str | None = None


class Call(NamedTuple):
    """One tool call of the assistant; ``arguments`` is the text that the model wrote."""

    id: str
    name: str
    arguments: str


def split(url: str, mime: str = "application/octet-stream") -> Media:
    """A data URL taken apart; any other URL is kept as it is and never looked at.

    >>> split("data:image/png;base64,AAAA"), split("https://x.example/a.png").url
    (Media(mime='image/png', data='AAAA', url=None), 'https://x.example/a.png')
    """
    found = _DATA_URL.match(url)
    if found is not None:
        return Media(found.group(1) or mime, url[found.end() :])
    if url.startswith("data:"):
        raise LMInvalidRequestError("a data URL must be in base64: data:image/png;base64,...")
    return Media(mime, "", url)


def blocks(content: Any) -> Iterator[Mapping[str, Any]]:
    """The blocks of a content; a text is one block, an empty one is left out.

    Raises:
        LMInvalidRequestError: a block that is not a mapping with a type.
    """
    if isinstance(content, str):
        if content:
            yield {"type": "text", "text": content}
        return
    for block in content:
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise LMInvalidRequestError("a content block is a mapping with a type")
        if block.get("text") != "":
            yield block


def image_url(block: Mapping[str, Any]) -> tuple[str, Any]:
    """URL and detail of an ``image_url`` block, in either of its two forms."""
    given = block["image_url"]
    if isinstance(given, str):
        return given, None
    return str(given["url"]), given.get("detail")


def file_source(block: Mapping[str, Any]) -> tuple[Media | None, str | None, str | None]:
    """Contents, the provider's own id, and name of a ``file`` block.

    Contents may be a data URL, or base64 alone, which is then a PDF.
    """
    given = block["file"]
    data, file_id, name = given.get("file_data"), given.get("file_id"), given.get("filename")
    if isinstance(data, str):
        looks_like_url = data.startswith("data:") or "://" in data[:10]
        return (split(data) if looks_like_url else Media("application/pdf", data)), None, name
    if isinstance(file_id, str):
        return None, file_id, name
    raise LMInvalidRequestError("a file block has file_data or file_id")


def calls(message: Message) -> Sequence[Call]:
    """The tool calls of an assistant's turn."""
    given = message.extra.get("tool_calls") if message.extra is not None else None
    made = []
    for place, call in enumerate(given or ()):
        function = call["function"]
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = orjson.dumps(arguments if arguments is not None else {}).decode()
        made.append(Call(call.get("id") or f"call_{place}", function["name"], arguments))
    return made


def canonical(given: Any) -> list[dict[str, Any]]:
    """Tool calls of an answer, each with an id and with arguments as text; what is no call is left out.

    >>> canonical([{"function": {"name": "f", "arguments": {"a": 1}}}, None])
    [{'function': {'name': 'f', 'arguments': '{"a":1}'}, 'id': 'call_0', 'type': 'function'}]
    """
    made = []
    for place, call in enumerate(given if isinstance(given, list) else ()):
        if not isinstance(call, dict):
            continue
        if call.get("type") == "custom":  # of a tool that takes free text
            made.append(call)
            continue
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = orjson.dumps(arguments if arguments is not None else {}).decode()
        whole = {**function, "arguments": arguments}
        made.append({**call, "id": call.get("id") or f"call_{place}", "type": "function", "function": whole})
    return made


def arguments_object(call: Call) -> dict[str, Any]:
    """A call's arguments as an object, for formats that do not take them as text.

    Raises:
        LMInvalidRequestError: they are not a JSON object.
    """
    try:
        value = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise LMInvalidRequestError(f"the arguments of the tool call {call.name!r} are not a JSON object")
    return value
