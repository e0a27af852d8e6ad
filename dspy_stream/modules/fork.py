"""Fork: parts that work on one record at the same time, and the join of what they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import copy_context
from itertools import combinations
from typing import Any, Final

from dspy_stream.errors import ConfigurationError, RowError
from dspy_stream.modules.compose import Composite, Named, keep_named
from dspy_stream.modules.noted import noted
from dspy_stream.modules.part import as_part
from dspy_stream.modules.possible import Values, made_by
from dspy_stream.modules.running import run_part
from dspy_stream.modules.scope import TICKET
from dspy_stream.modules.together import Branch, ended
from dspy_stream.program import Prediction
from dspy_stream.runtime import Steps

__all__ = ["Fork", "joined"]


class Fork(Composite):
    """Parts that all read the same record and run at the same time: ``Fork(x=..., y=...)``.

    The outputs of all parts are joined. A row takes as long as its slowest part. When one part
    fails the others are not interrupted, and then the row fails with the first part's error.

    Args:
        **parts: modules, modules with options, or functions of fields by name.

    Raises:
        ConfigurationError: two parts have an output of the same name. Give one another name:
            ``ChainOfThought(...).using(outputs={"answer": "answer", "reasoning": "why"})``.
        RowError (when called): they turn out to have one.

    >>> fork = Fork(upper=lambda text: {"up": text.upper()}, size=lambda text: {"n": len(text)})
    >>> fork(text="abc").up, fork(text="abc").n
    ('ABC', 3)
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        if len(parts) < 2:
            raise ConfigurationError("a fork has at least two parts: Fork(x=Predict(...), y=Predict(...))")
        self._names = tuple(parts)
        keep_named(self, {name: as_part(value) for name, value in parts.items()})
        _refuse_clashes(self.parts())

    def _made_values(self, known: Values) -> Values | None:
        all_made: Values | None = {}
        for part in self.parts():
            made = made_by(part, known)
            all_made = None if all_made is None or made is None else {**all_made, **made}
        return all_made

    def parts(self) -> list[Named]:
        """The parts by their names."""
        return [self._named(name, getattr(self, name)) for name in self._names]

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """All parts at the same time."""
        parts, outer = self.parts(), TICKET.get()
        branches, tickets = [], []
        for name, module, options in parts:
            context = copy_context()
            if outer is not None:  # calls are numbered by branch, in whatever order they are made
                ticket = outer.beside(f"/{name}")
                tickets.append(ticket)
                context.run(TICKET.set, ticket)
            branches.append(Branch(context, run_part(name, module, options, inputs)))
        try:
            yield from ended(branches)
        finally:
            for ticket in tickets:
                assert outer is not None
                outer.add(ticket)
        if failed := [branch.error for branch in branches if branch.error is not None]:
            raise min(failed, key=lambda error: _LENIENT.index(noted(outer, error, "on_error")))
        made = [branch.value for branch in branches]
        return Prediction.of(joined([part.name for part in parts], made))

    def required_names(self) -> tuple[str, ...]:
        """What any of the parts needs."""
        return tuple(dict.fromkeys(n for part in self.parts() for n in part.required()))

    def output_names(self) -> tuple[str, ...] | None:
        """What all parts make."""
        names: list[str] = []
        for part in self.parts():
            outputs = part.outputs()
            if outputs is None:
                return None
            names += outputs
        return tuple(names)


# What a part chose for its failure, the one that counts first; None is left to the step.
_LENIENT: Final = ("stop", "dead_letter", None, "skip")


def _refuse_clashes(parts: Sequence[Named]) -> None:
    for first, second in combinations(parts, 2):
        clash = [name for name in first.outputs() or () if name in (second.outputs() or ())]
        if clash:
            raise ConfigurationError(_clash(clash[0], first.name, second.name))


def _clash(name: str, first: str, second: str) -> str:
    return (
        f"{first} and {second} both have the output {name!r}; give one of them another name: "
        f"{second}=module.using(outputs={{{name!r}: '{second}_{name}'}})"
    )


def joined(names: Sequence[str], made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The outputs of all parts in one.

    Raises:
        RowError: two parts made an output of the same name.
    """
    fields: dict[str, Any] = {}
    for number, outputs in enumerate(made):
        if fields.keys() & outputs.keys():
            name = next(name for name in outputs if name in fields)
            first = next(names[index] for index in range(number) if name in made[index])
            raise RowError(_clash(str(name), first, names[number]))
        fields.update(outputs)
    return fields
