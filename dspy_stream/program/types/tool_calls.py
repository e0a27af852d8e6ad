"""ToolCalls and ToolCallResults: what a model asks to be called, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json, to_jsonable_python
from typing_extensions import Self

from dspy_stream.program.fields import nearest
from dspy_stream.program.types.base import Type
from dspy_stream.program.types.tool import Tool

__all__ = ["ToolCall", "ToolCallResult", "ToolCallResults", "ToolCalls"]

_RESULTS: Final = "tool_call_results"

Functions = Mapping[str, Callable[..., Any]] | Iterable[Callable[..., Any]]


class ToolCall(BaseModel):
    """One call that a model asks for: the tool's name, its arguments, and the provider's id of it.

    Reads its own form and those of the providers, whose ``arguments`` are JSON text.

    >>> ToolCall.model_validate({"id": "c1", "function": {"name": "f", "arguments": "{}"}})
    ToolCall(name='f', args={}, id='c1')
    """

    model_config = ConfigDict(
        frozen=True, defer_build=True, extra="forbid", json_schema_extra=lambda schema: _for_models(schema)
    )

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_data(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        function = value.get("function")
        source = function if isinstance(function, Mapping) else value
        if source is value and "arguments" not in value and not value.keys() & {"call_id", "type"}:
            return value
        made = {"name": source.get("name"), "args": source.get("args", source.get("arguments"))}
        if isinstance(made["args"], str):
            made["args"] = _arguments(made["args"], made["name"])
        return {**made, "args": made["args"] or {}, "id": value.get("call_id") or value.get("id")}

    def format(self) -> dict[str, Any]:
        """The call as an entry of ``tool_calls`` in the chat-completions form."""
        arguments = json.dumps(to_jsonable_python(self.args), ensure_ascii=False)
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id or f"call_{self.name}", "type": "function", "function": function}

    def execute(self, functions: Functions | None = None) -> Any:
        """Call the tool of this name; blocks as long as it does.

        Unlike DSPy's it does not look for the function among the caller's variables.

        Raises:
            ValueError: there is no tool of this name, or the arguments do not fit it.
        """
        return self._tool(functions)(**self.args)

    async def aexecute(self, functions: Functions | None = None) -> Any:
        """The same for tools that may be coroutine functions."""
        return await self._tool(functions).acall(**self.args)

    def _tool(self, functions: Functions | None) -> Tool:
        if not isinstance(functions, Mapping):
            functions = {_name_of(each): each for each in functions or ()}
        found = functions.get(self.name)
        if found is None:
            listed = ", ".join(functions) or "none; pass the functions to execute"
            hint = nearest(self.name, functions)
            raise ValueError(
                f"Tool function '{self.name}' not found: there is no tool `{self.name}`{hint}; "
                f"there are: {listed}"
            )
        return found if isinstance(found, Tool) else Tool(found, name=self.name)


def _name_of(function: Callable[..., Any]) -> str:
    return function.name if isinstance(function, Tool) else str(getattr(function, "__name__", ""))


def _for_models(schema: dict[str, Any]) -> None:
    """Leave out of the schema what a model has no use for: this docstring, and the provider's id."""
    schema.pop("description", None)
    schema.get("properties", {}).pop("id", None)


def _arguments(text: str, name: Any) -> Any:
    if not text.strip():
        return {}
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"the arguments of the call of {name!r} are no JSON: {error}") from None


class ToolCallResult(BaseModel):
    """What one call gave: its value, or with ``is_error`` what was wrong."""

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    call_id: str | None = None
    name: str
    value: Any = None
    is_error: bool = False

    def text(self) -> str:
        """The value as the model reads it: a string as it is, anything else as JSON.

        Of a picture, a sound or a file only the kind is said: its data are no text.
        """
        value = _readable(self.value)
        if isinstance(value, str):
            return value
        return json.dumps(to_jsonable_python(value, fallback=str), ensure_ascii=False)


def _readable(value: Any) -> Any:
    """The value, with a word in the place of all that is no text for a model."""
    if isinstance(value, Type):
        made = value.format()
        return made if isinstance(made, str) else "\n".join(_block(each) for each in made)
    if isinstance(value, (list, tuple)):
        return [_readable(each) for each in value]
    if isinstance(value, Mapping):
        return _media(value) or {key: _readable(each) for key, each in value.items()}
    if isinstance(value, BaseModel):  # as an MCP server sends them
        return _media(value.__dict__) or value
    return value


def _block(block: Mapping[str, Any]) -> str:
    return str(block["text"]) if block["type"] == "text" else f"({block['type']})"


def _media(fields: Mapping[Any, Any]) -> str | None:
    """The kind of a picture, a sound or a file that is here with its data: ours, or an MCP server's."""
    url = fields.get("url")
    if isinstance(url, str) and url.startswith("data:") and ";base64," in url[:100]:
        return f"({url[5:].partition(';')[0]})"
    held: Any = fields
    key = "data"
    if fields.get("type") == "resource":
        held, key = getattr(fields.get("resource"), "__dict__", fields.get("resource")), "blob"
    elif fields.get("type") not in ("image", "audio"):
        return None
    if not isinstance(held, Mapping) or not isinstance(held.get(key), str):
        return None
    return f"({held.get('mimeType') or held.get('mime_type') or fields['type']})"


_Result: TypeAlias = ToolCallResult


class ToolCallResults(BaseModel):
    """What calls gave, in their order; part of a ``History``.

    >>> calls = ToolCalls(tool_calls=[{"name": "add", "args": {}, "id": "c1"}])
    >>> ToolCallResults.from_tool_calls_and_values(calls, [5]).tool_call_results[0].text()
    '5'
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    ToolCallResult: ClassVar[type[BaseModel]] = ToolCallResult

    tool_call_results: list[_Result] = Field(default_factory=list)

    @classmethod
    def from_tool_calls_and_values(
        cls,
        tool_calls: ToolCalls | Sequence[ToolCall],
        values: Sequence[Any],
        is_errors: Sequence[bool] | None = None,
    ) -> Self:
        """The results of these calls.

        Raises:
            ValueError: not as many values, or marks of errors, as calls.
        """
        calls = tool_calls.tool_calls if isinstance(tool_calls, ToolCalls) else list(tool_calls)
        marks = list(is_errors) if is_errors is not None else [False] * len(calls)
        if not len(calls) == len(values) == len(marks):
            raise ValueError(f"{len(calls)} calls have {len(values)} values and {len(marks)} marks of errors")
        made = [
            ToolCallResult(call_id=call.id, name=call.name, value=value, is_error=wrong)
            for call, value, wrong in zip(calls, values, marks, strict=True)
        ]
        return cls(tool_call_results=made)

    @model_validator(mode="before")
    @classmethod
    def _from_data(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return {"tool_call_results": list(value)}
        if isinstance(value, Mapping) and "tool_call_results" not in value and "name" in value:
            return {"tool_call_results": [value]}
        return value


_Call: TypeAlias = ToolCall


class ToolCalls(Type):
    """The calls that a model asks for, in order; as the type of an output field.

    Where the adapter uses native function calling and the model is known to have it, they are read
    from what the provider sends beside the answer's text, and are empty where the model answered
    without calling anything. Otherwise the model is asked for them as JSON.

    In a ``History`` they may have ``tool_call_results`` too; no model is asked for these.

    >>> calls = ToolCalls(tool_calls=[{"name": "search", "args": {"query": "a"}}])
    >>> calls.tool_calls[0].execute({"search": lambda query: query.upper()})
    'A'
    """

    model_config = ConfigDict(
        frozen=True,
        defer_build=True,
        extra="forbid",
        json_schema_extra=lambda schema: schema.get("properties", {}).pop(_RESULTS, None),
    )

    ToolCall: ClassVar[type[BaseModel]] = ToolCall
    _unsaid: ClassVar[frozenset[str]] = frozenset((_RESULTS,))

    tool_calls: list[_Call] = Field(default_factory=list)
    tool_call_results: ToolCallResults | None = None

    @classmethod
    def from_dict_list(cls, tool_calls_dicts: Iterable[Mapping[str, Any]]) -> Self:
        """Calls as they were said, or as a provider sent them."""
        return cls(tool_calls=[_Call.model_validate(each) for each in tool_calls_dicts])

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "the tools to call now, in order, each with its name and its arguments"

    def format(self) -> str:
        """The calls as JSON."""
        return self.model_dump_json()

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return {"tool_calls": list(value)}
        if isinstance(value, Mapping) and "tool_calls" in value:
            return {name: value[name] for name in ("tool_calls", _RESULTS) if name in value}
        if isinstance(value, Mapping) and value.keys() & {"name", "function"}:
            return {"tool_calls": [value]}
        return value

    def __iter__(self) -> Iterator[_Call]:  # type: ignore[override]
        return iter(self.tool_calls)

    def __len__(self) -> int:
        return len(self.tool_calls)
