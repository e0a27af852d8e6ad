"""Route: one of several parts, chosen by the record; Loop: a part over and over, within a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from dspy_stream.errors import ConfigurationError, RecordError, RowError
from dspy_stream.modules.compose import Composite, Named
from dspy_stream.modules.module import Module
from dspy_stream.modules.part import as_part, is_awaited
from dspy_stream.modules.possible import Values, made_by, values_after
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
        routes: the part for each value. A member of an ``Enum`` is also found by its value, and else by
            its name, whether the key is the member or what the record holds is.
        default: the part for every other value; without one such a record is an error.

    Raises:
        ConfigurationError: there is no route, or ``on`` is neither a name nor a plain function; when a
            program or a flow is made of it, a key that its field cannot have: where a ``Predict`` or
            ``ChainOfThought`` before it makes the field, as an ``Enum``, a ``Literal`` or a ``bool``.
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
            value: self._keep(told(value), as_part(part, f"the part for {told(value)}"))
            for value, part in routes.items()
        }
        self.default: Module | None = None if default is None else self._keep(DEFAULT, as_part(default))

    def parts(self) -> list[Named]:
        """The parts, each named by how its value is written; the default comes last."""
        found = [self._named(told(value), module) for value, module in self.routes.items()]
        return found if self.default is None else [*found, self._named(DEFAULT, self.default)]

    def place(self, record: Mapping[str, Any]) -> int:
        """The number of the part for this record, in the order of :meth:`parts`.

        Raises:
            RowError: there is none.
        """
        value = _value(self.on, record)
        found = self._index(value)
        if found is not None:
            return found
        if self.default is None:
            known = ", ".join(map(told, self.routes))
            raise RowError(
                f"no route for {_described(self.on)}={told(value)}; routes: {known}; give default=..."
            )
        return len(self.routes)

    def _index(self, value: Any) -> int | None:
        """The number of the route for a value; None where there is none."""
        try:
            if value in self.routes:
                return list(self.routes).index(value)
            if isinstance(value, Enum):
                other = value.value if value.value in self.routes else value.name
                return list(self.routes).index(other) if other in self.routes else None
        except TypeError:  # a list or a mapping is nobody's value
            return None
        members = [(key, index) for index, key in enumerate(self.routes) if isinstance(key, Enum)]
        found = [index for key, index in members if key.value == value]
        found += [index for key, index in members if key.name == value]
        return found[0] if found else None

    def _made_values(self, known: Values) -> Values | None:
        possible = known.get(self.on) if isinstance(self.on, str) else None
        if possible is not None:
            self._check(possible)
        names: dict[str, None] | None = {}  # of values nobody knows: another part may not make them
        for part in self.parts():
            made = made_by(part, known)
            names = None if names is None or made is None else {**names, **dict.fromkeys(made)}
        return names

    def _check(self, possible: tuple[Any, ...]) -> None:
        """Refuse a key that no record can have; None may come of a default."""
        reached = {self._index(value) for value in possible}
        for index, key in enumerate(self.routes):
            if index not in reached and key is not None:
                values = ", ".join(dict.fromkeys(map(told, possible)))
                raise ConfigurationError(
                    f"Route({self.on!r}): no row is ever for the key {told(key)}; "
                    f"{self.on} is one of: {values}"
                )

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The part for this record."""
        name, module, options = self.parts()[self.place(inputs)]
        made = yield from run_part(name, module, options, inputs)
        return Prediction.of(dict(made))

    def required_names(self) -> tuple[str, ...]:
        """The field that decides, and what every part needs."""
        needed = [part.required() for part in self.parts()]
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

    def _made_values(self, known: Values) -> Values | None:
        names = self.output_names()
        if names is None:  # of the round before
            made_by(self.parts()[0], {})
            return None
        made_by(self.parts()[0], values_after(known, dict.fromkeys(names)))
        return dict.fromkeys(names)

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
        return self.parts()[0].required()

    def output_names(self) -> tuple[str, ...] | None:
        """What the part makes."""
        return self.parts()[0].outputs()

    def composition(self) -> Any:
        """The part's options, the bound and the end."""
        return [super().composition(), self.max_iterations, self.until]


def told(value: Any) -> str:
    """How the value of a route is written.

    >>> class Kind(Enum):
    ...     BILLING = "billing"
    >>> told(Kind.BILLING), told("billing"), told(1)
    ('Kind.BILLING', "'billing'", '1')
    """
    return f"{type(value).__name__}.{value.name}" if isinstance(value, Enum) else repr(value)


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
