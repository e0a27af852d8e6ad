"""Trace a plain ``forward``: find out which predictors it asks, and what each is given.

The method runs once, with stand-ins for the row's values and for its predictors' answers. No model
is asked. What it does besides asking predictors happens then and never again; a ``forward`` that
decides or computes by data, or changes what its module holds, is not traced, and the line that does so
is named.
"""

from __future__ import annotations

import copy
import dis
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.kept import Kept
from dspy_stream.modules.module import Module
from dspy_stream.modules.proxy import Input, PredictionValue, Stopped, Value, Whole, template
from dspy_stream.modules.scope import SCOPE
from dspy_stream.modules.traced import Call, Traced
from dspy_stream.program import Example
from dspy_stream.program.watch import WATCHER
from dspy_stream.runtime import bridge

__all__ = ["Untraceable", "is_leaf", "shortened", "trace"]

_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES: Final = tuple(
    {sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib", "purelib")}
)


class Untraceable(ConfigurationError):
    """A ``forward`` cannot be traced; the message says where and why."""

    code = "untraceable"


def is_leaf(module: Module) -> bool:
    """True for a module whose calls are steps of a trace; a ``forward`` of a user's own is gone into."""
    file: str = inspect.unwrap(type(module).forward).__code__.co_filename
    return file.startswith(_OURS)


def trace(module: Module) -> Traced:
    """The graph of the calls in a straight-line ``forward``, as a module that runs it.

    Calls that do not need each other's outputs are made at the same time.

    Raises:
        Untraceable: something in it depends on data; the message names file and line.

    >>> from dspy_stream.modules.predict import Predict
    >>> class Two(Module):
    ...     def __init__(self):
    ...         self.one, self.two = Predict("text -> a"), Predict("text -> b")
    ...     def forward(self, text):
    ...         return {"a": self.one(text=text).a, "b": self.two(text=text).b}
    >>> [[call.name for call in level] for level in trace(Two()).levels()]
    [['one', 'two']]
    """
    if isinstance(module, Traced):
        return module
    if is_leaf(module):
        raise Untraceable(f"{type(module).__name__} is one part already")
    tracer = _Tracer(module)
    try:
        kept = Kept(module, private=lambda part: not is_leaf(part))
        try:
            result = _in_a_context(tracer, module)
        finally:
            changed = kept.taken_back()  # else a proxy would stay in the user's own object
        if changed is not None:
            raise _changes(module, changed)
        return Traced(module, tuple(tracer.calls), _result(result))
    except Stopped as stopped:
        raise Untraceable(_told(stopped, str(stopped), tracer.place)) from None
    except Exception as error:  # a proxy where a value was wanted, or a mistake in the user's code
        raise Untraceable(_told(error, f"raises {type(error).__name__}: {error}", tracer.place)) from error


def _in_a_context(tracer: _Tracer, module: Module) -> Any:
    context = copy_context()
    context.run(SCOPE.set, _NoModels())  # type: ignore[arg-type]
    context.run(WATCHER.set, None)
    return context.run(_run, tracer, lambda: tracer.traced(module, "", {}, top=True))


def _run(tracer: _Tracer, work: Callable[[], Any]) -> Any:
    """Run a function whose model calls, if it makes any past its predictors, come back here instead."""
    steps = bridge(_scanned, tracer, work)
    try:
        steps.send(None)
    except StopIteration as stop:
        return stop.value
    try:
        steps.throw(Stopped("asks a model, or waits, other than by calling a predictor of its own"))
    except StopIteration:
        pass
    raise Stopped("goes on after a model could not be asked")


class _NoModels:
    """In the place of a scope: a predictor that is no part of the module finds nothing to ask."""

    @property
    def plans(self) -> Mapping[int, Any]:
        raise Stopped("asks a predictor that is not a part of the module")

    parameters = clients = plans


class _Tracer:
    """The calls found so far, and where ``forward`` begins or, once that is known, returns."""

    def __init__(self, module: Module) -> None:
        code = inspect.unwrap(type(module).forward).__code__
        self.place = (code.co_filename, code.co_firstlineno)
        self.calls: list[Call] = []
        self._names: set[str] = set()

    def traced(self, module: Module, path: str, arguments: Mapping[str, Any], *, top: bool = False) -> Any:
        """Run a module's ``forward`` on a copy whose parts are stand-ins."""
        kind = type(module).__name__
        if module._has_aforward():
            raise Stopped(f"{kind} has an aforward, and only a plain forward is traced")
        if module._own_call:
            raise Stopped(f"{kind} has a __call__ of its own, and only a plain forward is traced")
        standing = copy.copy(module)
        for name, value in module.__dict__.items():
            standing.__dict__[name] = self._stand_in(value, f"{path}{name}")
        before = dict(standing.__dict__)
        given = _proxies(module) if top else arguments
        result = standing.forward(**given)
        for name in {**before, **standing.__dict__}:
            if before.get(name, self) is not standing.__dict__.get(name, self):
                raise _changes(module, name)
        return result

    def _stand_in(self, value: Any, path: str) -> Any:
        if isinstance(value, Module):
            return _Part(self, value, path)
        if type(value) in (list, tuple) and any(isinstance(item, Module) for item in value):
            return type(value)(self._stand_in(item, f"{path}[{n}]") for n, item in enumerate(value))
        if type(value) is dict and any(isinstance(item, Module) for item in value.values()):
            return {key: self._stand_in(item, f"{path}[{key!r}]") for key, item in value.items()}
        return value

    def called(self, module: Module, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call of a part: noted, or gone into where it is a user's own module."""
        if not is_leaf(module):
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            return self.traced(module, f"{path}.", _by_name(bound))
        if args:
            kwargs = _named_for(module, path, args, kwargs)
        known = module.input_names()
        for name in kwargs:
            if known is not None and name not in known:
                raise Stopped(f"gives {path} {name}=, which is no input of it")
        name = self._named(path)
        self.calls.append(Call(name, module, {key: template(value) for key, value in kwargs.items()}, path))
        return PredictionValue(Whole(len(self.calls) - 1), module.output_names())

    def _named(self, path: str) -> str:
        name, number = path, 1
        while name in self._names:
            number += 1
            name = f"{path}_{number}"
        self._names.add(name)
        return name


class _Part:
    """Stands for a part while its owner's ``forward`` is traced."""

    __slots__ = ("_module", "_path", "_tracer")

    def __init__(self, tracer: _Tracer, module: Module, path: str) -> None:
        object.__setattr__(self, "_tracer", tracer)
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_path", path)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.called(self._module, self._path, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Stopped(f"changes {self._path}.{name}")


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in bound.signature.parameters.values()):
        raise Stopped("calls a module that takes its arguments by position")
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        rest = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        found.update(value if rest else {name: value})
    return found


def _named_for(
    module: Module, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The arguments of a call by the names that the part's ``forward`` gives them."""
    signature = inspect.signature(module.forward)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if any(kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY) for kind in kinds):
        raise Stopped(f"gives {path} arguments by position")
    return _by_name(signature.bind(*args, **kwargs))


def _proxies(module: Module) -> dict[str, Any]:
    proxies = {}
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise Stopped(f"{type(module).__name__}.forward takes {parameter}, so its inputs have no names")
        default = () if parameter.default is parameter.empty else (parameter.default,)
        proxies[name] = Value(Input(name, default))
    return proxies


def _result(value: Any) -> Any:
    if type(value) is PredictionValue:
        return template(value, whole=True)
    if type(value) is Value:
        raise Stopped("returns a value, not a prediction")
    if isinstance(value, Example):
        return template(dict(value._store))
    if isinstance(value, Mapping):
        return template(dict(value))
    raise Stopped(f"returns {type(value).__name__}, not a prediction")


# --------------------------------------------------------------- what a proxy cannot hear of


def _scanned(tracer: _Tracer, work: Callable[[], Any]) -> Any:
    """Run a function; every function of the user's that it enters is looked at first."""
    seen: set[CodeType] = set()

    def entered(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "return" and _of_the_user(code.co_filename):
            tracer.place = (code.co_filename, frame.f_lineno)
        if event == "call" and code not in seen:
            seen.add(code)
            if _of_the_user(code.co_filename):
                found = next(_silent(code), None)
                if found is not None:
                    line, does = found
                    raise _Placed(f"{does}", code.co_filename, line)

    before = sys.getprofile()
    sys.setprofile(entered)
    try:
        return work()
    finally:
        sys.setprofile(before)


class _Placed(Stopped):
    """Stopped at a place that is known."""

    def __init__(self, does: str, file: str, line: int) -> None:
        super().__init__(does)
        self.file = file
        self.line = line


def _changes(module: Module, what: str) -> Stopped:
    """Stopped where ``forward`` first names the attribute in which something changed."""
    code = inspect.unwrap(type(module).forward).__code__
    attribute = what.partition(".")[0].partition("[")[0]
    line = found = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = instruction.starts_line or line
        if instruction.argval == attribute:
            found = line
            break
    return _Placed(f"{type(module).__name__}.forward changes self.{what}", code.co_filename, found)


_QUIET_NAMES: Final = ("callable", "id", "type", "vars")


def _silent(code: CodeType) -> Iterator[tuple[int, str]]:
    """Lines that could use a value without its proxy hearing of it."""
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = instruction.starts_line or line
        name = instruction.opname
        if name == "IS_OP" or name.endswith(("_IF_NONE", "_IF_NOT_NONE")):
            yield line, "asks what a value `is`"
        elif name.startswith("MATCH_"):
            yield line, "matches patterns"
        elif name in ("PUSH_EXC_INFO", "SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH"):
            yield line, "has a `try` or a `with`"
        elif name == "LOAD_GLOBAL" and instruction.argval in _QUIET_NAMES:
            yield line, f"uses {instruction.argval}()"


def _of_the_user(file: str) -> bool:
    if file.startswith((_OURS, "<frozen ", "<string>")) or "site-packages" in file:
        return False
    return not file.startswith(_LIBRARIES)


def _told(error: BaseException, does: str, otherwise: tuple[str, int]) -> str:
    """Where and why; the place is the user's own line nearest to what happened, or else the one given."""
    if isinstance(error, _Placed):
        return f"{shortened(error.file)}:{error.line}: {does}"
    file, line = otherwise
    return f"{_place(error.__traceback__) or f'{shortened(file)}:{line}'}: {does}"


def _place(tb: TracebackType | None) -> str:
    frames = [frame for frame in traceback.extract_tb(tb) if _of_the_user(frame.filename)]
    return f"{shortened(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def shortened(file: str) -> str:
    """A file's name for a reader: from the working folder where it is below that."""
    near = os.path.relpath(file) if os.path.isabs(file) else file
    return file if near.startswith("..") else near
