"""Stream: the description of rows from a source, through steps, to a sink."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast, get_args

from typing_extensions import Unpack

from dspy_stream.errors import ConfigurationError, FlowError
from dspy_stream.interop.dspy_module import DSPyModule, is_dspy_module
from dspy_stream.lm.batch.plan import BatchOptions
from dspy_stream.modules.embeddings import Embeddings
from dspy_stream.modules.hosts import Isolation
from dspy_stream.modules.module import Module
from dspy_stream.modules.part import Apply, Part, PartOptions
from dspy_stream.program.fields import nearest
from dspy_stream.rows import Row
from dspy_stream.stream import nodes
from dspy_stream.stream.expand import add_step
from dspy_stream.stream.limits import Limit
from dspy_stream.stream.nodes import Node, OnError, Order
from dspy_stream.stream.sinks import MemorySink, NullSink
from dspy_stream.stream.sinks import write as open_sink
from dspy_stream.stream.sinks.base import Sink
from dspy_stream.stream.sources import from_iterable as open_iterable
from dspy_stream.stream.sources import read as open_source
from dspy_stream.stream.sources.base import Source
from dspy_stream.stream.terminal import Measure, Terminal

if TYPE_CHECKING:
    from dspy_stream.stream.flow import Flow
    from dspy_stream.stream.report import Report

__all__ = ["StepPolicy", "Stream"]

DEFAULT_CAPACITY = 128
# Rows of a batch step: each is in every snapshot, and all of them together make the batches.
BATCH_CAPACITY = 10_000


class StepPolicy(TypedDict, total=False):
    """How the rows of a step are run.

    Attributes:
        capacity: rows in flight at most; by default 128, and 10,000 in a batch step. The input is read
            while every step holds fewer than 4 x ``capacity`` + 1,024 rows (a batch step: ``capacity``),
            up to 256 rows at a time from each of its files.
        timeout: seconds for one row in this step, retries of its calls included. Inline code that blocks
            (``time.sleep``, a client of a database) is not interrupted: that takes another ``isolation``.
        retries: further attempts at a row that failed for a reason of its own.
        on_error: what becomes of a row that failed for good: ``"dead_letter"``, ``"skip"`` (counted
            as dropped), ``"default"`` (it goes on with the module's default outputs, and is counted
            as defaulted), or ``"stop"`` (the flow ends). Where a program is taken apart, that holds for
            each part: with ``"default"`` a row goes on through the next parts with the outputs that it
            has and the defaults of the part that failed; with ``split=False`` it goes past all of them.
        defaults: those outputs by name; what is not named is the default that the signature declares,
            else None.
        fallback: a module, or a function of fields, that answers for a row that the step has failed on for
            good. With this or ``outputs`` a program of parts runs whole, since both are of all of it.
        outputs: which outputs go into the row, and under which names: a mapping, or a list of names.
        isolation: ``"inline"``, ``"thread"`` or ``"process"``: where the module's own code runs. These
            and the next two are those of :class:`~dspy_stream.modules.part.PartOptions`.
        workers: threads or processes at most.
        factory: how a worker process makes the module.
    """

    capacity: int | None
    timeout: float | None
    retries: int
    on_error: OnError
    defaults: Mapping[str, Any] | None
    fallback: Module | Callable[..., Any] | None
    outputs: Mapping[str, str] | Iterable[str] | None
    isolation: Isolation
    workers: int | None
    factory: Any


@dataclass(frozen=True)
class Stream:
    """Rows on their way. Immutable and cheap: every method returns a new stream, nothing runs.

    A row keeps its id, its origin and its named fields. A step reads the fields it needs and adds
    its outputs, so a later step sees what an earlier one produced. A row that fails leaves as a
    dead letter; the others go on.

    >>> Stream.from_iterable([{"n": 1}, {"n": 2}]).map(lambda row: {"n": row.n * 10}).to_list()
    [{'n': 10}, {'n': 20}]
    """

    node: Node
    name: str = "flow"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Measure] = field(default_factory=dict)
    limit: Limit = field(default_factory=Limit)

    # ------------------------------------------------------------------------------------- sources

    @staticmethod
    def read(
        source: str | Path | Source | Any, *, name: str | None = None, id: str | None = None, **options: Any
    ) -> Stream:
        """Rows of a file, a folder, a glob, standard input (``-``), a data frame or a data set.

        Args:
            source: a path (``.jsonl``, ``.csv``, ``.parquet``, ``.gz`` of the text ones), or an
                object: pandas, polars, Arrow, Hugging Face ``datasets``, or a Source.
            name: the flow's name; the folder of its state is named after it.
            id: the field that names a row; by default a digest of where the row stands.
            **options: of the format; see :func:`dspy_stream.stream.sources.read`.

        Raises:
            InputError: when the flow starts: the file is missing or cannot be read.
        """
        opened: Source = (
            open_source(source, id=id, **options) if not _is_source(source) else cast(Source, source)
        )
        return Stream(Node(nodes.Read(opened)), name or "flow")

    @staticmethod
    def from_iterable(rows: Iterable[Any], *, name: str | None = None, id: str | None = None) -> Stream:
        """Rows from mappings, Examples, dataclasses or pydantic models in memory.

        A list can be resumed after a crash, a generator cannot.
        """
        return Stream(Node(nodes.Read(open_iterable(rows, id=id))), name or "flow")

    # --------------------------------------------------------------------------------------- steps

    def through(
        self,
        module: Module | Part | Any,
        *,
        name: str | None = None,
        order: Order = "unordered",
        lane: str | BatchOptions | None = None,
        split: bool | None = None,
        **policy: Unpack[StepPolicy],
    ) -> Stream:
        """Run a module over every row, many rows at once, and add its outputs to the row.

        A program of parts (``a | b``, ``Program``, ``Fork``, ``Route``) is taken apart: every part
        is a step of its own, with its own capacity, time limit, retries and dead letters, which
        hold the row as far as it had come. What is given here holds for each part that has no
        options of its own (``part.using(...)``). ``order="ordered"`` also holds where parts meet.

        Args:
            module: reads its inputs from the row by name; extra fields are left alone. A search, as
                ``Embeddings``, is one too. A program of DSPy's own is run as it is; see
                :class:`~dspy_stream.interop.DSPyModule`.
            name: the step's name; by default the module's class.
            order: ``"unordered"`` emits as answers come; ``"ordered"`` keeps the order of each
                source partition.
            lane: ``"batch"``, or BatchOptions: the calls go through the provider's batch API, at
                half the price and within a day. What is at the provider is kept in the state
                folder; a flow that was stopped or has crashed takes it up again. Other models
                that are to be asked when this one fails, and ``timeout`` of the model, do not apply.
                With ``max_cost`` or ``max_tokens`` of the run, give the model ``max_tokens``: what an
                answer may take is not known otherwise, and the first batch has one request.
            split: False runs a program of parts as one step, as a call runs it, and makes the calls of
                a ``forward`` one after the other. True also takes a module's plain ``forward`` apart,
                where it can be traced; where not, ``explain()`` says which line stopped it.
            **policy: ``capacity``, ``timeout``, ``retries``, ``on_error`` and more; see
                :class:`dspy_stream.stream.StepPolicy`.

        Raises:
            FlowError: the module is none, a number is out of range, or there is no such lane. When
                the flow starts: the model has no batch API.
        """
        options = PartOptions()
        if isinstance(module, Part):
            options, module = module.options, module.module
        if is_dspy_module(module):
            module = _their_program(module, policy)
            name = name or module.label
        if isinstance(module, Embeddings):
            module, name = Apply(module), name or type(module).__name__
        if not isinstance(module, Module):
            raise FlowError(
                f"through() takes a module, such as Predict(...), not {type(module).__name__}; "
                "use map() for a function of a row"
            )
        if not module.has_program():
            raise FlowError(f"{type(module).__name__} is no step: it defines neither forward nor aforward")
        step = _step(module, name, order, _batches(lane), policy)
        options = _whole(options, policy)
        return replace(self, node=add_step(self.node, step, options, split))

    def map(self, fn: Callable[[Row], Any]) -> Stream:
        """Replace each row by what ``fn(row)`` returns: a row, or a mapping of fields."""
        return self._then(nodes.Map(_function(fn)))

    def filter(self, fn: Callable[[Row], Any]) -> Stream:
        """Keep the rows for which ``fn(row)`` is true; the others are counted as dropped."""
        return self._then(nodes.Filter(_function(fn)))

    def flat_map(self, fn: Callable[[Row], Iterable[Any]]) -> Stream:
        """Replace each row by the rows or mappings in ``fn(row)``; their ids are ``id/0``, ``id/1``."""
        return self._then(nodes.FlatMap(_function(fn)))

    def batch(self, size: int) -> Stream:
        """Gather ``size`` rows of a partition into one row whose fields are lists.

        A short rest comes out at the end, or after a second without new rows.
        """
        if size < 1:
            raise FlowError(f"batch({size}): a batch holds at least one row")
        return self._then(nodes.Batch(size))

    def rename(self, **names: str) -> Stream:
        """Give fields other names: ``rename(text="question")`` makes ``text`` a ``question``.

        A row that lacks the field goes on. Two fields with one name, and a name that is nearly that of a
        field, are refused when the run begins; a later row with two such fields becomes a dead letter.
        """
        return self._then(nodes.Rename(names))

    def select(self, *names: str) -> Stream:
        """Keep these fields only; a row without one of them becomes a dead letter."""
        return self._then(nodes.Select(names))

    def branch(self, fn: Callable[[Row], Any]) -> tuple[Stream, Stream]:
        """Split in two: rows for which ``fn(row)`` is true, and the others; each goes to one side.

        The sides end in outputs of their own, which :meth:`Flow.also` makes one flow:

        >>> from dspy_stream.stream.sinks import MemorySink
        >>> big, small = MemorySink(), MemorySink()
        >>> up, down = Stream.from_iterable([{"n": 1}, {"n": 5}]).branch(lambda row: row.n > 2)
        >>> report = up.write(big).also(down.map(lambda row: {"n": -row.n}).write(small)).run(
        ...     state=None, quiet=True
        ... )
        >>> [row.n for row in big.rows], [row.n for row in small.rows]
        ([5], [-1])
        """
        split = object()
        yes, no = (self._then(nodes.Branch(_function(fn), side, split)) for side in (True, False))
        return yes, no

    def _then(self, operation: nodes.Operation) -> Stream:
        return replace(self, node=Node(operation, self.node))

    # ------------------------------------------------------------------------------------- policy

    def using(self, *, lm: Any = None, adapter: Any = None) -> Stream:
        """The model and adapter of a run that names no other."""
        given = {key: value for key, value in {"lm": lm, "adapter": adapter}.items() if value is not None}
        return replace(self, defaults={**self.defaults, **given})

    def measure(self, **measures: Measure) -> Stream:
        """Report means over the written rows: ``measure(accuracy=lambda row: row.intent == row.label)``.

        A measure returns a number, a bool, or None for a row that does not count.
        """
        return replace(self, measures={**self.measures, **measures})

    def limit_failures(
        self, *, consecutive: int | None = 100, ratio: float | None = 0.25, warm_up: int = 200
    ) -> Stream:
        """When too many dead letters stop the flow; see :class:`~dspy_stream.stream.limits.Limit`."""
        return replace(self, limit=Limit(consecutive, ratio, warm_up))

    # ---------------------------------------------------------------------------------------- ends

    def write(self, sink: str | Path | list[Any] | Sink, *, dead_letters: Any = None, **options: Any) -> Flow:
        """Write the rows to a file (by its suffix, as in ``read``), ``-``, a list, or a Sink.

        Every row carries its id in the column ``row_id``. Files hold each row exactly once after
        any number of crashes; see the README for what each sink guarantees. A list gets a dict for each
        row, with its id under ``row_id``.

        Args:
            sink: where the rows go.
            dead_letters: where the envelopes of failed rows go besides the state folder, likewise.
            **options: of the format; see :func:`dspy_stream.stream.sinks.write`.

        Raises:
            FlowError: nothing can be written to what was given, or both go to one list.
        """
        if isinstance(sink, list) and dead_letters is sink:
            raise FlowError("write(): the rows and the dead letters are to go to one list; give each its own")
        out = _sink(sink, "write()", **options)
        letters = None if dead_letters is None else _sink(dead_letters, "dead_letters", row_id=None)
        return self._end(out, letters)

    def _end(self, sink: Any, letters: Any = None) -> Flow:
        from dspy_stream.stream.flow import Flow

        terminal = Terminal("write", sink, letters, self.measures, self.limit)
        return Flow.of(self.name, ((self.node, terminal),), self.defaults)

    def to_list(self, **options: Any) -> list[dict[str, Any]]:
        """Run, and return the fields of every row, in input order. Blocks; keeps no state.

        Raises:
            DSPyStreamError: a row failed, or the flow did. ``run`` with a sink keeps going instead.
            KeyboardInterrupt: it was stopped by SIGINT or SIGTERM, and the rows are not all there.
        """
        sink = MemorySink()
        report = self._end(sink).run(quiet=True, state=None, strict=True, **options)
        if report.status != "finished":
            raise KeyboardInterrupt(f"the flow was stopped after {report.rows_out} of its rows")
        rows = sorted(sink.rows, key=lambda row: (row.origin.partition, row.origin.offset))
        return [dict(row.fields) for row in rows]

    def run(self, **options: Any) -> Report:
        """Run without writing the rows anywhere; see :meth:`Flow.run`."""
        return self._end(NullSink()).run(**options)

    def compile(self) -> Flow:
        """The stream as a bytewax ``Dataflow`` that writes its rows nowhere."""
        return self._end(NullSink())


def _sink(given: Any, where: str, **options: Any) -> Sink:
    if isinstance(given, (str, os.PathLike, list)):
        return open_sink(given, **options)
    if isinstance(given, type) or not callable(getattr(given, "describe", None)):
        raise FlowError(f"{where} takes a file, '-', a list or a Sink, not {type(given).__name__}")
    made: Sink = given
    return made


def _their_program(program: Any, policy: StepPolicy) -> DSPyModule:
    if policy.get("isolation") != "thread":
        return DSPyModule(program)
    return DSPyModule(program, isolation="thread", threads=policy.get("workers") or 64)


def _step(
    module: Module, name: str | None, order: Order, batches: BatchOptions | None, policy: StepPolicy
) -> nodes.Through:
    if unknown := sorted(set(policy) - set(StepPolicy.__annotations__)):
        hint = nearest(unknown[0], StepPolicy.__annotations__)
        raise FlowError(f"through() has no option {unknown[0]!r}{hint}")
    capacity, timeout = policy.get("capacity"), policy.get("timeout")
    retries, on_error = policy.get("retries", 0), policy.get("on_error", "dead_letter")
    if capacity is None:
        capacity = DEFAULT_CAPACITY if batches is None else BATCH_CAPACITY
    if retries is None:
        retries = 0
    try:
        PartOptions(capacity=capacity, retries=retries, timeout=timeout)
    except ConfigurationError as error:
        raise FlowError(str(error)) from error
    for option, given, known in (("order", order, Order), ("on_error", on_error, OnError)):
        if given not in get_args(known):
            raise FlowError(f"{option}={given!r}: no such choice; there are {', '.join(get_args(known))}")
    where = PartOptions(
        isolation=policy.get("isolation"), workers=policy.get("workers"), factory=policy.get("factory")
    )
    return nodes.Through(
        *(module, name, capacity, order, timeout, retries, on_error, batches),
        defaults=policy.get("defaults"),
        place=where.place(name or type(module).__name__),
    )


def _whole(options: PartOptions, policy: StepPolicy) -> PartOptions:
    """The part's own options, and those of the step that are of the program as a whole."""
    try:
        given = PartOptions.of({name: policy.get(name) for name in ("fallback", "outputs")})
    except ConfigurationError as error:
        raise FlowError(f"through(): {error}") from error
    return replace(
        options,
        fallback=options.fallback if options.fallback is not None else given.fallback,
        outputs=options.outputs if options.outputs is not None else given.outputs,
    )


def _batches(lane: str | BatchOptions | None) -> BatchOptions | None:
    if lane is None or isinstance(lane, BatchOptions):
        return lane
    if lane != "batch":
        raise FlowError(f"lane={lane!r}: there is no such lane; 'batch' is one, and BatchOptions(...) too")
    return BatchOptions()


def _function(fn: Any) -> Any:
    import inspect

    if isinstance(fn, Module):
        raise FlowError(f"{type(fn).__name__} is a module; run it with through()")
    if not callable(fn):
        raise FlowError(f"{fn!r} is not a function of a row")
    if inspect.iscoroutinefunction(fn):
        raise FlowError(f"{fn.__qualname__} is a coroutine function; put it into a module's aforward")
    return fn


def _is_source(value: Any) -> bool:
    return hasattr(value, "partitions") and hasattr(value, "open") and hasattr(value, "describe")
