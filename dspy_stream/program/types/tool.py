"""Tool: a function that a model may ask to be called."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, PrivateAttr
from pydantic.json_schema import SkipJsonSchema

from dspy_stream import events
from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError
from dspy_stream.program.fields import nearest
from dspy_stream.program.types.arguments import SECTION, Arguments, checked_alone, unwrapped
from dspy_stream.program.types.base import Type
from dspy_stream.program.watch import watched

__all__ = ["Tool"]

# What all providers take.
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Tool(Type):
    """A function with what a model must know to ask for it: name, description, arguments.

    Name, description and the arguments' types are those of the function, its type hints and its
    docstring, unless they are given: ``args`` (JSON schemas by name), ``arg_types``, ``arg_desc``.
    A call checks its arguments by these and refuses those that the function does not have. Numbers of a
    model's call come as floats: an argument of type ``Decimal`` has as many digits as these keep.

    As data a tool is its description alone: a function does not come out of rows or files.

    Raises:
        ConfigurationError: the function's arguments cannot be described, or its name cannot be sent.
        ValueError: (when called) an argument is unknown, missing, or of the wrong type.

    >>> def search(query: str, limit: int = 3) -> list[str]:
    ...     '''Look in the archive.'''
    ...     return [query] * limit
    >>> tool = Tool(search)
    >>> tool.name, tool.args["limit"], tool(query="a", limit="2")
    ('search', {'default': 3, 'type': 'integer'}, ['a', 'a'])
    >>> tool(word="a")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: tool `search` has no argument `word`; it has: query, limit (Arg word is not in ...
    """

    model_config = ConfigDict(frozen=True, defer_build=True, extra="forbid", arbitrary_types_allowed=True)

    func: SkipJsonSchema[Callable[..., Any] | None] = Field(None, exclude=True, repr=False)
    name: str = ""
    desc: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    arg_types: SkipJsonSchema[dict[str, Any]] = Field(default_factory=dict, exclude=True, repr=False)
    arg_desc: SkipJsonSchema[dict[str, str] | None] = Field(None, exclude=True, repr=False)
    has_kwargs: bool = False

    _known: Arguments | None = PrivateAttr(None)

    def __init__(
        self,
        func: Callable[..., Any] | None = None,
        name: str | None = None,
        desc: str | None = None,
        args: Mapping[str, Any] | None = None,
        arg_types: Mapping[str, Any] | None = None,
        arg_desc: Mapping[str, str] | None = None,
        has_kwargs: bool = False,
    ) -> None:
        known: Arguments | None = None
        if func is not None:
            if not callable(func):
                raise ConfigurationError(f"a tool is made from a function, not from {type(func).__name__}")
            within = unwrapped(func)
            name = name or str(getattr(within, "__name__", type(within).__name__))
            desc = desc if desc is not None else _documented(func)
            known = _read(func, name, arg_types, arg_desc)
            has_kwargs = known.open
            args = args if args is not None else known.shown
            arg_types = arg_types if arg_types is not None else known.types
        if not _NAME.fullmatch(name or ""):
            raise ConfigurationError(
                f"a tool cannot be named {name or ''!r}: give name=..., of up to 64 letters, digits, _ and -"
            )
        fields: dict[str, Any] = {"func": func, "name": name, "desc": desc, "has_kwargs": has_kwargs}
        fields |= {"args": dict(args or {}), "arg_types": dict(arg_types or {})}
        fields["arg_desc"] = dict(arg_desc) if arg_desc is not None else None
        super().__init__(**fields)
        self._known = known

    def __call__(self, /, **kwargs: Any) -> Any:
        """Call the function with checked arguments; blocks as long as it does.

        A coroutine function is run to its end where the setting ``allow_tool_async_sync_conversion``
        is on; it is then not on the event loop of the code around.

        Raises:
            ValueError: an argument is unknown, missing, or of the wrong type, or the tool is a
                coroutine function, which ``acall`` calls, or has no function.
        """
        func = self._function()
        if inspect.iscoroutinefunction(func) and not settings.allow_tool_async_sync_conversion:
            raise self._async_called()
        inputs = {"kwargs": kwargs}
        with watched("tool", self, inputs) as told, events.calling("tool", self, inputs) as call:
            made = func(**self._checked(kwargs))
            if inspect.iscoroutine(made):
                if not settings.allow_tool_async_sync_conversion:
                    made.close()
                    raise self._async_called()
                made = _settled(made)
            call.outputs = told.outputs = made
        return made

    async def acall(self, /, **kwargs: Any) -> Any:
        """The same for a coroutine function; an ordinary one is called as it is."""
        inputs = {"kwargs": kwargs}
        with watched("tool", self, inputs) as told, events.calling("tool", self, inputs) as call:
            made = self._function()(**self._checked(kwargs))
            made = call.outputs = told.outputs = await made if inspect.isawaitable(made) else made
        return made

    def _async_called(self) -> ValueError:
        return ValueError(
            f"You are calling `__call__` on an async tool: `{self.name}` is a coroutine function, so await "
            "tool.acall(...), or set allow_tool_async_sync_conversion=True"
        )

    def _function(self) -> Callable[..., Any]:
        if self.func is None:
            raise ValueError(f"tool `{self.name}` is a description without a function")
        return self.func

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if self._known is not None and set(self.args) == set(self._known.schemas):
            return self._known.check(given, self.name)
        for name in given:
            if name not in self.args and not self.has_kwargs:
                listed = ", ".join(self.args) or "none"
                raise ValueError(
                    f"tool `{self.name}` has no argument `{name}`{nearest(str(name), self.args)}; "
                    f"it has: {listed} (Arg {name} is not in the tool's args)"
                )
        return checked_alone(self.arg_types, given, self.name)

    def parameters(self) -> dict[str, Any]:
        """The JSON schema of all arguments together."""
        required, properties = list(self.args), self.args
        definitions: Mapping[str, Any] = {}
        if self._known is not None and set(self.args) == set(self._known.schemas):
            required, definitions = self._known.required, self._known.definitions
            properties = self._known.schemas if self.args == self._known.shown else self.args
        elif self.func is None:
            required = [name for name, schema in self.args.items() if "default" not in schema]
        made = {"type": "object", "properties": properties, "required": required}
        return {**made, "$defs": definitions} if definitions else made

    def format_as_litellm_function_call(self) -> dict[str, Any]:
        """The tool as an entry of ``tools`` in the chat-completions form.

        >>> Tool(lambda x: x, name="echo").format_as_litellm_function_call()["function"]["parameters"]
        {'type': 'object', 'properties': {'x': {}}, 'required': ['x']}
        """
        function = {"name": self.name, "description": self.desc, "parameters": self.parameters()}
        if not self.desc:
            del function["description"]
        return {"type": "function", "function": function}

    def format(self) -> str:
        """Name, description and arguments, for a model that is told of them in words."""
        about = " ".join((self.desc or "").split())
        lead = f"`{self.name}`: {about}" if about else f"`{self.name}`"
        return f"{lead} Its arguments: {json.dumps(self.parameters(), ensure_ascii=False, default=str)}"

    @classmethod
    def from_mcp_tool(
        cls,
        session: Any,
        tool: Any,
        *,
        result_mode: Literal["text", "structured"] = "text",
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Tool:
        """A tool of an MCP server, called over ``session``: a client with ``async call_tool``.

        Arguments are checked by the server's own schema of them. A call gives the text that the
        server sends, a list of several, what else there is where there is no text, or with
        ``result_mode="structured"`` the data beside it; a failure that the server reports is raised
        as a RuntimeError. A name that models cannot be sent is changed for them.

        The session's event loop is the one that runs where this is called, or ``loop``. Calls from
        other threads, and so those of flows, are handed over to it; it must run meanwhile, and the
        session be open. :class:`MCPClient` opens one by itself.

        Raises:
            ConfigurationError: the server's description cannot be used; (when called) the session is
                closed, or its loop is not known, does not run any more, or is blocked.
        """
        from dspy_stream.program.types.foreign import mcp_home, mcp_tool

        return cls(**mcp_tool(session, tool, result_mode, mcp_home(tool, loop)))

    @classmethod
    def from_langchain(cls, tool: Any) -> Tool:
        """A LangChain tool; a coroutine function, whose failures are raised as RuntimeErrors.

        Raises:
            ConfigurationError: the tool does not say what its arguments are.
        """
        from dspy_stream.program.types.foreign import langchain_tool

        return cls(**langchain_tool(tool))

    @classmethod
    def description(cls) -> str:
        """What it is, in words."""
        return "a tool that can be called"

    @classmethod
    def _coerce(cls, value: Any) -> Any:
        if callable(value):
            return {"func": value}
        if isinstance(value, Mapping):
            _check(value)
        return value

    def __str__(self) -> str:
        return self.format()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tool):
            return NotImplemented
        return self.func == other.func and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((self.name, self.desc, id(self.func)))


def _check(value: Mapping[str, Any]) -> None:
    """Raise a ValueError where data are no tool; the constructor speaks to those who write programs."""
    strange = sorted(set(value) - set(Tool.model_fields))
    if strange:
        raise ValueError(f"a tool has no {strange[0]!r}; it has: {', '.join(Tool.model_fields)}")
    if value.get("func") is not None and not callable(value["func"]):
        raise ValueError("a function is not made from data")
    name = value.get("name")
    if value.get("func") is None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(f"{str(name)[:80]!r} is no name of a tool")
    for key in ("args", "arg_types", "arg_desc"):
        if not isinstance(value.get(key) or {}, Mapping):
            raise ValueError(f"`{key}` of a tool is a mapping, not {type(value[key]).__name__}")


def _settled(work: Awaitable[Any]) -> Any:
    from dspy_stream.runtime import Steps, perform

    def steps() -> Steps[Any]:
        made = yield work
        return made

    return perform(steps())


def _documented(func: Callable[..., Any]) -> str | None:
    """The docstring without its section on the arguments, which say it themselves; None for none."""
    within = unwrapped(func)
    doc = inspect.getdoc(within) or ""
    if not doc and not inspect.isroutine(within):  # an object that is called says it there
        doc = inspect.getdoc(type(within).__call__) or ""
    return SECTION.split(doc, maxsplit=1)[0].strip() or None


def _read(
    func: Callable[..., Any],
    name: str,
    types: Mapping[str, Any] | None,
    words: Mapping[str, str] | None,
) -> Arguments:
    try:
        return Arguments(func, types=types, words=words)
    except ConfigurationError as error:
        raise ConfigurationError(f"tool `{name}`: {error}") from error
