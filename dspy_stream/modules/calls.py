"""One call of a module: who hears of it, and in which modules later calls are made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar, copy_context
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from dspy_stream import events
from dspy_stream.adapters import Adapter
from dspy_stream.interpreters.base import CodeInterpreter
from dspy_stream.lm.model import BaseLM
from dspy_stream.program import Prediction
from dspy_stream.program.types import Tool
from dspy_stream.runtime import Steps, bridge, perform

if TYPE_CHECKING:
    from dspy_stream.modules.module import Module
    from dspy_stream.usage import UsageTracker

__all__ = [
    *("calling_within", "counted", "entered", "forwarded", "heard_steps"),
    *("own_forward", "synced", "taking", "told_steps", "with_callbacks"),
]


# A module that holds a resource, whose own ``__call__`` has come to what it calls.
_ON_A_LOOP: Final = ("running event loop", "loop is already running", "another loop is running")
_GOES_ON: Final[ContextVar[Any]] = ContextVar("dspy_stream_goes_on", default=None)


def calling_within(module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Steps[Any] | None:
    """The steps of a module that holds a resource and is called by another one; None where none calls it."""
    from dspy_stream.modules.hosts import within  # which runs modules, and so comes after them
    from dspy_stream.modules.member import OWNED
    from dspy_stream.modules.together import alone

    callers = events.CALLERS.get()[:-1]
    called = events.ROW.get() is not None or bool(callers)
    if not called or OWNED.get() is not None or any(getattr(caller, "_holds", False) for caller in callers):
        return None
    named = inspect.signature(module.forward).bind(*args, **kwargs).arguments if args else {}
    inputs = {**named, **kwargs}
    if not module._own_call:
        return within(module, inputs)
    context = copy_context()  # its own call goes on, and comes to ``forward`` where that may run
    context.run(_GOES_ON.set, module)
    return alone(context.run(within, module, inputs), context=context)


def entered(module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> events.calling:
    """Around a module's call: its model calls go into its history, and listeners hear of it."""
    return events.calling("module", module, {"args": args, "kwargs": kwargs}, caller=True)


def with_callbacks(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose calls callbacks hear of as those of a module, with the arguments by name.

    A decorator for methods that are called directly, as ``forward`` may be. Of the calls of modules as
    such, of models, tools and adapters they hear without it. On the ``start``, ``execute`` and
    ``shutdown`` of an interpreter of one's own they hear of these.

    >>> from dspy_stream.modules.module import Module
    >>> class Half(Module):
    ...     @with_callbacks
    ...     def forward(self, number):
    ...         return number / 2
    >>> Half().forward(3)
    1.5
    """
    takes = inspect.signature(fn)

    def call_of(instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> events.calling:
        bound = takes.bind(instance, *args, **kwargs)
        bound.apply_defaults()
        _, *named = bound.arguments.items()
        if fn.__name__ in _OPERATIONS and isinstance(instance, CodeInterpreter):
            return events.calling(_OPERATIONS[fn.__name__], instance, dict(named))
        return events.calling("module", instance, dict(named), caller=True)

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def heard(self: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self, _TOLD):
                return await fn(self, *args, **kwargs)
            with call_of(self, args, kwargs) as call:
                call.outputs = await fn(self, *args, **kwargs)
            return call.outputs

    else:

        @functools.wraps(fn)
        def heard(self: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self, _TOLD):
                return fn(self, *args, **kwargs)
            with call_of(self, args, kwargs) as call:
                call.outputs = fn(self, *args, **kwargs)
            return call.outputs

    return heard


_TOLD: Final = (Adapter, BaseLM, Tool)
_OPERATIONS: Final[Mapping[str, events.Kind]] = {
    "start": "interpreter_startup",
    "execute": "interpreter_execute",
    "shutdown": "interpreter_shutdown",
}


def heard_steps(module: Module, inputs: Mapping[str, Any]) -> Steps[Any]:
    """The steps of one call; for a flow's row, while nobody listens, just ``module.steps``.

    A module with a ``__call__`` of its own is called by that, as in a script.
    """
    if module._own_call and _GOES_ON.get() is not module:
        return forwarded(module, inputs)
    if not events.active and events.ROW.get() is not None:
        return module.steps(inputs)
    return told_steps(module, inputs, module.steps)


def told_steps(
    module: Module, inputs: Mapping[str, Any], begin: Callable[[Mapping[str, Any]], Steps[Any]]
) -> Steps[Any]:
    """The steps that ``begin`` makes of the inputs, as a call of a module that others hear of."""
    call = entered(module, (), inputs)
    call.begin()
    steps = begin(inputs)
    value: Any = None
    thrown: BaseException | None = None
    while True:
        # Each leg may run in another context, and others run there in between.
        call.resume()
        try:
            effect = steps.send(value) if thrown is None else steps.throw(thrown)
        except StopIteration as stop:
            call.suspend()
            call.outputs = stop.value
            call.end(None)
            return stop.value
        except BaseException as error:
            call.suspend()
            call.end(error)
            raise
        call.suspend()
        thrown = None
        try:
            value = yield effect
        except BaseException as error:  # noqa: BLE001 - thrown into the steps, which may handle it
            thrown = error


def taking(module: Module) -> Callable[..., Any]:
    """The method whose parameters are the fields that a module reads."""
    if module._own_call:
        kinds = {one.kind for one in inspect.signature(module.__call__).parameters.values()}
        if not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}:
            return module.__call__
    return module.aforward if module._has_aforward() else module.forward


def synced(module: Module, /, *args: Any, **kwargs: Any) -> Any:
    """What ``aforward`` returns, for synchronous code; ``syncify`` makes it a module's ``forward``."""
    return perform(module._async_steps(args, kwargs))


def forwarded(fn: Callable[..., Any], inputs: Mapping[str, Any]) -> Steps[Any]:
    """A plain ``forward``, or what calls one, for one row as steps.

    Raises:
        RuntimeError: it wanted an event loop of its own, and what to do about it.
    """
    try:
        return (yield from bridge(fn, **inputs))
    except RuntimeError as error:
        if not any(said in str(error) for said in _ON_A_LOOP):
            raise
        help_ = "a step's forward runs on one: await in an aforward, or give it isolation='thread'"
        raise RuntimeError(f"{error}; {help_}") from error


def own_forward(module: Module) -> Callable[..., Any]:
    """The ``forward`` of a module; that of its class where ``syncify`` has put ``aforward`` in its place."""
    found = module.forward
    return MethodType(type(module).forward, module) if getattr(found, "__func__", None) is synced else found


def counted(result: Any, tracker: UsageTracker) -> Any:
    """The result, with what its calls used on it where it is a prediction."""
    if isinstance(result, Prediction):
        result.set_lm_usage(tracker.get_total_tokens())
    return result
