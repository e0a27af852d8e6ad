"""A conversation in Anthropic's form: system text apart, turns that alternate, blocks of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from dspy_stream.errors import LMInvalidRequestError
from dspy_stream.lm.providers.blocks import (
    Media,
    arguments_object,
    blocks,
    calls,
    file_source,
    image_url,
    split,
)
from dspy_stream.lm.providers.wire import SYSTEM_ROLES
from dspy_stream.types import Message

__all__ = ["Turn", "system_blocks", "turns"]

_ROLES: Final = {"user": "user", "assistant": "assistant", "tool": "user", "function": "user"}


class Turn(NamedTuple):
    """One turn: ``user`` or ``assistant``, and its blocks."""

    role: str
    blocks: list[Mapping[str, Any]]


def system_blocks(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """The text blocks of all system turns."""
    found = [_block(block) for m in messages if m.role in SYSTEM_ROLES for block in blocks(m.content)]
    if any(block["type"] != "text" for block in found):
        raise LMInvalidRequestError("a system turn for Anthropic holds only text")
    return found


def turns(messages: Sequence[Message]) -> list[Turn]:
    """All other turns, neighbours of one role made one.

    Raises:
        LMInvalidRequestError: a role or a block that the format does not know.
    """
    made: list[Turn] = []
    for message in messages:
        if message.role in SYSTEM_ROLES:
            continue
        role = _ROLES.get(message.role)
        if role is None:
            raise LMInvalidRequestError(f"Anthropic knows no role {message.role!r}")
        inside = list(_turn(message))
        if not inside:  # a turn without blocks is refused
            continue
        if made and made[-1].role == role:
            made[-1].blocks.extend(inside)
        else:
            made.append(Turn(role, inside))
    return made


def _turn(message: Message) -> Iterator[Mapping[str, Any]]:
    extra = message.extra or {}
    if message.role in ("tool", "function"):
        content = message.content
        yield {
            "type": "tool_result",
            "tool_use_id": extra["tool_call_id"],
            "content": content if isinstance(content, str) else [_block(block) for block in blocks(content)],
        }
        return
    if message.role == "assistant":
        kept = extra.get("reasoning_blocks") or ()
        if any(block.get("type") in _THINKING for block in kept):  # of this provider, not of another
            yield from kept
            # Thinking between tool calls comes with the whole turn, whose order must not change.
            if any(block.get("type") not in _THINKING for block in kept):
                return
    for block in blocks(message.content):
        yield _block(block)
    for call in calls(message):
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_object(call)}


_THINKING: Final = frozenset({"thinking", "redacted_thinking"})


def _block(block: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = block["type"]
    if kind == "text":
        return block
    if kind == "image_url":
        made: dict[str, Any] = {
            "type": "image",
            "source": _source(split(image_url(block)[0], "image/png"), "image"),
        }
    elif kind == "file":
        media, file_id, name = file_source(block)
        made = {"type": "document"}
        made["source"] = {"type": "file", "file_id": file_id} if media is None else _source(media, "document")
        if name:
            made["title"] = name
    elif kind == "input_audio":
        raise LMInvalidRequestError("Anthropic's models take no audio")
    else:
        return block  # one of the format's own: document, search_result, ...
    if block.get("cache_control"):
        made["cache_control"] = block["cache_control"]
    return made


def _source(media: Media, kind: str) -> dict[str, Any]:
    if media.url is not None:
        return {"type": "url", "url": media.url}
    if kind == "document" and media.mime.startswith("text/"):
        return {"type": "text", "media_type": "text/plain", "data": _decoded(media.data)}
    return {"type": "base64", "media_type": media.mime, "data": media.data}


def _decoded(data: str) -> str:
    import base64

    return base64.b64decode(data, validate=True).decode("utf-8")
