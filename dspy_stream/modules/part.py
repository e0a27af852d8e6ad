"""Parts of a composed program: a module, and how it is to be run."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Final, Literal

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.defaults import check_defaults
from dspy_stream.modules.hosts import ISOLATIONS, Isolation, Place
from dspy_stream.modules.module import Module
from dspy_stream.modules.supervisor import is_seconds
from dspy_stream.program import Example, Prediction
from dspy_stream.program.fields import nearest
from dspy_stream.runtime import Steps, perform

if TYPE_CHECKING:
    from dspy_stream.modules.compose import Pipeline
    from dspy_stream.modules.supervision import Tree

__all__ = ["Apply", "Part", "PartOptions", "as_part", "is_awaited"]

_ORDERS: Final = (None, "unordered", "ordered")
_WORDS: Final[Mapping[type, str]] = {str: "text", Mapping: "mapping of outputs by name"}
_ON_ERROR: Final = (None, "default", "dead_letter", "skip", "stop")


@dataclass(frozen=True)
class PartOptions:
    """How one part is run. None leaves it to the step that runs the whole program.

    ``timeout`` (seconds for one row), ``retries``, ``fallback``, ``outputs``, ``isolation`` and
    ``on_error="default"`` hold wherever the part runs; the other choices of ``on_error`` in a flow, as one
    operator or as many: in a script the error is raised. ``name``, ``capacity`` and ``order`` are those of
    the part's own operator; where the program runs as one, or in a script, they have no meaning.

    Attributes:
        retries: further attempts at a row that failed for a reason of its own.
        on_error: with ``"default"`` a row that failed for good goes on with the default outputs of
            the part. An outage of the model is waited out before that, as ever. Where a failure
            leaves all parts around it, the choice of the innermost goes before theirs and the step's; of
            the parts of a fork that fail, the strictest counts.
        defaults: those outputs by the part's own names for them; an output that is not named is
            the default that the signature declares, else None.
        fallback: answers in the part's place when it has failed for good; before any default.
        outputs: which outputs go into the record, and under which names.
        isolation: ``"inline"`` runs the part's code on the engine's thread, where it must not block;
            ``"thread"`` in threads of its own (see :class:`~dspy_stream.modules.threads.Threads`);
            ``"process"`` in worker processes (see
            :class:`~dspy_stream.modules.process.host.Processes`), one row each at a time, so that code
            which ends its process costs one row.
        workers: threads or processes at most, and so rows at work; 32 threads or 2 processes, but not
            more than ``capacity``.
        factory: how a worker process makes the module: a function or class of a file of yours, or
            ``"package.module:name"``, or ``"file.py:name"``.
    """

    name: str | None = None
    capacity: int | None = None
    order: Literal["unordered", "ordered"] | None = None
    timeout: float | None = None
    retries: int | None = None
    on_error: Literal["default", "dead_letter", "skip", "stop"] | None = None
    fallback: Module | None = None
    outputs: Mapping[str, str] | None = None
    defaults: Mapping[str, Any] | None = None
    isolation: Isolation | None = None
    workers: int | None = None
    factory: Any = None

    def __post_init__(self) -> None:
        for name, least in (("capacity", 1), ("retries", 0), ("workers", 1)):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ConfigurationError(f"{name}={value!r}: must be a whole number, such as {least + 1}")
            if value < least:
                raise ConfigurationError(f"{name}={value}: must be at least {least}")
        if self.timeout is not None and not is_seconds(self.timeout):
            raise ConfigurationError(f"timeout={self.timeout!r}: must be more than 0 seconds, as a number")
        for option, given, known in (("order", self.order, _ORDERS), ("on_error", self.on_error, _ON_ERROR)):
            if given not in known:
                choices = ", ".join(filter(None, known))
                raise ConfigurationError(f"{option}={given!r}: no such choice; there are {choices}")
        for name, kind in (("name", str), ("outputs", Mapping), ("defaults", Mapping)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ConfigurationError(f"{name}={value!r}: must be a {_WORDS[kind]}")
        if self.isolation not in (None, *ISOLATIONS):
            raise ConfigurationError(f"isolation={self.isolation!r}: there are {', '.join(ISOLATIONS)}")

    @property
    def governs(self) -> bool:
        """True where the part does not simply run once."""
        return (
            bool(self.retries)
            or self.timeout is not None
            or self.fallback is not None
            or self.on_error == "default"
            or self.isolation not in (None, "inline")
        )

    def check(self, name: str, module: Module) -> None:
        """Find out before any row whether the options fit together, and fit the module.

        Raises:
            ConfigurationError: they do not; ``name`` says whose they are.
        """
        if self.on_error == "default":
            check_defaults(name, module, self.defaults, self.outputs)
        elif self.defaults is not None:
            raise ConfigurationError(f"{name}: defaults={{...}} is for on_error='default'")
        self.place(name).check(module)

    def place(self, name: str, tree: Tree | None = None) -> Place:
        """Where the part's code runs, as part ``name`` of ``tree``."""
        return Place(self.isolation or "inline", self.workers, self.factory, name, tree, self.timeout)

    @staticmethod
    def of(options: Mapping[str, Any]) -> PartOptions:
        """Options by name; ``outputs`` may be a list of names, ``fallback`` a function.

        Raises:
            ConfigurationError: there is no such option, or a value is out of range.
        """
        known = [item.name for item in fields(PartOptions)]
        for name in options:
            if name not in known:
                hint = nearest(name, known) or f"; there are {', '.join(known)}"
                raise ConfigurationError(f"a part has no option {name!r}{hint}")
        given = dict(options)
        if given.get("fallback") is not None:
            given["fallback"] = as_part(given["fallback"], "a fallback").module
        if given.get("outputs") is not None:
            given["outputs"] = _names(given["outputs"])
        return PartOptions(**given)


def _names(outputs: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    if isinstance(outputs, str):
        return {outputs: outputs}
    if not isinstance(outputs, Iterable):
        raise ConfigurationError(f"outputs={outputs!r}: must be names, or a mapping of them to new ones")
    names = dict(outputs) if isinstance(outputs, Mapping) else {name: name for name in outputs}
    if odd := [name for name in (*names, *names.values()) if not isinstance(name, str)]:
        raise ConfigurationError(f"outputs={outputs!r}: {odd[0]!r} is no name of a field")
    if len(set(names.values())) != len(names):
        raise ConfigurationError(f"outputs={outputs!r}: two outputs get one name")
    return names


@dataclass(frozen=True)
class Part:
    """A module with its options, to be put into a program: ``module.using(retries=2)``.

    The module stays what it is: its parameters keep their names, whatever the options say.
    """

    module: Module
    options: PartOptions = field(default_factory=PartOptions)

    def using(self, **options: Any) -> Part:
        """The same with further options.

        Raises:
            ConfigurationError: there is no such option, or a value is out of range.
        """
        changed = PartOptions.of(options)
        return Part(self.module, replace(self.options, **{name: getattr(changed, name) for name in options}))

    def __call__(self, **_inputs: Any) -> Any:
        """Refuse: options are those of a part.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            f"{type(self.module).__name__}.using(...) is a part, and is not called: put it into a program, "
            "as in self.part = Program(part=module.using(...)), and call that"
        )

    def __or__(self, other: Any) -> Pipeline:
        from dspy_stream.modules.compose import Pipeline

        return Pipeline(self, other)

    def __ror__(self, other: Any) -> Pipeline:
        from dspy_stream.modules.compose import Pipeline

        return Pipeline(other, self)


class Apply(Module):
    """A plain function as a part: reads its arguments from the record by name, returns new fields.

    A coroutine function is awaited. The function is called once a row and must not change its
    arguments.

    >>> Apply(lambda text: {"length": len(text)})(text="hello").length
    5
    """

    def __init__(self, fn: Callable[..., Mapping[str, Any] | Awaitable[Mapping[str, Any]]]) -> None:
        self.fn = fn
        parameters = [
            parameter
            for parameter in inspect.signature(fn).parameters.values()
            if parameter.kind is not parameter.VAR_POSITIONAL
        ]
        named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        self._reads = tuple(p.name for p in named) if len(named) == len(parameters) else None
        self._needs = tuple(p.name for p in named if p.default is p.empty)
        self._awaits = is_awaited(fn)

    def forward(self, **inputs: Any) -> Any:
        """What the function returns, as a prediction."""
        return _prediction(self.fn, self.fn(**inputs))

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The call as steps; no greenlet is needed where the function is awaited."""
        return self._awaited(inputs) if self._awaits else super().steps(inputs)

    def _awaited(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        awaitable: Any = self.fn(**inputs)
        made = yield awaitable
        return _prediction(self.fn, made)

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return perform(self._awaited(kwargs)) if self._awaits else super()._call(args, kwargs)

    async def _acall(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._awaits:
            return _prediction(self.fn, await self._await(kwargs))
        return await super()._acall(args, kwargs)

    async def _await(self, inputs: Mapping[str, Any]) -> Any:
        made: Any = self.fn(**inputs)
        return await made

    def input_names(self) -> tuple[str, ...] | None:
        """The function's parameters; None where it takes any."""
        return self._reads

    def required_names(self) -> tuple[str, ...]:
        """The function's parameters that have no default."""
        return self._needs

    def composition(self) -> Any:
        """The function, whose code decides the answers."""
        return self.fn

    @property
    def label(self) -> str:
        """The function's name."""
        return str(getattr(self.fn, "__name__", type(self.fn).__name__)).strip("<>")

    def __repr__(self) -> str:
        return f"Apply({self.label})"


def is_awaited(fn: Any) -> bool:
    """True for a coroutine function, and for an object whose call is one."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(type(fn), "__call__", None)  # noqa: B004 - whether it may be awaited, not whether it may be called
    )


def _prediction(fn: Any, made: Any) -> Any:
    if isinstance(made, Prediction):
        return made
    if isinstance(made, Example):
        return Prediction(made)
    if isinstance(made, Mapping):
        return Prediction.of(dict(made))
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    raise TypeError(f"{name} returned {type(made).__name__}; it must return a mapping of fields")


def as_part(value: Any, what: str = "a part of a program") -> Part:
    """A part from a module, a part, or a function of fields by name.

    Raises:
        ConfigurationError: it is none of them.
    """
    if isinstance(value, Part):
        return value
    if isinstance(value, Module):
        return Part(value)
    if any(kind.__module__.partition(".")[0] == "dspy" for kind in type(value).__mro__):
        raise ConfigurationError(
            f"{what} is a module of this package; put a program of DSPy's into "
            "dspy_stream.interop.DSPyModule(...)"
        )
    if callable(value) and not isinstance(value, type):
        return Part(Apply(value))
    raise ConfigurationError(
        f"{what} is a module, such as Predict(...), or a function of fields, not {type(value).__name__}"
    )
