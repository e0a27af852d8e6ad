"""Code in a model's answer, and the interpreter that runs it: which one, for how long, what came of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError
from dspy_stream.events import ROW
from dspy_stream.interpreters.base import CodeExecutionError, CodeInterpreter, FinalOutput, InterpreterFactory
from dspy_stream.modules.settled import settled

__all__ = ["FinalOutput", "check_factory", "factory_for", "interpreting", "python_in", "ran", "run_by"]

_FENCE: Final = re.compile(r"^[ \t]*```[ \t]*([^\n`]*)$", re.MULTILINE)
_CLOSING: Final = re.compile(r"^[ \t]*```[ \t]*$", re.MULTILINE)
_INLINE: Final = re.compile(r"```(?:python3?|py3?)?\s(.*?)\s*```", re.DOTALL)
_PYTHON: Final = frozenset(("", "python", "py", "python3", "py3", "pycon", "repl"))


def check_factory(factory: Any, name: str = "interpreter_factory") -> Any:
    """The factory, or None.

    Raises:
        TypeError: it is an interpreter itself, or cannot be called.
    """
    if factory is None:
        return None
    if not isinstance(factory, type) and isinstance(factory, CodeInterpreter):
        raise TypeError(
            f"{name} is an interpreter, where each row needs one of its own: pass the class, or a function "
            "without arguments that makes one"
        )
    if not callable(factory):
        raise TypeError(
            f"{name} must be a zero-argument callable that makes an interpreter, not {type(factory).__name__}"
        )
    return factory


def factory_for(owner: str, factory: InterpreterFactory | None) -> InterpreterFactory:
    """The factory in force: the one given, or that of the settings.

    Raises:
        ConfigurationError: nobody named one.
    """
    found = factory if factory is not None else settings.interpreter_factory
    if found is None:
        raise ConfigurationError(
            f"{owner} runs code that a model writes, and does so only where you name what runs it: pass "
            "interpreter_factory=dspy_stream.PythonInterpreter to it or to dspy_stream.configure(). Each "
            "row's code then runs in a process of its own, without network and with limits; "
            "print(dspy_stream.PythonInterpreter.describe()) says what that stops on this system, and what "
            "it does not"
        )
    made: InterpreterFactory = check_factory(found)
    return made


@contextmanager
def interpreting(owner: str, factory: InterpreterFactory | None) -> Iterator[CodeInterpreter]:
    """An interpreter for one row; it is shut down at the end, however that comes."""
    made = factory_for(owner, factory)()
    if not isinstance(made, CodeInterpreter):
        raise TypeError(f"interpreter_factory must make a CodeInterpreter, not {type(made).__name__}")
    try:
        yield made
    finally:
        settled(made.shutdown())


@contextmanager
def run_by(owner: str, given: Any, factory: InterpreterFactory | None) -> Iterator[CodeInterpreter]:
    """The interpreter that the caller gives, and keeps; or one for this row.

    Raises:
        TypeError: what is given is no interpreter.
        ConfigurationError: it is given within a flow, whose rows would see each other's variables.
    """
    if given is None:
        with interpreting(owner, factory) as made:
            yield made
        return
    if not isinstance(given, CodeInterpreter):
        raise TypeError(f"interpreter must be a CodeInterpreter, not {type(given).__name__}")
    if ROW.get() is not None:
        raise ConfigurationError(
            f"{owner} was given one interpreter, in which the rows of a flow would see each other's "
            "variables; give interpreter_factory=... instead"
        )
    yield given


def ran(
    interpreter: CodeInterpreter, code: str, variables: Mapping[str, Any] | None = None
) -> tuple[Any, str | None]:
    """What code gives, and None; or None, and what was wrong, for the model to mend.

    Raises:
        CodeInterpreterError: the interpreter cannot go on.
    """
    try:
        return settled(interpreter.execute(code, dict(variables or {}))), None
    except SyntaxError as error:
        return None, f"SyntaxError: {error}"
    except CodeExecutionError as error:
        return None, str(error)


def python_in(text: str) -> str:
    """The Python of an answer: what is in its first fence, or all of it where it has none.

    Raises:
        SyntaxError: the fence says that it is something else.

    >>> python_in("Let me see:\\n```python\\nprint(1)\\n```\\nThat prints 1.")
    'print(1)'
    """
    text = text.strip()
    opening = _FENCE.search(text)
    if opening is None:
        inline = _INLINE.fullmatch(text)
        return inline.group(1) if inline is not None else text
    language = (opening.group(1).split() or [""])[0].lower()
    if language not in _PYTHON:
        raise SyntaxError(
            f"Expected Python code but got ```{language} fence. Write Python code, not {language}."
        )
    body = text[opening.end() :].lstrip("\n")
    if not language and _FENCE.match(body):  # a fence around the fence
        return python_in(body)
    closing = _CLOSING.search(body)
    return (body[: closing.start()] if closing is not None else body).strip("\n").rstrip()
