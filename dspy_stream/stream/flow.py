"""Flow: a compiled stream. A bytewax ``Dataflow``, and the policy to run it under."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from bytewax.dataflow import Dataflow

from dspy_stream.errors import FlowError
from dspy_stream.lm.base import resolve
from dspy_stream.modules.scope import default_adapter
from dspy_stream.stream import nodes
from dspy_stream.stream.compile import Settings, build, step_ids
from dspy_stream.stream.identity import adapter_identity
from dspy_stream.stream.nodes import Node
from dspy_stream.stream.sinks import write as open_sink
from dspy_stream.stream.sources import read as open_source
from dspy_stream.stream.terminal import Terminal

if TYPE_CHECKING:
    from dspy_stream.adapters import Adapter
    from dspy_stream.stream.estimate import Estimate
    from dspy_stream.stream.report import Report
    from dspy_stream.stream.sources.base import Source

__all__ = ["Flow", "Spec"]

Ends = tuple[tuple[Node, Terminal], ...]


@dataclass(frozen=True)
class Spec:
    """What a flow is, apart from any run of it."""

    name: str
    ends: Ends
    defaults: Mapping[str, Any]
    retries: bool = False  # dead letters are fed in again
    anew: frozenset[str] = frozenset()  # rows that need other answers than those in the journal

    def source_node(self) -> Node:
        """The node that reads; there is one in a flow."""
        sources = {id(end.chain()[0]): end.chain()[0] for end, _ in self.ends}
        if len(sources) != 1:
            raise FlowError(f"flow {self.name!r} has {len(sources)} sources; a flow has one")
        return next(iter(sources.values()))

    def source(self) -> Source:
        """Where the flow reads from."""
        operation = self.source_node().operation
        assert isinstance(operation, nodes.Read)
        return operation.source

    def names_rows(self) -> bool:
        """True where the user's own column names the rows, so that two may claim one name."""
        return self.source().describe().get("id") is not None

    def identity(self, lm: Mapping[str, Any] | None, adapter: Adapter | None = None) -> dict[str, Any]:
        """What decides the flow's answers, step by step; the basis of its digest.

        ``lm`` and ``adapter`` are those of predictors that name none; without an adapter it is the
        flow's, else that of the settings.
        """
        ids = step_ids([end for end, _ in self.ends])
        steps: dict[str, Any] = {}
        for end, terminal in self.ends:
            for node in end.chain():
                if not isinstance(node.operation, nodes.Read):
                    steps[ids[id(node)]] = node.operation.identity()
            steps[terminal.step] = "write"
        chosen = adapter or self.defaults.get("adapter") or default_adapter(None)
        return {"steps": steps, "lm": lm, "adapter": adapter_identity(chosen)}

    def digest(self, lm: Mapping[str, Any] | None, adapter: Adapter | None = None) -> str:
        """A digest of the program: the same in every process, other after a change."""
        data = orjson.dumps(
            self.identity(lm, adapter), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str
        )
        return hashlib.sha256(data).hexdigest()

    def with_source(self, source: Any) -> Spec:
        """The same steps over another source."""
        old = self.source_node()
        made: dict[int, Node] = {id(old): Node(nodes.Read(source))}
        for end, _ in self.ends:
            for node in end.chain():
                if id(node) not in made:
                    assert node.parent is not None
                    others = tuple(made[id(other)] for other in node.others)
                    made[id(node)] = Node(node.operation, made[id(node.parent)], others)
        return replace(self, ends=tuple((made[id(end)], terminal) for end, terminal in self.ends))

    def with_sink(self, sink: Any) -> Spec:
        """The same steps into another sink.

        Raises:
            FlowError: the flow writes to several.
        """
        if len(self.ends) != 1:
            raise FlowError(
                f"flow {self.name!r} writes to {len(self.ends)} places; --output can replace only one"
            )
        ((end, terminal),) = self.ends
        return replace(self, ends=((end, replace(terminal, sink=sink)),))


@dataclass(frozen=True)
class Flow(Dataflow):
    """A stream with its sinks, ready to run: with :meth:`run`, ``dspy-stream run``, or
    ``python -m bytewax.run``.

    Under bytewax's own runner the journal and the state folder work as ever; resuming, graceful
    stop and the summary belong to our runner.
    """

    spec: Spec | None = field(default=None, compare=False)

    @staticmethod
    def of(name: str, ends: Ends, defaults: Mapping[str, Any]) -> Flow:
        """Compile; no file is opened and no model is called."""
        return _compiled(Spec(name, ends, defaults))

    def also(self, other: Flow) -> Flow:
        """One flow that writes to the places of both; they must share their source.

        ``dlq retry`` works where no row can go to two of them: where they are on the two sides of a
        :meth:`Stream.branch`.

        Raises:
            FlowError: they read from different sources.
        """
        mine, theirs = _spec(self), _spec(other)
        ends = list(mine.ends)
        for end, terminal in theirs.ends:
            ends.append((end, replace(terminal, step=f"write_{len(ends) + 1}")))
        made = Spec(mine.name, tuple(ends), {**theirs.defaults, **mine.defaults})
        made.source_node()
        return _compiled(made)

    def reading(self, source: Any, **options: Any) -> Flow:
        """The same flow over another input; see :meth:`Stream.read`.

        The names of columns (``id``, ``columns``) are those of the flow's own input unless given.
        """
        if hasattr(source, "partitions"):
            return _compiled(_spec(self).with_source(source))
        own = self.source().describe()
        kept = {name: own[name] for name in ("id", "columns") if own.get(name) is not None}
        return _compiled(_spec(self).with_source(open_source(source, **{**kept, **options})))

    def writing(self, sink: Any, **options: Any) -> Flow:
        """The same flow into another output; see :meth:`Stream.write`.

        ``columns`` and ``row_id`` are those of the flow's own output unless given.
        """
        if hasattr(sink, "finish"):
            return _compiled(_spec(self).with_sink(sink))
        own = _spec(self).ends[0][1].sink.describe()
        kept: dict[str, Any] = {name: own[name] for name in ("columns", "row_id") if name in own}
        return _compiled(_spec(self).with_sink(open_sink(sink, **{**kept, **options})))

    def limiting(self, *, consecutive: int | None = None, ratio: float | None = None) -> Flow:
        """The same flow with other failure limits; None keeps the flow's own."""
        spec = _spec(self)
        ends = []
        for end, terminal in spec.ends:
            limit = terminal.limit
            if consecutive is not None:
                limit = replace(limit, consecutive=consecutive)
            if ratio is not None:
                limit = replace(limit, ratio=ratio)
            ends.append((end, replace(terminal, limit=limit)))
        return _compiled(replace(spec, ends=tuple(ends)))

    def source(self) -> Source:
        """Where the flow reads from."""
        return _spec(self).source()

    def named(self, name: str) -> Flow:
        """The same flow under another name."""
        return _compiled(replace(_spec(self), name=name))

    def run(self, **options: Any) -> Report:
        """Run to the end, or until stopped; blocks.

        A run that was interrupted is resumed. See :class:`~dspy_stream.stream.run.RunOptions` for
        the options: ``lm``, ``state``, ``capacity``, ``limit``, ``fresh``, ``workers`` and more.

        Raises:
            DSPyStreamError: the flow cannot start or cannot go on; what is done is kept.
        """
        from dspy_stream.stream.run import RunOptions, run_flow

        return run_flow(_spec(self), RunOptions.of(options))

    def dry_run(self, *, sample: int = 20, **options: Any) -> Estimate:
        """Estimate calls, tokens and cost from a sample of the rows, without a call; blocks.

        The prompts are the real ones. Answers come from the journal where it has them, and are made
        up elsewhere, so that later steps have something to go on; repairs and repeated attempts are not
        foreseen. Nothing is written. The flow's own functions and modules run for the sampled rows.

        Args:
            sample: rows to look at, drawn evenly; of a very large input, from its beginning.
            **options: ``lm``, ``adapter``, ``state``, ``limit`` and ``prices``, as for :meth:`run`.

        Raises:
            DSPyStreamError: the input cannot be looked at, or a model cannot be used.
        """
        from dspy_stream.stream.forecast import dry_run
        from dspy_stream.stream.run import RunOptions

        return dry_run(_spec(self), RunOptions.of(options), sample)

    def explain(self) -> str:
        """The steps as a table: module, signature, model, capacity, order and policy of each.

        Under it stands why a program runs as one step where it was to be taken apart.
        """
        from dspy_stream.stream.explain import explained

        return explained(_spec(self))

    def to_mermaid(self) -> str:
        """The steps and what flows between them, as a Mermaid flowchart."""
        from dspy_stream.stream.explain import mermaid

        return mermaid(_spec(self))

    def compile(self) -> Flow:
        """The flow itself, which is a bytewax ``Dataflow``."""
        return self


def _spec(flow: Flow) -> Spec:
    if flow.spec is None:
        raise FlowError("this Flow was not made by a Stream")
    return flow.spec


def default_state(name: str) -> Path:
    """The state folder of a flow that is given none."""
    return Path(".dspy_stream") / name


def retry_name(name: str) -> str:
    """What runs that retry dead letters of a flow are called."""
    return f"{name}.retry"


def _compiled(spec: Spec) -> Flow:
    """The flow for bytewax's own runner: its job opens the default state folder by itself."""
    from dspy_stream.stream.run import outside_job

    defaults = spec.defaults
    lm = resolve(defaults["lm"]) if defaults.get("lm") is not None else None
    job, open_box = outside_job(spec, lm)
    settings = Settings(lm=lm, adapter=defaults.get("adapter"), open_box=open_box)
    made = build(spec.name, spec.ends, job, settings)
    return Flow(made.flow_id, made.substeps, made._scope, spec)
