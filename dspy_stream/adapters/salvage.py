"""Read an answer that is whole, but in another form than the one that was asked for.

Models trained on one form answer in it whatever the prompt says. Asking again costs a call; taking
such an answer costs nothing, where two things are certain. It is unambiguous: the text is one JSON
object and nothing else, or fields below markers, with every required output and with nothing that
was not asked for. And it is the model's own: no part of what was just asked holds it, blanks aside,
so an input that looks like an answer never becomes one by being repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dspy_stream.adapters.bound import fields_of
from dspy_stream.adapters.markers import finder
from dspy_stream.adapters.members import members_of
from dspy_stream.adapters.parse import NotJSON, loads
from dspy_stream.adapters.read import Reader
from dspy_stream.errors import AdapterParseError
from dspy_stream.program import Signature
from dspy_stream.types import Choice, Message

__all__ = ["Other", "other_json", "other_markers"]

Other = Callable[[Choice, Iterable[Message]], "dict[str, Any] | None"]
"""From a completion and the turns it answers to outputs; None where anything is uncertain."""

_FENCED: Final = re.compile(r"```[A-Za-z]*[ \t]*\r?\n(.*)\n[ \t]*```", re.DOTALL)


def other_json(adapter_name: str, signature: type[Signature]) -> Other:
    """Reads answers that are one JSON object, fenced or bare."""

    members = members_of(fields_of(signature), exact=True)

    def find(text: str) -> Mapping[str, Any]:
        value = loads(text, openers="", exact=True)
        return members(value, text) if isinstance(value, dict) else {}

    def split(text: str) -> str | None:
        fenced = _FENCED.fullmatch(text)
        text = fenced.group(1).strip() if fenced else text
        return text if text[:1] == "{" and text[-1:] == "}" else None

    return _reading(adapter_name, signature, find, split)


def other_markers(adapter_name: str, signature: type[Signature]) -> Other:
    """Reads answers whose fields stand below markers."""
    find = finder(signature.input_fields, signature.output_fields)

    def split(text: str) -> str | None:
        return text if "[[" in text else None

    return _reading(adapter_name, signature, find, split, text=True)


def _reading(
    adapter_name: str,
    signature: type[Signature],
    find: Callable[[str], Mapping[str, Any]],
    split: Callable[[str], str | None],
    *,
    text: bool = False,
) -> Other:
    wanted = set(signature.output_fields)
    reader = Reader(adapter_name, signature, fields_of(signature), find=find, text=text, where=str)

    def read(choice: Choice, asked: Iterable[Message]) -> dict[str, Any] | None:
        answer = split(choice.text.strip())
        if answer is None or choice.finish_reason == "length" or _quoted(answer, asked):
            return None
        try:
            if not set(find(answer)) <= wanted:
                return None
            return reader(answer)
        except (AdapterParseError, NotJSON):
            return None

    return read


def _quoted(answer: str, asked: Iterable[Message]) -> bool:
    """Whether the turns hold the answer, blanks aside."""
    bare = "".join(answer.split())
    return any(bare in "".join(_text(message).split()) for message in asked)


def _text(message: Message) -> str:
    content = message.content
    return (
        content if isinstance(content, str) else "\n".join([str(block.get("text", "")) for block in content])
    )
