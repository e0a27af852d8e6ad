"""The description of a stream, as data: a chain of nodes from a source to its sinks.

A node knows its operation and the node before it. Nothing here runs anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal, Union

import orjson

from dspy_stream.modules.module import Module
from dspy_stream.rows import Row
from dspy_stream.stream.sources.base import Source

__all__ = [
    "Batch",
    "Branch",
    "Filter",
    "FlatMap",
    "Map",
    "Node",
    "OnError",
    "Operation",
    "Order",
    "Read",
    "Rename",
    "Select",
    "Through",
    "code_digest",
    "module_digest",
]

Order = Literal["unordered", "ordered"]
OnError = Literal["dead_letter", "skip", "stop"]


@dataclass(frozen=True)
class Read:
    """Rows of a source."""

    source: Source
    label = "read"

    def identity(self) -> Any:
        """What the source is."""
        return self.source.describe()


@dataclass(frozen=True)
class Through:
    """A module over every row; see :meth:`dspy_stream.stream.stream.Stream.through`."""

    module: Module
    name: str | None
    capacity: int
    order: Order
    timeout: float | None
    retries: int
    on_error: OnError

    @property
    def label(self) -> str:
        """The module's own name, for a readable step id."""
        return self.name or type(self.module).__name__

    def identity(self) -> Any:
        """What decides the step's answers; capacity and time limits do not."""
        return [module_digest(self.module), self.order, self.on_error]


@dataclass(frozen=True)
class Map:
    """A function of a row that returns a row, or the fields of one."""

    fn: Callable[[Row], Any]
    label = "map"

    def identity(self) -> Any:
        """The function's code."""
        return code_digest(self.fn)


@dataclass(frozen=True)
class FlatMap:
    """A function of a row that returns any number of rows."""

    fn: Callable[[Row], Any]
    label = "flat_map"

    def identity(self) -> Any:
        """The function's code."""
        return code_digest(self.fn)


@dataclass(frozen=True)
class Filter:
    """Keep the rows for which the function is true."""

    fn: Callable[[Row], Any]
    label = "filter"

    def identity(self) -> Any:
        """The function's code."""
        return code_digest(self.fn)


@dataclass(frozen=True)
class Batch:
    """Gather rows into rows of lists."""

    size: int
    label = "batch"

    def identity(self) -> Any:
        """The size."""
        return self.size


@dataclass(frozen=True)
class Rename:
    """Give fields other names."""

    names: Mapping[str, str]
    label = "rename"

    def identity(self) -> Any:
        """The names."""
        return dict(self.names)


@dataclass(frozen=True)
class Select:
    """Keep these fields only."""

    names: tuple[str, ...]
    label = "select"

    def identity(self) -> Any:
        """The names."""
        return list(self.names)


@dataclass(frozen=True)
class Branch:
    """One side of a split; both sides share ``split``."""

    fn: Callable[[Row], Any]
    side: bool
    split: object
    label = "branch"

    def identity(self) -> Any:
        """The function's code and the side."""
        return [code_digest(self.fn), self.side]


Operation = Union[Read, Through, Map, FlatMap, Filter, Batch, Rename, Select, Branch]  # noqa: UP007


@dataclass(frozen=True, eq=False)
class Node:
    """One operation and what comes before it. Nodes are compared by identity."""

    operation: Operation
    parent: Node | None = None

    def chain(self) -> list[Node]:
        """This node and all before it, the source first."""
        found: list[Node] = []
        node: Node | None = self
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


def code_digest(fn: Any) -> str:
    """A digest of what a function does: the same in every process, other after an edit.

    Positions and file names do not count. A callable without code of its own counts as its type's
    name and its public state.
    """
    code = getattr(fn, "__code__", None)
    if code is None:
        inner = getattr(fn, "__func__", None) or getattr(type(fn), "__call__", None)  # noqa: B004
        code = getattr(inner, "__code__", None)
    state = hashlib.sha256(f"{getattr(fn, '__qualname__', type(fn).__qualname__)}\0".encode())
    if code is not None:
        _mix(state, code)
    captured = [cell.cell_contents for cell in (getattr(fn, "__closure__", None) or ())]
    for value in [*(getattr(fn, "__defaults__", None) or ()), *captured]:
        state.update(repr(value).encode() if isinstance(value, (str, int, float, bool, tuple)) else b"?")
    return state.hexdigest()


def _mix(state: Any, code: CodeType) -> None:
    state.update(code.co_code)
    state.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _mix(state, constant)
        elif isinstance(constant, frozenset):
            state.update(repr(sorted(map(repr, constant))).encode())
        else:
            state.update(repr(constant).encode())


def module_digest(module: Module) -> str:
    """A digest of a program: its predictors, their parameters, and the code that joins them."""
    parts: list[Any] = [type(module).__qualname__]
    for name, predictor in module.named_predictors():
        parameters = predictor.current_parameters()
        lm = predictor.lm.identity() if predictor.lm is not None else None
        parts.append([name, predictor.signature.digest(), parameters.digest(), lm])
    for _, part in module.named_sub_modules():
        parts.extend(code_digest(getattr(type(part), method)) for method in ("forward", "aforward"))
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()
