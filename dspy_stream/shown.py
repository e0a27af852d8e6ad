"""A model call as a text for the eye."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["shown"]

_RED, _GREEN, _BLUE, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[34m", "\x1b[0m"
# A prompt or an answer must not steer the terminal that it is printed on.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(entry: Mapping[str, Any], *, colours: bool) -> str:
    """One entry of a history: its messages and the first completion; media only by their size."""
    paint = _painted if colours else _unpainted
    messages = entry["messages"] or [{"role": "user", "content": entry["prompt"]}]
    lines = ["\n\n\n", paint(_BLUE, f"[{entry.get('timestamp', 'Unknown time')}]"), ""]
    for message in messages:
        lines += [paint(_RED, f"{str(message['role']).capitalize()} message:"), ""]
        lines += [_content(message.get("content")), *_tool_calls(message.get("tool_calls"), paint), "\n"]
    outputs = entry["outputs"]
    first = outputs[0] if outputs else ""
    text = first.get("text") if isinstance(first, Mapping) else first
    if text:
        lines += [paint(_RED, "Response:"), "", paint(_GREEN, _clean(str(text)).strip())]
    if isinstance(first, Mapping):
        lines += _tool_calls(first.get("tool_calls"), paint)
    if len(outputs) > 1:
        lines.append(paint(_RED, f" \t (and {len(outputs) - 1} other completions)"))
    return "\n".join([*lines, "\n\n\n"])


def _painted(colour: str, text: str) -> str:
    return f"{colour}{text}{_PLAIN}"


def _unpainted(_colour: str, text: str) -> str:
    return text


def _clean(text: str) -> str:
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


def _content(content: Any) -> str:
    if isinstance(content, str):
        return _clean(content).strip()
    return "\n".join(_clean(_block(block)).strip() for block in content or ())


def _block(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    if kind == "text":
        return str(block.get("text", ""))
    if kind == "image_url":
        url = str(block["image_url"].get("url", ""))
        head, found, data = url.partition("base64,")
        return f"<{head}base64,<IMAGE BASE 64 ENCODED({len(data)})>>" if found else f"<image_url: {url}>"
    if kind == "input_audio":
        audio = block["input_audio"]
        size = len(audio.get("data", ""))
        return f"<audio format='{audio.get('format', '')}' base64-encoded, length={size}>"
    if kind == "file":
        file = block["file"]
        size = len(file.get("file_data") or "")
        return f"<file: name:{file.get('filename', '')}, id:{file.get('file_id', '')}, data_length:{size}>"
    return f"<{kind}>"


def _tool_calls(calls: Any, paint: Any) -> list[str]:
    if not calls:
        return []
    lines = [paint(_RED, "Tool calls:")]
    for call in calls:
        function = call.get("function") or call
        arguments = function.get("arguments", function.get("args"))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False, default=str)
        lines.append(paint(_GREEN, _clean(f"{function.get('name', '<unknown>')}: {arguments}")))
    return lines
