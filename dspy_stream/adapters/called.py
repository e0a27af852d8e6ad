"""Tool calls that a model made by the provider's own means, though it was asked for them in the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dspy_stream.adapters.parse import NotJSON, loads
from dspy_stream.adapters.shape import bare, without_none
from dspy_stream.program import Signature
from dspy_stream.program.types.tool_calls import ToolCalls
from dspy_stream.types import Choice

__all__ = ["called", "calls_of"]


def called(signature: type[Signature], choice: Choice) -> dict[str, Any] | None:
    """The outputs of such an answer: the calls, and for every other field its default or None.

    None where no field is for tool calls, or these are none.
    """
    outputs = signature.output_fields
    name = next(
        (
            each
            for each, field in outputs.items()
            if bare(without_none(bare(field.annotation))[0]) is ToolCalls
        ),
        None,
    )
    if name is None or choice.extra is None:
        return None
    try:
        calls = calls_of(choice.extra["tool_calls"])
    except (NotJSON, ValidationError):
        return None
    others = {each: signature.default_of(each) if signature.may_omit(each) else None for each in outputs}
    return {**others, name: calls}


def calls_of(given: Any) -> ToolCalls:
    """The calls that a provider sent; their arguments are read as forgivingly as other JSON of a model.

    Raises:
        NotJSON: the arguments of one are no JSON.
        ValidationError: something is no call.
    """
    several = isinstance(given, list)
    return ToolCalls.model_validate([_read(each) for each in given] if several else given)


def _read(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if isinstance(function, Mapping):
        return {**call, "function": _read(function)}
    text = call.get("arguments") if isinstance(call, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        return call
    try:
        value = loads(text, "{")
        if isinstance(value, str):
            value = loads(value, "{")
    except NotJSON as problem:
        raise NotJSON(f"the arguments of the call of {call.get('name')!r}: {problem.reason}") from None
    return {**call, "arguments": value}
