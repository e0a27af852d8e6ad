"""Tools that others describe: those of MCP servers and of LangChain.

Neither library is imported: what a session or a tool of theirs offers is used as it is.
"""

from __future__ import annotations

import asyncio
import inspect
import keyword
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final, Literal

from pydantic import WithJsonSchema

from dspy_stream.errors import ConfigurationError
from dspy_stream.program.types.elsewhere import Home

__all__ = ["is_closed", "langchain_tool", "mcp_home", "mcp_tool"]

_ODD: Final = re.compile(r"[^A-Za-z0-9_-]")
_KINDS: Final[Mapping[str, Any]] = {
    **{"string": str, "integer": int, "number": float, "boolean": bool},
    **{"array": list, "object": dict},
}
_DEEPEST: Final = 20
_CLOSED: Final = -32000  # the MCP library's own code for it, in both of its versions
_LONGEST_NAME: Final = 64


def mcp_tool(
    session: Any, tool: Any, result_mode: Literal["text", "structured"], home: Home | None
) -> dict[str, Any]:
    """What makes a Tool of a tool of an MCP server, whose session is called at its ``home``.

    Raises:
        ConfigurationError: there is no such mode, or the server's description is none.
    """
    if result_mode not in ("text", "structured"):
        raise ConfigurationError(
            f"Unsupported MCP result mode: {result_mode!r}: result_mode is 'text' or 'structured'"
        )
    name = str(tool.name)
    lost = home is None and type(session).__module__.partition(".")[0] == "mcp"

    async def asked(arguments: dict[str, Any]) -> Any:
        try:
            return await session.call_tool(name, arguments=arguments)
        except Exception as error:
            if not is_closed(error):
                raise
            raise ConfigurationError(
                f"the MCP session of tool `{name}` is closed ({type(error).__name__}: {error}); keep it open "
                "for as long as the program runs, or let an MCPClient open one again where it breaks"
            ) from error

    async def call(**arguments: Any) -> Any:
        if lost:  # on another loop it would wait for ever
            raise ConfigurationError(
                f"nobody knows on which event loop the MCP session of tool `{name}` lives: call "
                "Tool.from_mcp_tool there, in a coroutine, or give it loop=..."
            )
        given = await (home.run(partial(asked, arguments)) if home is not None else asked(arguments))
        return _result(given, structured=result_mode == "structured")

    schema = _first(tool, "inputSchema", "input_schema") or {}
    return {
        **_described(call, schema),
        "name": _named(name),
        "desc": getattr(tool, "description", None) or "",
    }


def mcp_home(tool: Any, loop: asyncio.AbstractEventLoop | None) -> Home | None:
    """The given loop or else the running one; None where none runs."""
    try:
        return Home(f"the MCP session of tool `{tool.name}`", loop)
    except RuntimeError:
        return None


def is_closed(error: BaseException) -> bool:
    """True for what the MCP library, or anyio below it, raises of a connection that is not there any more."""
    code = getattr(getattr(error, "error", None), "code", None)
    return code == _CLOSED or type(error).__name__ in ("ClosedResourceError", "BrokenResourceError")


def _result(given: Any, *, structured: bool) -> Any:
    """What a call gave: its text or texts, or else whatever there is.

    Raises:
        RuntimeError: the server says that it failed.
    """
    content = list(getattr(given, "content", None) or ())
    texts = [block.text for block in content if getattr(block, "type", None) == "text"]
    said = texts[0] if len(texts) == 1 else texts
    if _first(given, "isError", "is_error"):
        raise RuntimeError(f"Failed to call a MCP tool: {said}")
    if structured:
        held = _first(given, "structuredContent", "structured_content")
        if held is not None:
            return held
    return said or content


def langchain_tool(tool: Any) -> dict[str, Any]:
    """What makes a Tool of a LangChain tool.

    Raises:
        ConfigurationError: it does not say what its arguments are.
    """
    name = str(tool.name)

    async def call(**arguments: Any) -> Any:
        try:
            return await tool.ainvoke(arguments)
        except Exception as error:
            raise RuntimeError(f"Failed to call LangChain tool {name}: {error}") from error

    # Where the library says so, without the arguments that are not a model's to give.
    schema = _first(tool, "tool_call_schema", "args_schema")
    made = _of_model(call, schema) if hasattr(schema, "model_fields") else _described(call, schema)
    return {**made, "name": _named(name), "desc": getattr(tool, "description", None) or ""}


def _of_model(call: Callable[..., Any], model: Any) -> dict[str, Any]:
    fields = model.model_fields.items()
    types = {name: _typed(field) for name, field in fields}
    defaults = {name: _default(field) for name, field in fields if not field.is_required()}
    words = {name: field.description for name, field in fields if field.description}
    return {**_with_signature(call, types, defaults, more=False), "arg_desc": words}


def _default(field: Any) -> Any:
    """What is shown as the default; an argument that is left out is left to the tool."""
    return None if field.default_factory is not None else field.default


def _typed(field: Any) -> Any:
    kind = Any if field.annotation is None else field.annotation
    constrained = (kind, *field.metadata)
    return Annotated[constrained] if field.metadata else kind


def _described(call: Callable[..., Any], schema: Any) -> dict[str, Any]:
    """A function and its arguments' types from the JSON schema of them all."""
    properties = schema.get("properties", {}) if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        raise ConfigurationError("the tool's arguments have no JSON schema of an object")
    definitions = schema.get("$defs") or schema.get("definitions") or {}
    plain = {name: _inlined(each, definitions, 0) for name, each in properties.items()}
    required = schema.get("required") or ()
    if any(not name.isidentifier() or keyword.iskeyword(name) for name in plain):
        return {"func": call, "args": plain, "arg_types": {name: _kind(each) for name, each in plain.items()}}
    types = {name: Annotated[_kind(each), WithJsonSchema(each)] for name, each in plain.items()}
    defaults = {name: each.get("default") for name, each in plain.items() if name not in required}
    return _with_signature(call, types, defaults, more=schema.get("additionalProperties") is True)


def _with_signature(
    call: Callable[..., Any], types: Mapping[str, Any], defaults: Mapping[str, Any], *, more: bool
) -> dict[str, Any]:
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, inspect.Parameter.empty)
        )
        for name in types
    ]
    if more:
        parameters.append(inspect.Parameter("further", inspect.Parameter.VAR_KEYWORD))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return {"func": call, "arg_types": dict(types)}


def _kind(schema: Any) -> Any:
    name = schema.get("type") if isinstance(schema, Mapping) else None
    return _KINDS.get(name, Any) if isinstance(name, str) else Any


def _inlined(schema: Any, definitions: Mapping[str, Any], depth: int) -> Any:
    """The schema with what it refers to in its place.

    Raises:
        ConfigurationError: it refers to itself, or to nothing.
    """
    if depth > _DEEPEST:
        raise ConfigurationError("the schema of the tool's arguments refers to itself")
    if isinstance(schema, list):
        return [_inlined(each, definitions, depth) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.rpartition("/")[2]
        if name not in definitions:
            raise ConfigurationError(
                f"the schema of the tool's arguments refers to {reference!r}, which is not there"
            )
        beside = {key: each for key, each in schema.items() if key != "$ref"}
        return {**_inlined(definitions[name], definitions, depth + 1), **beside}
    return {key: _inlined(each, definitions, depth) for key, each in schema.items()}


def _named(name: str) -> str:
    """A name that models may be sent; servers have others too."""
    return _ODD.sub("_", name)[:_LONGEST_NAME]


def _first(given: Any, *names: str) -> Any:
    """The first of these attributes; libraries changed the spelling of theirs."""
    return next((found for name in names if (found := getattr(given, name, None)) is not None), None)
