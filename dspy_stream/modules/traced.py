"""A traced ``forward`` as a graph of calls, and the module that runs it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final

from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.proxy import Input, Output, Whole, evaluated, leaves, looked_up
from dspy_stream.modules.running import called, record_of, select
from dspy_stream.modules.scope import TICKET
from dspy_stream.modules.together import Baton, Branch, together
from dspy_stream.program import Prediction
from dspy_stream.runtime import Steps, aperform, perform

__all__ = ["OF_CALLS", "Call", "Traced", "TracedCall"]

OF_CALLS: Final = "\0"
"""What the names of calls' outputs begin with in a record that they share; no field of a row's own does."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a part: its name in the graph, a template of what it is given, and the part's own name."""

    name: str
    module: Module
    arguments: Mapping[str, Any]
    path: str = ""

    @property
    def prefix(self) -> str:
        """What its outputs' names begin with, where calls of one graph share a record."""
        return f"{OF_CALLS}{self.name}."

    def needs(self) -> list[int]:
        """The numbers of the calls whose outputs it is given."""
        found = [ref.call for ref in leaves(dict(self.arguments)) if isinstance(ref, (Output, Whole))]
        return sorted(set(found))


class Traced(Module):
    """A module whose ``forward`` is known as a graph; :func:`~dspy_stream.modules.trace.trace` makes it.

    It answers as the module does, and makes calls that do not need each other at the same time. Its
    parameters are the module's own, under the same names. Replace predictors with
    ``map_named_predictors``; a predictor that is set on the module itself is not seen.
    """

    def __init__(self, module: Module, calls: tuple[Call, ...], result: Any) -> None:
        self.module = module
        self.calls = calls
        self.result = result
        self._inputs = (module.input_names(), module.required_names())

    def levels(self) -> list[list[Call]]:
        """The calls in waves: each needs outputs of earlier waves only."""
        depth: list[int] = []
        for call in self.calls:
            depth.append(1 + max((depth[number] for number in call.needs()), default=-1))
        waves = range(max(depth, default=-1) + 1)
        return [[c for c, d in zip(self.calls, depth, strict=True) if d == wave] for wave in waves]

    # ------------------------------------------------------------------------------------ calling

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """The same as calling the module.

        Raises:
            TypeError: it does not take these arguments.
        """
        return perform(self.steps(self._bound(args, inputs)))

    async def _acall(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await aperform(self.steps(self._bound(args, kwargs)))

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        forward = self.module.forward
        try:
            return inspect.signature(forward).bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{forward.__qualname__}() {error}") from None

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The graph for one row."""
        record = select(type(self.module).__name__, self.module, inputs)
        made: list[Mapping[str, Any] | None] = [None] * len(self.calls)
        batons = [Baton() for _ in self.calls]
        outer, tickets, branches = TICKET.get(), [], []
        for number, call in enumerate(self.calls):
            context = copy_context()
            if outer is not None:  # calls are numbered by their place in the graph, whoever comes first
                ticket = outer.beside(f"/{number}")
                tickets.append(ticket)
                context.run(TICKET.set, ticket)
            branches.append(Branch(context, _one(number, call, record, made, batons)))
        try:
            yield from together(branches)
        finally:
            for ticket in tickets:
                assert outer is not None
                outer.add(ticket)
        return Prediction.of(self._answer(record, made))

    def _answer(self, record: Mapping[str, Any], made: list[Mapping[str, Any] | None]) -> dict[str, Any]:
        if isinstance(self.result, Whole):
            return dict(made[self.result.call] or {})
        found: dict[str, Any] = evaluated(self.result, _looking(record, made))
        return found

    def returned(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs, out of a record that holds those of every call.

        Raises:
            AttributeError: a call did not make what is returned.
        """
        if isinstance(self.result, Whole):
            prefix = self.calls[self.result.call].prefix
            return _within(record, prefix)
        found: dict[str, Any] = evaluated(self.result, _sharing(record, [call.prefix for call in self.calls]))
        return found

    def input_names(self) -> tuple[str, ...] | None:
        """The module's."""
        return self._inputs[0]

    def required_names(self) -> tuple[str, ...]:
        """The module's."""
        return self._inputs[1]

    def output_names(self) -> tuple[str, ...] | None:
        """What the module returns."""
        if isinstance(self.result, Whole):
            return self.calls[self.result.call].module.output_names()
        return tuple(self.result)

    # ----------------------------------------------------------------------- the module's own parts

    def named_sub_modules(
        self, type_: type[Any] | None = None, skip_compiled: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """The module's."""
        return self.module.named_sub_modules(type_, skip_compiled)

    def named_parameters(self) -> list[tuple[str, Any]]:
        """The module's."""
        return self.module.named_parameters()

    def map_named_predictors(self, func: Callable[[Predict], Predict]) -> Traced:
        """Replace every predictor of the module, and trace it again."""
        from dspy_stream.modules.trace import trace

        self.module.map_named_predictors(func)
        self.__dict__.update(trace(self.module).__dict__)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Traced:
        from dspy_stream.modules.trace import trace

        return trace(copy.deepcopy(self.module, memo))

    def composition(self) -> Any:
        """The graph."""
        return [[[call.name, repr(call.arguments)] for call in self.calls], repr(self.result)]

    def __repr__(self) -> str:
        return f"Traced({self.module!r})"


class _Skipped(Exception):
    """A call that this one needs has failed; that failure is the one to be told."""


def _one(
    number: int,
    call: Call,
    record: Mapping[str, Any],
    made: list[Mapping[str, Any] | None],
    batons: list[Baton],
) -> Steps[None]:
    """One call, when the calls it needs have returned."""
    try:
        for needed in call.needs():
            if not batons[needed].passed:
                yield batons[needed]
            if made[needed] is None:
                raise _Skipped
        look = _looking(record, made)
        inputs = {name: evaluated(value, look) for name, value in call.arguments.items()}
        found = yield from called(call.module, inputs)
        made[number] = record_of(call.name, found)
    finally:
        batons[number].hand_over()


def _looking(record: Mapping[str, Any], made: list[Mapping[str, Any] | None]) -> Callable[[Any], Any]:
    def look(ref: Input | Output) -> Any:
        if isinstance(ref, Input):
            return looked_up(ref, record)
        return _field(made[ref.call] or {}, ref.field)

    return look


def _sharing(record: Mapping[str, Any], prefixes: Sequence[str]) -> Callable[[Any], Any]:
    def look(ref: Input | Output) -> Any:
        if isinstance(ref, Input):
            return looked_up(ref, record)
        prefix = prefixes[ref.call]
        name = prefix + ref.field
        return record[name] if name in record else _field(_within(record, prefix), ref.field)

    return look


def _within(record: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: value for name, value in record.items() if str(name).startswith(prefix)}


def _field(made: Mapping[str, Any], name: str) -> Any:
    """A field of what a call returned; fails as the prediction would."""
    return made[name] if name in made else getattr(Prediction.of(dict(made)), name)


class TracedCall(Module):
    """One call of a graph as a module over the record that the calls share.

    Its outputs go into the record under names of their own, where the calls that need them find them.
    """

    def __init__(self, traced: Traced, call: Call) -> None:
        self.module = call.module
        self.prefix = call.prefix
        self.label = type(call.module).__name__
        self._traced = traced.composition()
        self.call = call
        self._prefixes = [other.prefix for other in traced.calls]

    def forward(self, **record: Any) -> Any:
        """The call's outputs, under the names they have in the record."""
        return perform(self.steps(record))

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The call as steps."""
        call, look = self.call, _sharing(inputs, self._prefixes)
        given = {name: evaluated(value, look) for name, value in call.arguments.items()}
        found = yield from called(call.module, given)
        return Prediction.of({self.prefix + name: v for name, v in record_of(call.name, found).items()})

    def input_names(self) -> tuple[str, ...] | None:
        """The fields of the record that the call is given."""
        return tuple(self._names(defaults=True))

    def required_names(self) -> tuple[str, ...]:
        """Those that have no default."""
        return tuple(self._names(defaults=False))

    def _names(self, *, defaults: bool) -> dict[str, None]:
        call = self.call
        found: dict[str, None] = {}
        for ref in leaves(dict(call.arguments)):
            if isinstance(ref, Input):
                if defaults or not ref.default:
                    found[ref.name] = None
            elif isinstance(ref, Output):
                found[self._prefixes[ref.call] + ref.field] = None
        return found

    def output_names(self) -> tuple[str, ...] | None:
        """The part's outputs, under the names they have in the record."""
        names = self.module.output_names()
        return None if names is None else tuple(self.prefix + name for name in names)

    def named_parameters(self) -> list[tuple[str, Any]]:
        """The part's, by the names that the traced module gives them."""
        path = self.call.path
        return [
            (path if name == "self" else f"{path}.{name}", part)
            for name, part in self.module.named_parameters()
        ]

    def composition(self) -> Any:
        """The graph, and which call of it this is."""
        return [self._traced, self.prefix.removeprefix(OF_CALLS)]
