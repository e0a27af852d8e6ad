"""The types of fields that modules have put into a row, for the way back from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspy_stream.modules.compose import Named
from dspy_stream.modules.part import PartOptions
from dspy_stream.modules.possible import Values, made_by, values_after
from dspy_stream.modules.proxy import Output, Whole
from dspy_stream.modules.typed import learn_kinds, under, validators_of
from dspy_stream.program.kinds import learn_code
from dspy_stream.stream import nodes
from dspy_stream.stream.nodes import Node

__all__ = ["types_before", "values_known"]


def types_before(node: Node) -> dict[str, Any]:
    """Validators of the typed fields that the modules before a node have put into the row.

    The classes that these modules and functions name are noted on the way.
    """
    types: dict[str, Any] = {}
    before = {id(earlier): earlier for parent in node.parents for earlier in parent.chain()}
    for earlier in before.values():
        operation = earlier.operation
        if isinstance(operation, nodes.Through):
            for module in operation.modules():
                learn_kinds(module)
                types.update(under(validators_of(module), operation.outputs))
        elif isinstance(operation, nodes.Finish):
            types.update(_returned(operation, types))
        elif isinstance(operation, (nodes.Map, nodes.FlatMap, nodes.Batch, nodes.Rename)):
            if isinstance(operation, (nodes.Map, nodes.FlatMap)):
                learn_code(operation.fn)
            types = {}  # a user's function may have put anything under any name
    return types


def values_known(node: Node) -> Values:
    """The possible values of fields after a node, as far as the modules up to it say.

    Raises:
        ConfigurationError: a route on the way has a key that its field cannot have.
    """
    known: Values = {}
    chain = node.chain()
    parts = any(isinstance(earlier.operation, nodes.Case) for earlier in chain)
    for earlier in chain:
        operation = earlier.operation
        if isinstance(operation, nodes.Through):
            options = PartOptions(fallback=operation.fallback, outputs=operation.outputs)
            known = values_after(known, made_by(Named(operation.label, operation.module, options), known))
        elif isinstance(operation, nodes.Finish):
            made = operation.made()
            known = values_after(known, None if made is None else dict.fromkeys(made))
        elif not isinstance(operation, (nodes.Filter, nodes.Join, nodes.Select)) or parts:
            # A function may put anything under any name, and where rows part each has a past of its own.
            known = {}
    return known


def _returned(finish: nodes.Finish, types: Mapping[str, Any]) -> dict[str, Any]:
    """Validators of what a traced program returns: those of the fields it is made of."""
    calls, result = finish.traced.calls, finish.traced.result
    if isinstance(result, Whole):
        prefix = calls[result.call].prefix
        return {name[len(prefix) :]: found for name, found in types.items() if name.startswith(prefix)}
    made = {
        name: calls[ref.call].prefix + ref.field for name, ref in result.items() if isinstance(ref, Output)
    }
    return {name: types[field] for name, field in made.items() if field in types}
