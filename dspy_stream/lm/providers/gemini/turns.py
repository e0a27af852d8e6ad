"""A conversation in Gemini's form: a system instruction, and contents made of parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

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
from dspy_stream.lm.providers.wire import SYSTEM_ROLES, text_of
from dspy_stream.types import Message

__all__ = ["Content", "contents", "system_parts"]

_ROLES: Final = {"user": "user", "assistant": "model", "tool": "user", "function": "user"}
# Kinds by the ending of an address, since Gemini asks for one where there are no bytes to look at.
_KINDS: Final = {
    **{"jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"},
    **{"pdf": "application/pdf", "mp3": "audio/mp3", "wav": "audio/wav", "mp4": "video/mp4"},
}


# Google's own word for a call that another model made, or a program, and that so has no signature.
_UNSIGNED: Final = "skip_thought_signature_validator"


class Content(NamedTuple):
    """One turn: ``user`` or ``model``, and its parts."""

    role: str
    parts: list[Mapping[str, Any]]


def system_parts(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """The text of all system turns, a part each."""
    texts = [text_of(message.content) for message in messages if message.role in SYSTEM_ROLES]
    return [{"text": text} for text in texts if text]


def contents(
    messages: Sequence[Message], named: dict[str, Mapping[str, str]], *, signed: bool
) -> list[Content]:
    """All other turns, neighbours of one role made one.

    ``named`` maps the ids of tool calls to what their answers begin with; it is added to. An answer
    goes back under its function's name, and under the call's id where Gemini itself gave it one.
    ``signed``: the model refuses calls without a signature.

    Raises:
        LMInvalidRequestError: a role or a block that the format does not know.
    """
    made: list[Content] = []
    for message in messages:
        if message.role in SYSTEM_ROLES:
            continue
        role = _ROLES.get(message.role)
        if role is None:
            raise LMInvalidRequestError(f"Gemini knows no role {message.role!r}")
        parts = list(_parts(message, named, signed))
        if not parts:  # a turn without parts is refused
            continue
        if made and made[-1].role == role:
            made[-1].parts.extend(parts)
        else:
            made.append(Content(role, parts))
    return made


def _parts(
    message: Message, named: dict[str, Mapping[str, str]], signed: bool
) -> Iterator[Mapping[str, Any]]:
    extra = message.extra or {}
    if message.role in ("tool", "function"):
        yield {"functionResponse": _answered(message, extra, named)}
        return
    asked = calls(message) if message.role == "assistant" else ()
    named.update({call.id: {"name": call.name} for call in asked})
    kept = extra.get("reasoning_blocks") or ()
    if any("thoughtSignature" in part for part in kept):  # of this provider, not of another
        # Its signatures belong to parts at their places, so the turn goes back as it came.
        given = [part["functionCall"] for part in kept if (part.get("functionCall") or {}).get("id")]
        named.update({call["id"]: {"id": call["id"], "name": call["name"]} for call in given})
        yield from kept
        return
    for block in blocks(message.content):
        yield _part(block)
    for place, call in enumerate(asked):
        signature = {"thoughtSignature": _UNSIGNED} if signed and place == 0 else {}
        yield {"functionCall": {"name": call.name, "args": arguments_object(call)}, **signature}


def _answered(
    message: Message, extra: Mapping[str, Any], named: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    made: dict[str, Any] = dict(named.get(extra.get("tool_call_id") or "", ()))
    if extra.get("name"):
        made["name"] = extra["name"]
    if not made:
        raise LMInvalidRequestError("a tool's answer belongs to no call before it, and has no name")
    text = text_of(message.content)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    made["response"] = value if isinstance(value, dict) else {"result": value}
    return made


def _part(block: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = block["type"]
    if kind == "text":
        return {"text": block["text"]}
    if kind == "image_url":
        return _media(split(image_url(block)[0], "image/png"))
    if kind == "input_audio":
        given = block["input_audio"]
        return {"inlineData": {"mimeType": f"audio/{given.get('format') or 'wav'}", "data": given["data"]}}
    if kind == "file":
        media, file_id, _name = file_source(block)
        return _media(media) if media is not None else {"fileData": {"fileUri": file_id}}
    raise LMInvalidRequestError(f"Gemini takes no content block of type {kind[:40]!r}")


def _media(media: Media) -> dict[str, Any]:
    if media.url is None:
        return {"inlineData": {"mimeType": media.mime, "data": media.data}}
    ending = media.url.partition("?")[0].rpartition(".")[2].lower()
    return {"fileData": {"mimeType": _KINDS.get(ending, media.mime), "fileUri": media.url}}
