"""What every interpreter is to the modules that have code run: a Protocol, its results, its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from dspy_stream.errors import RowError

__all__ = [
    "CodeExecutionError",
    "CodeInterpreter",
    "CodeInterpreterError",
    "FinalOutput",
    "InterpreterFactory",
]


class CodeInterpreterError(RowError, RuntimeError):
    """An interpreter cannot go on: its process ended or never began, or it was used wrongly.

    No other code would mend it. It concerns one row, and its session is over.
    """

    code = "interpreter"


class CodeExecutionError(CodeInterpreterError):
    """The code failed in a healthy interpreter; the message is for whoever wrote the code to mend it."""

    code = "code"


class FinalOutput:
    """What code has handed in with ``SUBMIT(...)``: a dict of outputs by name.

    Where the interpreter knows no outputs, a single value is under ``output``.

    >>> FinalOutput({"answer": 4}) == FinalOutput({"answer": 4})
    True
    """

    __slots__ = ("output",)

    def __init__(self, output: Any) -> None:
        self.output = output

    def __eq__(self, other: object) -> bool:
        return self.output == other.output if isinstance(other, FinalOutput) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"FinalOutput({self.output!r})"


@runtime_checkable
class CodeInterpreter(Protocol):
    """Runs code that a model wrote, in a session whose variables stay from one piece to the next.

    A session belongs to one row. It begins with ``start``, or by itself with the first ``execute``,
    and ends with ``shutdown``. The methods may be coroutine functions.

    An interpreter may also have ``output_fields``: a list of dicts with the ``name``, and where it is a
    simple one the ``type``, of what ``SUBMIT`` takes. Modules set it before the first code runs. Its factory
    may have ``execution_instructions``: a text that tells the model what the code may do.
    """

    @property
    def tools(self) -> dict[str, Callable[..., Any]]:
        """The functions of the host that code may call by these names; modules add theirs to it."""
        ...

    def start(self) -> Any:
        """Begin the session; nothing where it has begun."""
        ...

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        """Run code, with these variables set before.

        Returns:
            a :class:`FinalOutput` where it called ``SUBMIT``; else what it printed, as text, or the
            value of its last line; None where there is neither.

        Raises:
            SyntaxError: it is no Python.
            CodeExecutionError: it failed, or a tool that it called did.
            CodeInterpreterError: the session is over.
        """
        ...

    def shutdown(self) -> Any:
        """End the session; must not wait."""
        ...


InterpreterFactory = Callable[[], CodeInterpreter]
"""Makes an interpreter for one row: a class, or a function without arguments."""
