"""Interpreters: what runs the code that a model writes, apart from this process."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dspy_stream.interpreters.base import CodeExecutionError as CodeExecutionError
    from dspy_stream.interpreters.base import CodeInterpreter as CodeInterpreter
    from dspy_stream.interpreters.base import CodeInterpreterError as CodeInterpreterError
    from dspy_stream.interpreters.base import FinalOutput as FinalOutput
    from dspy_stream.interpreters.python import PythonInterpreter as PythonInterpreter
    from dspy_stream.interpreters.sandbox import Sandbox as Sandbox
    from dspy_stream.interpreters.sandbox import SandboxLimits as SandboxLimits
    from dspy_stream.interpreters.scripted import ScriptedInterpreter as ScriptedInterpreter

# Name -> the file that defines it; imported on first use, since the sandbox's own processes, which
# are to be small, import this package too.
_HOMES: Final = {
    "CodeExecutionError": "base",
    "CodeInterpreter": "base",
    "CodeInterpreterError": "base",
    "FinalOutput": "base",
    "PythonInterpreter": "python",
    "Sandbox": "sandbox",
    "SandboxLimits": "sandbox",
    "ScriptedInterpreter": "scripted",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dspy_stream.interpreters' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dspy_stream.interpreters.{home}"), name)
    globals()[name] = value
    return value
