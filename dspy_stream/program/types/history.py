"""History: earlier turns of a conversation, as an input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["History"]


class History(BaseModel):
    """The conversation so far: one mapping for each turn, keyed by the signature's own fields.

    An input field of this type is shown as a field in demos alone. Each of its messages becomes a turn
    of the user and one of the model, after the demos and before the row's own; a message that lacks
    some fields, or one side altogether, gives what it has. Fields that the signature does not have are
    left out, but for ``ToolCallResults``, by themselves or within ``ToolCalls``, which become the
    answers of the tools; a message of ``role`` and ``content`` alone is an error. The field may be
    missing or None: the conversation then begins.

    >>> History(messages=[{"question": "Capital of France?", "answer": "Paris"}]).messages[0]["answer"]
    'Paris'
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    messages: list[dict[str, Any]] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _from_data(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        return {"messages": [dict(turn) if isinstance(turn, Mapping) else turn for turn in value]}
