"""A conversation's earlier turns, written as they were asked and answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from dspy_stream.adapters.blocks import Content
from dspy_stream.adapters.bound import fields_of
from dspy_stream.adapters.problem import why_invalid
from dspy_stream.errors import AdapterRenderError
from dspy_stream.program import Signature
from dspy_stream.program.types.history import History
from dspy_stream.program.types.tool_calls import ToolCall, ToolCallResult, ToolCallResults, ToolCalls
from dspy_stream.types import Message

if TYPE_CHECKING:
    from dspy_stream.adapters.base import Adapter

__all__ = ["THINKING", "history_of", "history_turns", "past_turns", "with_past"]

THINKING: Final = ("reasoning_blocks", "reasoning_content")
"""What stands beside the calls of a turn and goes back with them."""

Fit = Callable[[Content], Content]
_RESULTS = "tool_call_results"


def history_turns(
    adapter: Adapter,
    signature: type[Signature],
    name: str,
    value: Any,
    *,
    calls: str | None = None,
    fit: Fit = lambda content: content,
) -> list[Message]:
    """The turns of the history that is given as the input field ``name``; otherwise as :func:`past_turns`.

    Raises:
        AdapterRenderError: it is no history, or one of its messages cannot be written.
    """
    history = history_of(name, value)
    try:
        return past_turns(adapter, signature, history, calls=calls, fit=fit)
    except AdapterRenderError as error:
        raise AdapterRenderError(f"input field `{name}`, {error}") from error


def history_of(name: str, value: Any) -> History:
    """What is given as the input field ``name``, as a history; an empty one for nothing.

    Raises:
        AdapterRenderError: it is no history.
    """
    try:
        return value if isinstance(value, History) else History.model_validate(value or [])
    except ValidationError as error:
        raise AdapterRenderError(f"input field `{name}` is no History: {why_invalid(error)}") from None


def with_past(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``values`` with the conversation under ``name`` as a History, without it where nothing was said.

    Raises:
        AdapterRenderError: it is no history.
    """
    history = history_of(name, values.get(name))
    made = {key: value for key, value in values.items() if key != name}
    return {**made, name: history} if history.messages else made


def past_turns(
    adapter: Adapter, signature: type[Signature], history: History, *, calls: str | None, fit: Fit
) -> list[Message]:
    """The turns of a history, each message as one of the user and one of the model.

    A message with all inputs is written with the reminder of the answer's form, word for word as it
    was asked when it was new, so that a provider's cache of the conversation so far holds.

    Args:
        adapter: writes them.
        signature: the fields that go through the text.
        history: what was said.
        calls: the field of tool calls, where these go to the provider as such.
        fit: makes a turn fit for the model.

    Raises:
        AdapterRenderError: a message cannot be written; it is numbered.
    """
    made: list[Message] = []
    for number, message in enumerate(history.messages, 1):
        try:
            made += _turn(adapter, signature, message, calls=calls, number=number, fit=fit)
        except AdapterRenderError as error:  # noqa: PERF203 - the number is needed
            raise AdapterRenderError(f"message {number}: {error}") from error
    return made


def _turn(
    adapter: Adapter,
    signature: type[Signature],
    message: Mapping[str, Any],
    *,
    calls: str | None,
    number: int,
    fit: Fit,
) -> list[Message]:
    results, message = _apart(message)
    fields = fields_of(signature)
    asked = [field.given_in(message) for field in fields.inputs]
    made: list[Message] = []
    if {"role", "content"} <= message.keys() and message.keys().isdisjoint((*signature.fields, calls)):
        names = ", ".join(f"`{name}`" for name in signature.fields)
        raise AdapterRenderError(
            f"a chat message (`role`, `content`) is no turn, which has fields of: {names}"
        )
    if any(asked):
        content = adapter.format_user_message_content(signature, message, main_request=all(asked))
        made.append(Message("user", fit(content)))
    said = ""
    if any(field.given_in(message) for field in fields.outputs):
        said = adapter.format_assistant_message_content(signature, message)
    pairs = _pairs(message.get(calls), results, number) if calls is not None else []
    if pairs:
        extra = {"tool_calls": [call for call, _ in pairs], **_thinking(message, calls, len(pairs))}
        made.append(Message("assistant", said, extra))
        return made + [Message("tool", text, {"tool_call_id": call["id"]}) for call, text in pairs]
    if said:
        made.append(Message("assistant", said))
    if results:
        lines = [f"{place}. `{each.name}`: {_outcome(each)}" for place, each in enumerate(results, 1)]
        escape = adapter.layout(signature).escape
        made.append(Message("user", escape("What the tools gave:\n" + "\n".join(lines))))
    return made


def _thinking(message: Mapping[str, Any], calls: str | None, pairs: int) -> dict[str, Any]:
    """What was thought with the calls; nothing where one is left out, since the order names them all."""
    given = message.get(calls or "")
    if not isinstance(given, ToolCalls):
        given = _validated(ToolCalls, given, "tool calls")
    kept = message.get("_thinking") or given.thinking
    if len(given) != pairs or not isinstance(kept, Mapping):
        return {}
    blocks, text = kept.get(THINKING[0]), kept.get(THINKING[1])
    made: dict[str, Any] = {}
    if isinstance(blocks, list) and all(isinstance(block, Mapping) for block in blocks):
        made[THINKING[0]] = blocks
    if isinstance(text, str):
        made[THINKING[1]] = text
    return made


def _outcome(result: ToolCallResult) -> str:
    return f"failed: {result.text()}" if result.is_error else result.text()


def _apart(message: Mapping[str, Any]) -> tuple[list[ToolCallResult], dict[str, Any]]:
    """What tools gave, and the message without the results that its calls carry, as DSPy keeps them."""
    found: ToolCallResults | None = None
    left = dict(message)
    for name, value in message.items():
        carries = isinstance(value, Mapping) and value.keys() == ToolCalls.model_fields.keys()
        calls = _validated(ToolCalls, value, name) if carries else value
        if isinstance(calls, ToolCalls) and calls.tool_call_results is not None:
            found = _validated(ToolCallResults, calls.tool_call_results, _RESULTS)
            left[name] = calls.model_copy(update={"tool_call_results": None})
        elif isinstance(value, ToolCallResults):
            found = value
    if found is None and message.get(_RESULTS) is not None:
        found = _validated(ToolCallResults, message[_RESULTS], _RESULTS)
    return found.tool_call_results if found is not None else [], left


def _pairs(given: Any, results: list[ToolCallResult], number: int) -> list[tuple[dict[str, Any], str]]:
    """Each call in the provider's form with the text of its result.

    Calls without one are left out: providers refuse a conversation in which a call was not answered.
    """
    if given is None:
        return []
    calls: list[ToolCall] = _validated(ToolCalls, given, "tool calls").tool_calls
    by_id = {each.call_id: each for each in results if each.call_id is not None}
    made: list[tuple[dict[str, Any], str]] = []
    for place, call in enumerate(calls):
        result = by_id.get(call.id) if call.id is not None else None
        if result is None and place < len(results) and results[place].name == call.name:
            result = results[place] if call.id is None or results[place].call_id is None else None
        if result is not None:
            arguments = json.dumps(to_jsonable_python(call.args), ensure_ascii=False)
            form = {
                "id": call.id or f"call_{number}_{place + 1}",
                "type": "function",
                "function": {"name": call.name, "arguments": arguments},
            }
            made.append((form, _outcome(result) if result.is_error else result.text()))
    return made


def _validated(kind: type[Any], value: Any, what: str) -> Any:
    try:
        return value if isinstance(value, kind) else kind.model_validate(value)
    except ValidationError as error:
        raise AdapterRenderError(f"`{what}`: {why_invalid(error)}") from None
