"""The description of a stream, as data: a chain of nodes from a source to its sinks.

A node knows its operation and the node before it. Nothing here runs anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union

from dspy_stream.errors import FlowError
from dspy_stream.lm.batch.plan import BatchOptions
from dspy_stream.modules.hosts import INLINE, Place
from dspy_stream.modules.module import Module
from dspy_stream.rows import Row
from dspy_stream.stream.digests import code_digest, composed, module_digest
from dspy_stream.stream.sources.base import Source

if TYPE_CHECKING:
    from dspy_stream.modules.route import Route
    from dspy_stream.modules.traced import Traced

__all__ = [
    "Batch",
    "Branch",
    "Case",
    "Filter",
    "Finish",
    "FlatMap",
    "Join",
    "Map",
    "Merge",
    "Node",
    "OnError",
    "Operation",
    "Order",
    "Read",
    "Rename",
    "Select",
    "Through",
    "legible",
]

Order = Literal["unordered", "ordered"]
OnError = Literal["default", "dead_letter", "skip", "stop"]


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
    lane: BatchOptions | None = None  # None: a call for each request
    fallback: Module | None = None  # answers for a row that the module has failed on for good
    outputs: Mapping[str, str] | None = None  # which outputs go into the row, under which names
    part: str | None = None  # its place in the program that was taken apart
    note: str = ""  # why a program runs whole here
    defaults: Mapping[str, Any] | None = None  # outputs of a row that failed, with on_error="default"
    place: Place = INLINE  # where its code runs, and how it is supervised
    ahead: bool = True  # calls that do not need each other are made at the same time
    covered: bool = False  # its default outputs are those of a part, which stand for all that fails in it
    joined: bool = False  # its outputs meet those that other steps have made of the same row

    @property
    def label(self) -> str:
        """The module's own name, for a readable step id."""
        return self.name or type(self.module).__name__

    def modules(self) -> list[Module]:
        """The module, and the one that stands in for it."""
        return [self.module] if self.fallback is None else [self.module, self.fallback]

    def made(self) -> list[str] | None:
        """Names of the fields that the step adds; None where only a call would tell."""
        names = [module.output_names() for module in self.modules()]
        if self.outputs is not None:
            return list(self.outputs.values())
        if any(made is None for made in names):
            return None
        return list(dict.fromkeys(name for made in names for name in made or ()))

    def identity(self) -> Any:
        """What decides the step's answers; capacity, time limits and the lane do not."""
        found: list[Any] = [module_digest(self.module), self.order, self.on_error]
        if self.fallback is not None or self.outputs is not None:
            fallback = module_digest(self.fallback) if self.fallback is not None else None
            found += [fallback, dict(self.outputs or {})]
        if self.defaults is not None:
            found.append(repr(sorted(self.defaults.items())))
        return found


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

    def check(self, fields: Iterable[str]) -> None:
        """Say whether rows with these fields can have the new names.

        Raises:
            FlowError: two fields would have one name.
        """
        fields = list(fields)
        new = [self.names.get(name, name) for name in fields]
        for name in new:
            if new.count(name) > 1:
                raise FlowError(
                    f"rename: two fields would be called {name!r}; the rows have: {', '.join(fields)}"
                )

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


@dataclass(frozen=True)
class Case:
    """The rows for one part of a route; all cases of one route share ``split``.

    ``index`` is the part's number; -1 stands for what goes past all parts, None for everything. In an
    ``ordered`` route each case also gets a mark for every row that is not for it. ``on_error`` and
    ``defaults`` are for rows that no part is for.
    """

    route: Route
    index: int | None
    name: str
    ordered: bool
    split: object
    on_error: OnError = "dead_letter"
    defaults: Mapping[str, Any] | None = None
    label = "route"

    def identity(self) -> Any:
        """What decides, and which part."""
        decided = [composed(self.route.composition()), self.name, self.ordered]
        return [*decided, *_failing(self.on_error, self.defaults)]


@dataclass(frozen=True)
class Merge:
    """The rows of several nodes in one stream, in no order."""

    label = "merge"

    def identity(self) -> Any:
        """Nothing."""
        return None


@dataclass(frozen=True)
class Join:
    """The outputs of parts that worked on one row, in one row. The last parent is the row before them.

    ``on_error`` and ``defaults`` are for rows whose parts made the same output.
    """

    names: tuple[str, ...]
    ordered: bool
    on_error: OnError = "dead_letter"
    defaults: Mapping[str, Any] | None = None
    label = "join"

    def identity(self) -> Any:
        """The parts."""
        return [list(self.names), self.ordered, *_failing(self.on_error, self.defaults)]


def _failing(on_error: OnError, defaults: Mapping[str, Any] | None) -> list[Any]:
    if on_error == "dead_letter":
        return []
    return [on_error, repr(sorted((defaults or {}).items()))]


@dataclass(frozen=True)
class Finish:
    """What a traced program returns, out of the record that its calls have shared.

    ``on_error`` is for rows whose calls did not make what is returned.
    """

    traced: Traced
    on_error: OnError = "dead_letter"
    label = "finish"

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record with the program's outputs, and without those of its calls."""
        kept = {name: record[name] for name in self.kept(record)}
        return {**kept, **self.traced.returned(record)}

    def kept(self, names: Iterable[Any]) -> list[Any]:
        """The names of a record that are none of its calls' outputs."""
        prefixes = tuple(call.prefix for call in self.traced.calls)
        return [name for name in names if not str(name).startswith(prefixes)]

    def made(self) -> list[str] | None:
        """Names of the program's outputs; None where only a call would tell."""
        names = self.traced.output_names()
        return None if names is None else list(names)

    def identity(self) -> Any:
        """The graph."""
        made = composed(self.traced.composition())
        return made if self.on_error == "dead_letter" else [made, self.on_error]


def legible(key: str) -> str:
    """The words of a route's key, as a part of a step's name.

    >>> legible("Kind.BILLING"), legible("('a', 'b')"), legible("?")
    ('Kind.BILLING', 'a_b', '?')
    """
    return "_".join(re.findall(r"[\w.-]+", key)) or key


Operation = Union[  # noqa: UP007
    Read, Through, Map, FlatMap, Filter, Batch, Rename, Select, Branch, Case, Merge, Join, Finish
]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation and what comes before it. Nodes are compared by identity."""

    operation: Operation
    parent: Node | None = None
    others: tuple[Node, ...] = ()  # further nodes that come right before this one

    @property
    def parents(self) -> tuple[Node, ...]:
        """The nodes right before this one."""
        return () if self.parent is None else (self.parent, *self.others)

    def chain(self) -> list[Node]:
        """This node and all before it, each once, the source first and every node after its parents."""
        found: list[Node] = []
        seen: set[int] = set()
        stack = [self]
        while stack:
            node = stack[-1]
            missing = next((parent for parent in node.parents if id(parent) not in seen), None)
            if missing is not None:
                stack.append(missing)
                continue
            stack.pop()
            seen.add(id(node))
            found.append(node)
        return found
