"""Runs code that a model wrote, in a namespace that lasts as long as the process."""

from __future__ import annotations

import ast
import io
import json
import linecache
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, Final, NoReturn

__all__ = ["serve"]

_ERROR_CHARS: Final = 4000
_FRAMES: Final = 6
_JSON: Final = (str, int, float, bool, type(None))


class _Submitted(BaseException):
    """The outputs are handed in; no ``except Exception`` of the code may catch it."""


class _Late(BaseException):
    """The code has used up its time."""


class _NoPython(BaseException):
    """The code cannot be compiled; a SyntaxError that it raises itself is something else."""


class _Wire:
    """Messages as lines of JSON, over one socket."""

    def __init__(self, socket: int) -> None:
        self._socket = socket
        self._lines = os.fdopen(socket, "rb", closefd=False)
        self._encode, self._decode, self._write = json.dumps, json.loads, os.write

    def send(self, message: Mapping[str, Any]) -> None:
        try:
            line = self._encode(message, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a character
            line = self._encode(message).encode()
        left = memoryview(line + b"\n")
        while left:
            left = left[self._write(self._socket, left) :]

    def receive(self) -> Any:
        line = self._lines.readline()
        if not line:
            os._exit(0)  # nobody is there any more
        return self._decode(line)


class _Output(io.TextIOBase):
    """What was printed: the beginning and the end of it, where it is too much."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._begin()

    def _begin(self) -> None:
        self._head: list[str] = []
        self._tail: list[str] = []
        self._room, self._kept, self._count = self._half, 0, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        size = len(text)
        self._count += size
        if self._room:
            self._head.append(text[: self._room])
            self._room, text = max(0, self._room - size), text[self._room :]
        if text:
            self._tail.append(text)
            self._kept += len(text)
            if self._kept > 4 * self._half:
                self._tail = ["".join(self._tail)[-self._half :]]
                self._kept = self._half
        return size

    def taken(self) -> str:
        """All of it, and begin anew."""
        head, tail = "".join(self._head), "".join(self._tail)[-self._half :]
        left_out = self._count - len(head) - len(tail)
        self._begin()
        return f"{head}\n... ({left_out:,} characters left out) ...\n{tail}" if left_out else head + tail


class _Clock:
    """The time that code may take, without the time it waits for the host."""

    def __init__(self) -> None:
        self._running = False
        signal.signal(signal.SIGALRM, self._rang)

    def start(self, seconds: float) -> None:
        self._running = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def stop(self) -> None:
        self._running = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def pause(self) -> float:
        return signal.setitimer(signal.ITIMER_REAL, 0)[0]

    def go_on(self, left: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, left)

    def _rang(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signals are told
        if self._running:
            raise _Late


class _Session:
    def __init__(self, wire: _Wire, output_chars: int) -> None:
        self._wire = wire
        self._output = _Output(output_chars)
        self._clock = _Clock()
        self._calling = threading.Lock()
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._given: dict[str, Any] = {}
        self._tools: set[str] = set()
        self._number = 0
        self._codes: dict[str, int] = {}
        self._final: tuple[Any] | None = None
        sys.stdout = sys.stderr = self._output

    def execute(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._prepare(message)
        self._final = None
        made: dict[str, Any]
        try:
            try:
                self._clock.start(message["seconds"])
                value = self._run(message["code"])
                made = {"value": _plain(value)}
            finally:
                self._clock.stop()
        except _Submitted:
            made = {}
        except _Late:
            made = {"error": f"TimeoutError: the code was stopped after {message['seconds']:g} seconds"}
        except _NoPython as error:
            made = {"syntax": str(error)}
        except BaseException as error:  # noqa: BLE001 - whatever the code raises is for the model to see
            made = {"error": self._described(error)}
        if self._final is not None and "syntax" not in made:
            made = {"final": self._final[0]}
        return {**made, "printed": self._output.taken()}

    def _prepare(self, message: Mapping[str, Any]) -> None:
        for name in self._tools:
            self._names.pop(name, None)
        self._tools = set(message["tools"])
        for name in self._tools:
            self._names[name] = self._tool(name)
        self._names["SUBMIT"] = self._submitter(message["outputs"])
        self._given.update(message["variables"])
        for name in (*message["variables"], *message["again"]):
            self._names[name] = self._given[name]

    def _run(self, code: str) -> Any:
        self._number += 1
        name = f"<code {self._number}>"
        self._codes[name] = self._number
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        body, last = _compiled(code, name)
        exec(body, self._names)  # noqa: S102 - what this process is for
        return eval(last, self._names) if last is not None else None  # noqa: S307 - the same

    def _submitter(self, names: list[str] | None) -> Callable[..., NoReturn]:
        def submit(*args: Any, **kwargs: Any) -> NoReturn:
            self._final = (_plain(_outputs(names, args, kwargs)),)
            raise _Submitted

        return submit

    def _tool(self, name: str) -> Callable[..., Any]:
        def tool(*args: Any, **kwargs: Any) -> Any:
            with self._calling:
                left = self._clock.pause()
                try:
                    self._wire.send({"call": name, "args": _plain(args), "kwargs": _plain(kwargs)})
                    answer = self._wire.receive()
                finally:
                    self._clock.go_on(left)
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return answer["value"]

        tool.__name__ = tool.__qualname__ = name
        return tool

    def _described(self, error: BaseException) -> str:
        """Where in the code it was, and what; no files of the machine."""
        try:
            frames = [
                each for each in traceback.extract_tb(error.__traceback__) if each.filename in self._codes
            ]
            lines = [self._place(each) for each in frames]
            if len(lines) > _FRAMES:
                lines = [lines[0], f"... ({len(lines) - _FRAMES} more) ...", *lines[1 - _FRAMES :]]
            text = "\n".join([*lines, *traceback.format_exception_only(type(error), error)]).strip()
        except BaseException:  # noqa: BLE001 - there may be no memory left, or its __str__ fails
            return type(error).__name__
        if len(text) > _ERROR_CHARS:
            text = f"{text[: _ERROR_CHARS // 2]}\n...\n{text[-_ERROR_CHARS // 2 :]}"
        return text

    def _place(self, frame: traceback.FrameSummary) -> str:
        number = self._codes[frame.filename]
        earlier = "" if number == self._number else f" of code {number}"
        inside = "" if frame.name == "<module>" else f", in {frame.name}"
        return f"line {frame.lineno}{earlier}{inside}: {frame.line or ''}"


def _outputs(names: list[str] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What is handed in: by name, by place, or as one dict; without known names just the one value."""
    if names is None:
        if len(args) == 1 and not kwargs:
            return {"output": args[0]}
        if kwargs and not args:
            return kwargs
        raise TypeError("SUBMIT takes one value, or values by name")
    if len(args) == 1 and not kwargs and isinstance(args[0], dict) and set(args[0]) == set(names):
        return args[0]
    if len(args) > len(names):
        raise TypeError(f"SUBMIT takes {len(names)} values ({', '.join(names)}), not {len(args)}")
    made = dict(zip(names, args))  # noqa: B905 - fewer values are completed by those given by name
    twice, unknown = sorted(made.keys() & kwargs.keys()), sorted(kwargs.keys() - set(names))
    if twice or unknown:
        raise TypeError(f"SUBMIT got {(twice or unknown)[0]!r}, but takes: {', '.join(names)}")
    made |= kwargs
    missing = [name for name in names if name not in made]
    if missing:
        raise TypeError(f"SUBMIT misses {', '.join(missing)}")
    return made


def _plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON can hold it; what it cannot hold as its ``repr``."""
    if type(value) in _JSON:
        return value
    if depth < 100:
        if isinstance(value, dict):
            return {
                key if isinstance(key, str) else repr(key): _plain(each, depth + 1)
                for key, each in value.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [_plain(each, depth + 1) for each in value]
    if isinstance(value, _JSON):
        return next(kind(value) for kind in (str, bool, int, float) if isinstance(value, kind))
    return repr(value)


def _compiled(code: str, name: str) -> tuple[CodeType, CodeType | None]:
    """The code, and apart from it its last line where that is an expression."""
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        body = compile(tree, name, "exec")
        if not isinstance(last, ast.Expr):
            return body, None
        return body, compile(ast.Expression(last.value), name, "eval")
    except SyntaxError as error:
        raise _NoPython(_syntax(error)) from None
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte, or nested too deep
        raise _NoPython(f"{type(error).__name__}: {error}") from None


def _syntax(error: SyntaxError) -> str:
    line = (error.text or "").rstrip()
    return f"{error.msg} (line {error.lineno})" + (f": {line.strip()[:200]}" if line.strip() else "")


def serve(socket: int, output_chars: int, hello: Mapping[str, Any]) -> NoReturn:
    """Answer until the other side hangs up."""
    wire = _Wire(socket)
    session = _Session(wire, output_chars)
    wire.send(hello)
    while True:
        answer = session.execute(wire.receive())
        try:
            wire.send(answer)
        except Exception as error:  # noqa: BLE001 - too long for the memory, or no text for some character
            wire.send({"error": f"the result cannot be sent: {type(error).__name__}", "printed": ""})
