"""A conversation's earlier turns, written as they were asked and answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

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

__all__ = ["history_turns", "past_turns"]

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
    field = f"input field `{name}`"
    try:
        history = value if isinstance(value, History) else History.model_validate(value or [])
    except ValidationError as error:
        raise AdapterRenderError(f"{field} is no History: {why_invalid(error)}") from None
    try:
        return past_turns(adapter, signature, history, calls=calls, fit=fit)
    except AdapterRenderError as error:
        raise AdapterRenderError(f"{field}, {error}") from error


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
    fields = fields_of(signature)
    message, results = _apart(message)
    asked = [field.given_in(message) for field in fields.inputs]
    made: list[Message] = []
    if any(asked):
        content = adapter.format_user_message_content(signature, message, main_request=all(asked))
        made.append(Message("user", fit(content)))
    said = ""
    if any(field.given_in(message) for field in fields.outputs):
        said = adapter.format_assistant_message_content(signature, message)
    pairs = _pairs(message.get(calls), results, number) if calls is not None else []
    if pairs:
        made.append(Message("assistant", said, {"tool_calls": [call for call, _ in pairs]}))
        return made + [Message("tool", text, {"tool_call_id": call["id"]}) for call, text in pairs]
    if said:
        made.append(Message("assistant", said))
    if results:
        lines = [f"{place}. `{each.name}`: {_outcome(each)}" for place, each in enumerate(results, 1)]
        escape = adapter.layout(signature).escape
        made.append(Message("user", escape("What the tools gave:\n" + "\n".join(lines))))
    return made


def _outcome(result: ToolCallResult) -> str:
    return f"failed: {result.text()}" if result.is_error else result.text()


def _apart(message: Mapping[str, Any]) -> tuple[dict[str, Any], list[ToolCallResult]]:
    """A message without what its calls gave, and that: it is written as the tools' own words."""
    left: dict[str, Any] = {}
    found: list[Any] = []
    for name, value in message.items():
        if isinstance(value, ToolCalls):
            found.append(value.tool_call_results)
            left[name] = value.model_copy(update={_RESULTS: None})
        elif isinstance(value, Mapping) and _RESULTS in value and "tool_calls" in value:
            found.append(value[_RESULTS])
            left[name] = {key: each for key, each in value.items() if key != _RESULTS}
        elif isinstance(value, ToolCallResults) or name == _RESULTS:
            found.insert(0, value)
        else:
            left[name] = value
    results = next((each for each in found if each is not None), None)
    return left, [] if results is None else _validated(ToolCallResults, results, _RESULTS).tool_call_results


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
            result = results[place]
        if result is not None:
            form = {**call.format(), "id": call.id or f"call_{number}_{place + 1}"}
            made.append((form, _outcome(result) if result.is_error else result.text()))
    return made


def _validated(kind: type[Any], value: Any, what: str) -> Any:
    try:
        return value if isinstance(value, kind) else kind.model_validate(value)
    except ValidationError as error:
        raise AdapterRenderError(f"`{what}`: {why_invalid(error)}") from None
