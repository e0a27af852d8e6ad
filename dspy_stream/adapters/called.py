"""Tool calls that a model made by the provider's own means, though it was asked for them in the text."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from dspy_stream.adapters.shape import bare, without_none
from dspy_stream.program import Signature
from dspy_stream.program.types.tool_calls import ToolCalls
from dspy_stream.types import Choice

__all__ = ["called"]


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
        calls = ToolCalls.model_validate(choice.extra["tool_calls"])
    except ValidationError:
        return None
    others = {each: signature.default_of(each) if signature.may_omit(each) else None for each in outputs}
    return {**others, name: calls}
