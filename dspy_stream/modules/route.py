"""Route: one of several parts, chosen by the record; Loop: a part over and over, within a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dspy_stream.errors import ConfigurationError, RecordError, RowError
from dspy_stream.modules.compose import Composite, Named
from dspy_stream.modules.module import Module
from dspy_stream.modules.part import as_part, is_awaited
from dspy_stream.modules.running import run_part
from dspy_stream.program import Prediction
from dspy_stream.runtime import Steps

__all__ = ["DEFAULT", "Loop", "Route"]

On = str | Callable[[Prediction], Any]

DEFAULT = "default"
"""The name of the part for records that no other is for."""


class Route(Composite):
    """Send each record to one part, by the value of a field or of a function.

    Args:
        on: a field's name, or a function of the record, whose fields are read as
            ``record.name`` or ``record["name"]``.
        routes: the part for each value.
        default: the part for every other value; without one such a record is an error.

    Raises:
        ConfigurationError: there is no route, or ``on`` is neither a name nor a plain function.
        RowError (when called): no part is for this value.
        RecordError (when called): the record lacks the field.

    >>> route = Route("kind", {"loud": lambda text: {"out": text.upper()}}, default=lambda text: {"out": "-"})
    >>> route(kind="loud", text="a").out, route(kind="soft", text="a").out
    ('A', '-')
    """

    def __init__(self, on: On, routes: Mapping[Any, Any], default: Any = None) -> None:
        super().__init__()
        self.on = _field_or_function(on, "on")
        if not isinstance(routes, Mapping) or not routes:
            raise ConfigurationError("a route needs a mapping from values to parts: {'refund': module}")
        self.routes: dict[Any, Module] = {
            value: self._keep(repr(value), as_part(part, f"the part for {value!r}"))
            for value, part in routes.items()
        }
        self.default: Module | None = None if default is None else self._keep(DEFAULT, as_part(default))

    def parts(self) -> list[Named]:
        """The parts, each named by how its value is written; the default comes last."""
        found = [self._named(repr(value), module) for value, module in self.routes.items()]
        return found if self.default is None else [*found, self._named(DEFAULT, self.default)]

    def place(self, record: Mapping[str, Any]) -> int:
        """The number of the part for this record, in the order of :meth:`parts`.

        Raises:
            RowError: there is none.
        """
        value = _value(self.on, record)
        try:
            found = value in self.routes
        except TypeError:  # a list or a mapping is nobody's value
            found = False
        if found:
            return list(self.routes).index(value)
        if self.default is None:
            known = ", ".join(map(repr, self.routes))
            raise RowError(f"no route for {_described(self.on)}={value!r}; routes: {known}; give default=...")
        return len(self.routes)

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The part for this record."""
        name, module, options = self.parts()[self.place(inputs)]
        made = yield from run_part(name, module, options, inputs)
        return Prediction.of(dict(made))

    def required_names(self) -> tuple[str, ...]:
        """The field that decides, and what every part needs."""
        needed = [part.module.required_names() for part in self.parts()]
        shared = [name for name in needed[0] if all(name in names for names in needed)]
        return tuple(dict.fromkeys([*([self.on] if isinstance(self.on, str) else []), *shared]))

    def output_names(self) -> tuple[str, ...] | None:
        """What any of the parts makes."""
        names: dict[str, None] = {}
        for part in self.parts():
            outputs = part.outputs()
            if outputs is None:
                return None
            names.update(dict.fromkeys(outputs))
        return tuple(names)

    def composition(self) -> Any:
        """The parts' options, and what decides between them."""
        return [super().composition(), self.on]


class Loop(Composite):
    """Run a part until it is enough, at most ``max_iterations`` times.

    Each round reads the record with the outputs of the rounds before, so what is to get better
    takes the place of what was there:
    ``Predict("draft -> better, good: bool").using(outputs={"better": "draft", "good": "good"})``.
    A round that asks what an earlier one asked gets its answer from the journal.

    Args:
        module: a module, a module with options, or a function of fields by name.
        until: a field that is true when it is enough, or a function of the record.
        max_iterations: the bound; what the last round made is returned, enough or not.

    Raises:
        ConfigurationError: the bound is below one, or ``until`` is neither a name nor a plain function.

    >>> Loop(lambda n: {"n": n * 2}, until=lambda record: record.n > 50, max_iterations=10)(n=3).n
    96
    """

    def __init__(self, module: Any, until: On, max_iterations: int = 5) -> None:
        super().__init__()
        if not isinstance(max_iterations, int) or max_iterations < 1:
            raise ConfigurationError(
                f"max_iterations={max_iterations!r}: a loop runs at least once, a whole number of times"
            )
        self.until = _field_or_function(until, "until")
        self.max_iterations = max_iterations
        self.body = self._keep("body", as_part(module))

    def parts(self) -> list[Named]:
        """The only part."""
        return [self._named("body", self.body)]

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """Round after round."""
        ((name, module, options),) = self.parts()
        record = dict(inputs)
        made: dict[str, Any] = {}
        for _ in range(self.max_iterations):
            outputs = yield from run_part(name, module, options, record)
            record.update(outputs)
            made.update(outputs)
            if _value(self.until, record):
                break
        return Prediction.of(made)

    def required_names(self) -> tuple[str, ...]:
        """What the part needs."""
        return self.body.required_names()

    def output_names(self) -> tuple[str, ...] | None:
        """What the part makes."""
        return self.parts()[0].outputs()

    def composition(self) -> Any:
        """The part's options, the bound and the end."""
        return [super().composition(), self.max_iterations, self.until]


def _field_or_function(value: Any, what: str) -> On:
    if isinstance(value, str):
        return value
    if isinstance(value, Module) or not callable(value):
        raise ConfigurationError(
            f"{what}= is a field's name or a function of the record, not {type(value).__name__}; run a "
            "module before it and name its output"
        )
    if is_awaited(value):  # its coroutine would be the value, which is nobody's, and true
        raise ConfigurationError(
            f"{what}= is a function that answers at once, and {_described(value)} is a coroutine function: "
            f"make it a part before this one, and give {what}= the name of its output"
        )
    chosen: On = value
    return chosen


def _described(on: On) -> str:
    return on if isinstance(on, str) else f"{getattr(on, '__name__', 'function')}(record)"


def _value(on: On, record: Mapping[str, Any]) -> Any:
    if not isinstance(on, str):
        return on(Prediction.of(dict(record)))
    if on not in record:
        raise RecordError(f"there is no field {on!r}; the record has: {', '.join(map(str, record))}")
    return record[on]
