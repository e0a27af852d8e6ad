"""ToolCalls and ToolCallResults: what a model asks to be called, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import from_json, to_jsonable_python
from typing_extensions import Self

from dspy_stream.program.fields import nearest
from dspy_stream.program.types.base import Type
from dspy_stream.program.types.tool import Tool

__all__ = ["ToolCall", "ToolCallResult", "ToolCallResults", "ToolCalls"]

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

    @model_serializer(mode="wrap")
    def _as_data(self, plain: SerializerFunctionWrapHandler) -> Any:
        made = plain(self)
        if self.id is None and isinstance(made, dict):
            made.pop("id", None)
        return made

    def format(self) -> dict[str, Any]:
        """The call as a model reads it: its name and arguments."""
        return {"name": self.name, "args": self.args}

    def execute(self, functions: Functions | None = None) -> Any:
        """Call the tool of this name; blocks as long as it does.

        Unlike DSPy's it does not look for the function among the caller's variables.

        Raises:
            ValueError: there is no tool of this name.
            RuntimeError: the arguments do not fit it, or it failed; its own error is the cause.
        """
        tool = self._tool(functions)
        try:
            return tool(**self.args)
        except Exception as error:
            raise self._failed(error) from error

    async def aexecute(self, functions: Functions | None = None) -> Any:
        """The same for tools that may be coroutine functions."""
        tool = self._tool(functions)
        try:
            return await tool.acall(**self.args)
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RuntimeError:
        return RuntimeError(f"Error executing tool '{self.name}': {error}")

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


_Call: TypeAlias = ToolCall


class ToolCalls(Type):
    """The calls that a model asks for, in order; as the type of an output field.

    Where the adapter uses native function calling and the model is known to have it, they are read
    from what the provider sends beside the answer's text, and are empty where the model answered
    without calling anything. Otherwise the model is asked for them as JSON. In a ``History`` they
    may carry the results that they had.

    >>> calls = ToolCalls(tool_calls=[{"name": "search", "args": {"query": "a"}}])
    >>> calls.tool_calls[0].execute({"search": lambda query: query.upper()})
    'A'
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid")

    ToolCall: ClassVar[type[BaseModel]] = ToolCall

    tool_calls: list[_Call] = Field(default_factory=list)
    tool_call_results: SkipJsonSchema[_Results | None] = None

    @classmethod
    def from_dict_list(cls, tool_calls_dicts: Iterable[Mapping[str, Any]]) -> Self:
        """Calls as they were said, or as a provider sent them."""
        return cls(tool_calls=[_Call.model_validate(each) for each in tool_calls_dicts])

    @property
    def thinking(self) -> Mapping[str, Any]:
        """What the model thought with its calls, as the provider sent it and wants it back; mostly empty.

        No part of the value: it is not saved, shown or compared.
        """
        found: Mapping[str, Any] = self.__dict__.get("_thinking", {})
        return found

    def with_thinking(self, thinking: Mapping[str, Any]) -> Self:
        """The same calls with that."""
        made = self.model_copy()
        made.__dict__["_thinking"] = thinking
        return made

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "the tools to call now, in order, each with its name and its arguments"

    def format(self) -> dict[str, Any]:
        """The calls as data, which stand as JSON in a prompt."""
        return {"tool_calls": [call.format() for call in self.tool_calls]}

    @model_serializer(mode="wrap")
    def _as_data(self, plain: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        made = Type._as_data(self, plain, info)
        if isinstance(made, dict) and made.get("tool_call_results") is None:
            made.pop("tool_call_results", None)
        return made

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return {"tool_calls": list(value)}
        if isinstance(value, Mapping) and "tool_calls" in value:
            return {name: value[name] for name in cls.model_fields if name in value}
        if isinstance(value, Mapping) and value.keys() & {"name", "function"}:
            return {"tool_calls": [value]}
        if value == {}:
            return value
        raise ValueError(f"Received invalid value for `dspy.ToolCalls`: {str(value)[:200]}")

    def __iter__(self) -> Iterator[_Call]:  # type: ignore[override]
        return iter(self.tool_calls)

    def __len__(self) -> int:
        return len(self.tool_calls)


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
        if isinstance(made, list):
            return "\n".join(_block(each) for each in made)
        return made
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


_Results: TypeAlias = ToolCallResults
