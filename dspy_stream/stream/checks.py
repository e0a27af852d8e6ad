"""What is found out before a flow begins: whether its input has the fields, and its models can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Final

from dspy_stream.errors import ConfigurationError, InputError
from dspy_stream.interop import DSPyModule
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.scope import Scope
from dspy_stream.modules.traced import OF_CALLS
from dspy_stream.rows import Row
from dspy_stream.stream import nodes
from dspy_stream.stream.compile import Settings, step_ids
from dspy_stream.stream.flow import Spec
from dspy_stream.stream.job import Job
from dspy_stream.stream.nodes import Node
from dspy_stream.stream.terminal import Terminal

__all__ = ["check_input", "check_models"]

_PEEK: Final = 20
_SLIP: Final = 0.7  # likeness of a misspelt name: `txet` is one of `text`, and `intent` is not


def check_input(spec: Spec) -> None:
    """Find out before any call that the input is there and has the fields that are needed.

    Raises:
        InputError: it cannot be read, or no row has a field that a step needs.
    """
    source = spec.source()
    parts = source.partitions()
    if not parts:
        raise InputError(f"{source.name}: nothing to read")
    if source.bytes_total() is None and source.size() is None:
        return  # a live input: looking would take rows away
    partition = source.open(parts[0], None)
    try:
        seen = [item for item in partition.read(_PEEK) if isinstance(item, Row)]
    finally:
        partition.close()
    if not seen:
        return
    columns = list(dict.fromkeys(str(name) for row in seen for name in row.fields))
    for end, _ in spec.ends:
        _check_columns(spec, end, columns)


def _check_columns(spec: Spec, end: nodes.Node, columns: list[str]) -> None:
    ids = step_ids([end])
    known: dict[int, list[str] | None] = {}
    for node in end.chain():
        before = _known_before(node, known, columns)
        known[id(node)] = None
        if before is None:
            continue
        operation = node.operation
        if isinstance(operation, nodes.Rename):
            # A name that no row has may be one that some inputs lack; one that is nearly right is a mistake.
            slips = [name for name in operation.names if get_close_matches(name, _own(before), 1, _SLIP)]
            _require(slips, before, ids[id(node)], spec.source().name, columns)
            operation.check(before)
            before = [operation.names.get(name, name) for name in before]
        elif isinstance(operation, nodes.Through):
            _require(operation.module.required_names(), before, ids[id(node)], spec.source().name, columns)
            made = operation.made()
            before = [*before, *made] if made is not None else None
        elif isinstance(operation, nodes.Finish):
            made = operation.made()
            before = [*operation.kept(before), *made] if made is not None else None
        elif isinstance(operation, nodes.Select):
            _require(operation.names, before, ids[id(node)], spec.source().name, columns)
            before = list(operation.names)
        elif isinstance(operation, (nodes.Map, nodes.FlatMap)):
            before = None  # a user's function decides
        known[id(node)] = before


def _known_before(
    node: nodes.Node, known: Mapping[int, list[str] | None], columns: list[str]
) -> list[str] | None:
    """Fields that a row may have there; None where nobody can know."""
    if node.parent is None:
        return columns
    found: dict[str, None] = {}
    for parent in node.parents:
        names = known[id(parent)]
        if names is None:
            return None
        found.update(dict.fromkeys(names))
    return list(found)


def _require(names: Sequence[str], known: list[str], step: str, source: str, columns: list[str]) -> None:
    """Raise for a name that no row has there; ``columns`` are those of the input itself."""
    for name in names:
        if name in known:
            continue
        if name in columns:
            raise InputError(
                f"step {step} needs the column {name!r} of {source}, and a step before has left it out or "
                f"given it another name; there it has: {', '.join(_own(known))}"
            )
        near = get_close_matches(name, [*columns, *_own(known)], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        made = [other for other in _own(known) if other not in columns]
        more = f", and by the steps before {step}: {', '.join(made)}" if made else ""
        raise InputError(
            f"{source} has no column {name!r}, which step {step} needs; it has: {', '.join(columns)}{more}."
            f"{hint} Give fields other names with .rename(...)"
        )


def _own(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith(OF_CALLS)]


def check_models(ends: Sequence[tuple[Node, Terminal]], settings: Settings, job: Job) -> None:
    """Make every predictor's plan once, so that a wrong model or key is known before any row.

    Raises:
        ConfigurationError: a model cannot be used.
    """
    for end, _ in ends:
        for node in end.chain():
            operation = node.operation
            if not isinstance(operation, nodes.Through):
                continue
            clients = job.clients_for(operation.lane, settings.outage)
            scope = Scope(clients, lm=settings.lm, adapter=settings.adapter)
            modules = [part for module in operation.modules() for _, part in module.named_sub_modules()]
            for foreign in modules:
                if isinstance(foreign, DSPyModule):
                    foreign.check_under(scope)
            for predictor in (found for module in operation.modules() for found in module.predictors()):
                if not isinstance(predictor, Predict):
                    raise ConfigurationError(f"{predictor!r} is not a Predict")
                predictor._plan(scope, None)
