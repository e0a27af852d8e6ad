"""PythonInterpreter: Python code in a process of its own, with limits and without a network."""

from __future__ import annotations

import inspect
import keyword
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from dspy_stream.errors import ConfigurationError, DSPyStreamError
from dspy_stream.events import Callbacks, calling
from dspy_stream.interpreters.base import CodeExecutionError, CodeInterpreterError, FinalOutput
from dspy_stream.interpreters.sandbox import Sandbox, SandboxLimits
from dspy_stream.interpreters.session import Session, encoded
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.program.types import Tool
from dspy_stream.runtime import Steps, aperform, bridge, hop, perform

__all__ = ["PythonInterpreter"]

_RESERVED: Final = ("SUBMIT", "__builtins__", "__name__")
_LINE: Final = "\n"
_LASTING: Final = (str, int, float, bool, type(None))


class PythonInterpreter:
    """Runs Python in a process of its own, in a sandbox; a session whose variables stay until its end.

    The process is a CPython without this one's environment, files, modules and memory: it has the
    standard library, a folder of its own, and the ``tools`` it may call, which run here. How it is held
    depends on the system; :meth:`describe` tells, and ``str()`` of it is meant to be read. On Linux
    with what a usual kernel has: namespaces of its own, with no network; Landlock, so that it reads the
    Python library and writes to its folder only; a filter that refuses sockets, new programs and
    processes, and signals to others; and limits on memory, time and files. On macOS, where nobody has
    tried it yet, there are limits and Python's own refusals alone, and it starts with ``network=True``
    only. What a sandbox of this kind never stops: faults of the kernel, code that takes its whole share
    of the processor, and whatever the tools do when they are called. A tool is called with arguments
    that code has chosen, and the code may have been steered by whoever wrote the row.

    Code may use threads, but no other processes and no ``asyncio``. Names it may call are the tools and
    ``SUBMIT``, which ends it: ``SUBMIT(value, ...)`` in the order of ``output_fields`` or by name. What
    it prints is the result; with the value of the last line, where that is an expression.

    Code that takes too long or too much memory meets an exception, and the session goes on. Where it
    does not stop, or ends its process, the session is over.

    Starting a session forks a process that waits for it, which takes some 8 ms of a processor where a
    new Python takes 30; an idle session takes some 3 MB of memory. It blocks where it is called from
    plain code; in a ``forward`` other rows go on meanwhile. ``aexecute`` and ``astart`` are for
    coroutines. ``shutdown`` never waits. One session runs one piece of code at a time, and all sessions
    together twice as many as there are processors: the others wait, which is not counted as their time.

    Args:
        tools: functions that code may call, by name; coroutine functions too. Arguments are checked by
            their type hints. Values go both ways as JSON.
        output_fields: dicts with the ``name`` of each output.
        limits: what the session may use.
        network: let code use the network. It may use yours then, the machine's own services included:
            those that listen on it alone, and those that have a socket in the file system.
        paths: folders that code may read, and import from, such as one with numpy in it. Packages may
            need more memory than the usual limit, and may then load libraries of their own, where the
            kernel holds the process.
        callbacks: who hears of this interpreter's calls.

    Raises:
        ConfigurationError: (when it starts) the system cannot keep code from the network, or has no
            such processes.
        CodeInterpreterError: (when it starts) no process could be started.

    >>> with PythonInterpreter(tools={"double": lambda x: 2 * x}) as python:
    ...     python.execute("x = double(x=word)", {"word": "ha"})
    ...     python.execute("print(x)")
    ...     python.execute("SUBMIT(len(x))")
    'haha\\n'
    FinalOutput({'output': 4})
    """

    execution_instructions = (
        "The code runs as Python, with its standard library, in a session: variables, functions and imports "
        "stay from one piece of code to the next. It has no network, no other processes and no asyncio, and "
        "only files in its own folder. Time and memory are limited."
    )

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        limits: SandboxLimits | None = None,
        network: bool = False,
        paths: Iterable[str | Path] = (),
        callbacks: Iterable[Any] | None = None,
    ) -> None:
        self.tools: dict[str, Callable[..., Any]] = dict(tools or {})
        self.output_fields: list[dict[str, Any]] | None = (
            None if output_fields is None else [dict(field) for field in output_fields]
        )
        self.limits = limits if limits is not None else SandboxLimits()
        self.callbacks = Callbacks(callbacks)
        self.sandbox: Sandbox | None = None
        folders = tuple(str(Path(path).resolve()) for path in paths)
        self._session = Session(self.limits, network=network, paths=folders)
        self._sent: dict[str, Any] = {}
        self._busy = self._over = False
        # One that is forgotten must not leave its process behind.
        self._forgotten = weakref.finalize(self, self._session.kill)

    @staticmethod
    def describe(*, network: bool = False) -> Sandbox:
        """What holds a session on this system: starts one, looks, and ends it.

        Raises:
            ConfigurationError: the system cannot keep code from the network.

        >>> PythonInterpreter.describe().network_is_off
        True
        """
        with PythonInterpreter(network=network) as python:
            assert python.sandbox is not None
            return python.sandbox

    # ------------------------------------------------------------------------------- the session

    def start(self) -> None:
        """Begin the session; nothing where it has begun."""
        self._refuse_over()
        if self.sandbox is not None:
            return
        with calling("interpreter_startup", self, {}):
            self.sandbox = _waited(self._session.begin)

    def execute(self, code: str, variables: Mapping[str, Any] | None = None) -> Any:
        """Run code, with these variables set before; blocks until it is done.

        Returns:
            a :class:`FinalOutput`, the text it printed, the value of its last line, or None.

        Raises:
            SyntaxError: it is no Python.
            CodeExecutionError: it failed.
            CodeInterpreterError: the session is over, or is busy, or a variable has no JSON form.
        """
        given = dict(variables or {})
        with calling("interpreter_execute", self, {"code": code, "variables": given}) as call:
            if self._busy:
                raise CodeInterpreterError(
                    "the interpreter runs other code; a session runs one piece at a time"
                )
            self._busy = True
            try:
                self.start()
                call.outputs = self._executed(self._message(code, given))
            finally:
                self._busy = False
        return call.outputs

    def shutdown(self) -> None:
        """End the session and its process; never waits."""
        if self._over:
            return
        with calling("interpreter_shutdown", self, {}):
            self._end()

    def _end(self) -> None:
        self._over = True
        self._forgotten()

    def _refuse_over(self) -> None:
        if self._over:
            raise CodeInterpreterError("the interpreter's session is over; make another interpreter")

    async def astart(self) -> None:
        """The same as :meth:`start`, from a coroutine."""
        await aperform(bridge(self.start))

    async def aexecute(self, code: str, variables: Mapping[str, Any] | None = None) -> Any:
        """The same as :meth:`execute`, from a coroutine."""
        return await aperform(bridge(self.execute, code, variables))

    def __call__(self, code: str, variables: Mapping[str, Any] | None = None) -> Any:
        """The same as :meth:`execute`."""
        return self.execute(code, variables)

    def __enter__(self) -> PythonInterpreter:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # -------------------------------------------------------------------------------------- code

    def _executed(self, message: bytes) -> Any:
        spent = 0.0
        try:
            while True:
                answer, spent = _waited(partial(self._session.run, message, spent))
                if "call" not in answer:
                    return _result(answer)
                message = self._reply(answer)
        except BaseException as error:
            if not isinstance(error, (CodeExecutionError, SyntaxError)):
                self._end()  # nobody knows what it is doing now
            raise

    def _message(self, code: str, variables: dict[str, Any]) -> bytes:
        _check_names("a tool", self.tools)
        _check_names("a variable", variables)
        for name in variables:
            if name in self.tools:
                raise CodeInterpreterError(f"{name!r} is a tool; the variable needs another name")
        # A long text is sent once: the session keeps what it was given, and takes it from there.
        again = [name for name, value in variables.items() if self._has(name, value)]
        fresh = {name: value for name, value in variables.items() if name not in again}
        names = None if self.output_fields is None else [str(field["name"]) for field in self.output_fields]
        message = {"code": code, "tools": list(self.tools), "outputs": names, "again": again}
        try:
            plain = {name: to_jsonable(value, name) for name, value in fresh.items()}
            line = encoded({**message, "seconds": self.limits.seconds, "variables": plain})
        except (ConfigurationError, ValueError) as error:
            raise CodeInterpreterError(f"a variable cannot be given to the interpreter: {error}") from error
        self._sent.update((name, value) for name, value in fresh.items() if type(value) in _LASTING)
        return line

    def _has(self, name: str, value: Any) -> bool:
        return name in self._sent and self._sent[name] is value and type(value) in _LASTING

    def _reply(self, asked: Mapping[str, Any]) -> bytes:
        """Call a tool for the code; its failure is the code's to handle.

        Raises:
            DSPyStreamError: a failure that other rows would meet too, such as a used-up budget.
        """
        name, args, kwargs = asked["call"], asked.get("args"), asked.get("kwargs")
        if not isinstance(name, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise CodeInterpreterError("the interpreter's session is over: it sent what is no call of a tool")
        try:
            value = self.invoke_tool(name, args, kwargs)
        except Exception as error:  # whatever a tool raises is for the code to see
            if isinstance(error, DSPyStreamError) and error.scope != "row":
                raise
            return _refused(name, error)
        try:
            return encoded({"value": to_jsonable(value, f"the value of {name}")})
        except (ConfigurationError, ValueError) as error:
            return _refused(name, ValueError(str(error)))

    def invoke_tool(self, tool_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a tool as code does: here, with checked arguments.

        Raises:
            Exception: whatever the tool raises; a ValueError where the arguments do not fit.
        """
        given = {"tool_name": tool_name, "args": list(args), "kwargs": dict(kwargs)}
        with calling("interpreter_tool_call", self, given) as call:
            function = self.tools.get(tool_name)
            if function is None:
                raise ValueError(f"there is no tool {tool_name!r}")
            tool = function if isinstance(function, Tool) else Tool(function, name=tool_name)
            call.outputs = _called(tool, _named(tool, args, kwargs))
        return call.outputs


class _Waiting:
    """An effect: something to be done on the engine's loop, wherever it is awaited."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __await__(self) -> Generator[Any, None, Any]:
        return hop(self._make()).__await__()


def _waited(make: Callable[[], Any]) -> Any:
    return perform(_steps(_Waiting(make)))


def _steps(effect: Awaitable[Any]) -> Steps[Any]:
    value = yield effect
    return value


def _refused(name: str, error: Exception) -> bytes:
    said = str(error)
    return encoded({"error": f"{name}: {type(error).__name__}" + (f": {said}" if said else "")})


def _called(tool: Tool, kwargs: Mapping[str, Any]) -> Any:
    function = tool.func
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004 - whether it may be awaited, not called
    ):
        return perform(_steps(tool.acall(**kwargs)))
    return tool(**kwargs)


def _named(tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name; those by place get the names that the tool's arguments have."""
    names = list(tool.args)
    if len(args) > len(names):
        raise ValueError(f"tool `{tool.name}` takes {len(names)} arguments, not {len(args)}")
    made = dict(zip(names, args, strict=False))
    for name in kwargs:
        if name in made:
            raise ValueError(f"tool `{tool.name}` got its argument `{name}` twice")
    return {**made, **kwargs}


def _check_names(what: str, names: Iterable[Any]) -> None:
    for name in names:
        usable = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
        if not usable or name in _RESERVED:
            raise CodeInterpreterError(f"{name!r} cannot be the name of {what} in code")


def _result(answer: Mapping[str, Any]) -> Any:
    if "syntax" in answer:
        raise SyntaxError(str(answer["syntax"]))
    if "error" in answer:
        printed = str(answer.get("printed") or "")
        raise CodeExecutionError(f"{printed}\n{answer['error']}" if printed else str(answer["error"]))
    if "final" in answer:
        return FinalOutput(answer["final"])
    text, value = str(answer.get("printed") or ""), answer.get("value")
    if not text or value is None:
        return (text or None) if value is None else value
    return f"{text}{'' if text.endswith(_LINE) else _LINE}{value!r}"
