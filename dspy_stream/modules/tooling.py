"""The tools of an agent: gathered by name, called from a synchronous program, their failures as text."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dspy_stream.errors import SignatureError
from dspy_stream.modules.best_of_n import concerns_one_row
from dspy_stream.modules.settled import settled
from dspy_stream.program.types import Tool, ToolCallResult

__all__ = ["call_tool", "gathered", "observed"]


def gathered(tools: Iterable[Callable[..., Any]], *, reserved: str, owner: str) -> dict[str, Tool]:
    """Tools by name, made from functions where they are none yet.

    Raises:
        SignatureError: two have the same name, or one that is ``reserved``.
    """
    found: dict[str, Tool] = {}
    for each in tools:
        tool = each if isinstance(each, Tool) else Tool(each)
        if tool.name == reserved:
            raise SignatureError(f"`{reserved}` is reserved by {owner} as the tool that ends the work")
        if tool.name in found:
            raise SignatureError(f"two tools are named `{tool.name}`; give one of them another name=...")
        found[tool.name] = tool
    return found


def call_tool(tool: Tool, args: Mapping[str, Any]) -> tuple[Any, bool]:
    """What a tool gives, and False; or what was wrong, as a text for the model, and True.

    A coroutine function is awaited, where the row is driven from; any other is called here and now.

    Raises:
        DSPyStreamError: a failure that other rows would meet too, such as a used-up budget.
    """
    try:
        if _is_async(tool.func):
            return settled(tool.acall(**args)), False
        return tool(**args), False
    except Exception as error:  # whatever a tool raises is for the model to see
        if not concerns_one_row(error):
            raise
        said = str(error)
        about = type(error).__name__ + (f": {said}" if said else "")
        return f"Execution error in {tool.name}: {about}", True


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004 - whether it may be awaited, not whether it may be called
    )


def observed(value: Any) -> str:
    """A tool's value as the model reads it."""
    return ToolCallResult(name="", value=value).text()
