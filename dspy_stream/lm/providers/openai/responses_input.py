"""A conversation as the input items of OpenAI's responses format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from dspy_stream.errors import LMInvalidRequestError
from dspy_stream.lm.providers.blocks import blocks, calls, file_source, image_url
from dspy_stream.lm.providers.wire import SYSTEM_ROLES, text_of
from dspy_stream.types import Message

__all__ = ["items", "leading_instructions"]

_WHOLE: Final = ("message", "function_call")
_ROLES: Final = frozenset({"user", "assistant", "system", "developer"})


def leading_instructions(messages: tuple[Message, ...]) -> tuple[str, tuple[Message, ...]]:
    """The text of the system turns at the beginning, and the turns after them."""
    place = 0
    while place < len(messages) and messages[place].role in SYSTEM_ROLES:
        place += 1
    texts = [text_of(message.content) for message in messages[:place]]
    return "\n\n".join([text for text in texts if text]), messages[place:]


def items(message: Message) -> Iterator[Mapping[str, Any]]:
    """The items that one turn becomes: its reasoning, its text, its tool calls; or a tool's output.

    Raises:
        LMInvalidRequestError: a role or a block that the format does not know.
    """
    role, extra = message.role, message.extra or {}
    if role == "tool":
        yield {
            "type": "function_call_output",
            "call_id": extra["tool_call_id"],
            "output": _content(message.content),
        }
        return
    if role not in _ROLES:
        raise LMInvalidRequestError(f"the responses API knows no role {role!r}")
    if role != "assistant":
        yield {"role": role, "content": _content(message.content)}
        return
    kept = extra.get("reasoning_blocks") or ()
    if any(block.get("type") in _WHOLE for block in kept):
        # Thinking between texts and calls comes with the whole turn, whose order must not change.
        yield from map(_again, kept)
        return
    for block in kept:
        if block.get("type") == "reasoning":  # of this provider, not of another
            yield _again(block)
    if text := text_of(message.content):
        yield {"role": "assistant", "content": text}
    for call in calls(message):
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _again(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """An item of an answer as it goes back; of a message its status is wanted, elsewhere it is not."""
    left = () if item.get("type") == "message" else ("status",)
    return {name: value for name, value in item.items() if name not in left and value is not None}


def _content(content: Any) -> Any:
    return content if isinstance(content, str) else [_block(block) for block in blocks(content)]


def _block(block: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = block["type"]
    if kind == "text":
        return {"type": "input_text", "text": block["text"]}
    if kind == "image_url":
        url, detail = image_url(block)
        return {"type": "input_image", "image_url": url, "detail": detail or "auto"}
    if kind == "file":
        return _file(block)
    if kind == "input_audio":
        raise LMInvalidRequestError("the responses API takes no audio; use model_type='chat'")
    return block  # one of the format's own


def _file(block: Mapping[str, Any]) -> dict[str, Any]:
    media, file_id, name = file_source(block)
    if media is None:
        return {"type": "input_file", "file_id": file_id}
    if media.url is not None:
        return {"type": "input_file", "file_url": media.url}
    data = f"data:{media.mime};base64,{media.data}"
    return {"type": "input_file", "filename": name or "document", "file_data": data}
