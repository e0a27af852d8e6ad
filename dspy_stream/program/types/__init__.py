"""Types of values that are more than plain data: pictures, sounds, files, tools, code, reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dspy_stream.program.types.audio import Audio
from dspy_stream.program.types.base import Type
from dspy_stream.program.types.code import Code
from dspy_stream.program.types.document import Citations, Document
from dspy_stream.program.types.file import File
from dspy_stream.program.types.history import History
from dspy_stream.program.types.image import Image
from dspy_stream.program.types.reasoning import Reasoning
from dspy_stream.program.types.tool import Tool
from dspy_stream.program.types.tool_calls import ToolCall, ToolCallResult, ToolCallResults, ToolCalls

__all__ = [
    "Audio",
    "Citations",
    "Code",
    "Document",
    "File",
    "History",
    "Image",
    "NAMED",
    "Reasoning",
    "Tool",
    "ToolCall",
    "ToolCallResult",
    "ToolCallResults",
    "ToolCalls",
    "Type",
]

NAMED: Final[Mapping[str, Any]] = {
    **{"Audio": Audio, "Citations": Citations, "Code": Code, "Document": Document, "File": File},
    **{"History": History, "Image": Image, "Reasoning": Reasoning, "Tool": Tool, "ToolCall": ToolCall},
    **{"ToolCallResult": ToolCallResult, "ToolCallResults": ToolCallResults, "ToolCalls": ToolCalls},
}
"""The types by the names under which signature strings and snapshots know them; a closed table."""
