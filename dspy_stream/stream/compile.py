"""From the description of a stream to a bytewax dataflow: one operator a node.

    read -> [map | filter | flat_map | rename | select | batch | through]* -> write

What flows between operators is a row, or what became of one: a dead letter or a dropped row goes
through every later step untouched, so that the terminal can account for each.
"""

from __future__ import annotations

import contextvars
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import bytewax.operators as op
import orjson
from bytewax.dataflow import Dataflow

from dspy_stream.errors import FlowError, RowError
from dspy_stream.events import IGNORED
from dspy_stream.lm.witness import WITNESS
from dspy_stream.modules.ahead import call_of
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.hosts import HOSTS, Call, Place
from dspy_stream.modules.scope import SCOPE, Scope
from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.stream import nodes
from dspy_stream.stream.ask import AskLogic, Pool
from dspy_stream.stream.codec import Frozen, freeze, thaw_noted
from dspy_stream.stream.functions import Judge, RowFunction
from dspy_stream.stream.gate import ControlSource, GatedSource
from dspy_stream.stream.gather import Gather, Gathering
from dspy_stream.stream.join import Elsewhere, Fate, Half, JoinLogic, Pick, RouteJudge
from dspy_stream.stream.nodes import Node, legible
from dspy_stream.stream.terminal import Box, Terminal, TerminalSink
from dspy_stream.stream.typed import types_before
from dspy_stream.stream.work import Dropped, ModuleWork, Policy

if TYPE_CHECKING:
    from bytewax.dataflow import Stream as BytewaxStream

    from dspy_stream.adapters import Adapter
    from dspy_stream.lm.base import Model
    from dspy_stream.stream.job import Job

__all__ = ["Settings", "build", "freeze_item", "step_ids", "thaw_item", "under"]

# Shards of a step. A fixed number, so that a run can be resumed with other workers; few, because
# each is one entry in every snapshot.
_SHARDS: Final = 8
_KEYS: Final = [str(shard) for shard in range(_SHARDS)]


@dataclass(frozen=True)
class Settings:
    """What a run decides about a flow: the model, the adapter, and overrides of its steps."""

    lm: Model | None = None
    adapter: Adapter | None = None
    capacity: int | None = None
    workers: int = 1
    outage: float = 300.0
    anew: frozenset[str] = frozenset()
    open_box: Callable[[str, int], Box | None] = field(default=lambda _step, _position: None)


def step_ids(ends: Sequence[Node]) -> dict[int, str]:
    """A step id for every node, by ``id(node)``: its place and its name.

    They name what is kept for a step in a snapshot, so they follow from the flow alone.
    """
    found: dict[int, str] = {}
    splits: dict[int, str] = {}
    for end in ends:
        for node in end.chain():
            if id(node) in found:
                continue
            operation = node.operation
            if isinstance(operation, nodes.Branch):
                base = splits.setdefault(id(operation.split), f"{len(found):02d}_branch")
                found[id(node)] = f"{base}_{'yes' if operation.side else 'no'}"
            elif isinstance(operation, nodes.Case):
                base = splits.setdefault(id(operation.split), f"{len(found):02d}_route")
                place = "" if operation.index is None or operation.index < 0 else f"{operation.index}_"
                found[id(node)] = f"{base}_{place}{_plain(legible(operation.name))}"
            else:
                found[id(node)] = f"{len(found):02d}_{_plain(operation.label)}"
    return found


def _plain(label: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in label)


def build(name: str, ends: Sequence[tuple[Node, Terminal]], job: Job, settings: Settings) -> Dataflow:
    """Make the dataflow. No file is opened and no model is called.

    Raises:
        FlowError: the parts do not fit together.
    """
    flow = Dataflow("".join(c if c.isalnum() or c in "_-" else "_" for c in name) or "flow")
    builder = _Builder(flow, job, settings, step_ids([end for end, _ in ends]))
    for end, terminal in ends:
        stream = builder.stream(end)
        keyed = op.flat_map_batch(f"{terminal.step}_key", stream, _constant_key)
        op.output(terminal.step, keyed, TerminalSink(terminal, job, settings.open_box))
    if settings.workers > 1:
        op.input("control", flow, ControlSource(job.gate))
    return flow


def _constant_key(items: Iterable[Any]) -> list[tuple[str, Any]]:
    return [("all", item) for item in items]


def unkey(pairs: Iterable[tuple[str, Any]]) -> list[Any]:
    return [value for _, value in pairs]


def shard(text: str) -> str:
    """One of a few shard keys; the same for the same text, in every process."""
    return _KEYS[zlib.crc32(_bytes(text)) % _SHARDS]


def by_id(items: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(shard(item.id if type(item) is Row else item.row_id), item) for item in items]


def _bytes(row_id: str) -> bytes:
    return row_id.encode("utf-8", "surrogatepass")


def _by_partition(items: Iterable[Any]) -> list[tuple[str, Any]]:
    # A dropped row that nobody awaits has no origin; it is not in anybody's order.
    return [(item.origin.partition if item.origin is not None else "", item) for item in items]


class _Builder:
    def __init__(self, flow: Dataflow, job: Job, settings: Settings, ids: Mapping[int, str]) -> None:
        self._flow = flow
        self._job = job
        self._settings = settings
        self._ids = ids
        self._made: dict[int, BytewaxStream[Any]] = {}
        self._splits: dict[int, Any] = {}
        self._sources = 0

    def stream(self, node: Node) -> BytewaxStream[Any]:
        """The bytewax stream behind a node; shared nodes are built once."""
        found = self._made.get(id(node))
        if found is None:
            found = self._made[id(node)] = self._build(node)
        return found

    def _build(self, node: Node) -> BytewaxStream[Any]:
        step, operation = self._ids[id(node)], node.operation
        if isinstance(operation, nodes.Read):
            return op.input(step, self._flow, GatedSource(operation.source, self._job))
        if node.parent is None:
            raise FlowError(f"{step} has nothing before it")
        up = self.stream(node.parent)
        if isinstance(operation, nodes.Through):
            return self._through(step, operation, up, types_before(node))
        if isinstance(operation, nodes.Branch):
            return self._branch(step, operation, up)
        if isinstance(operation, nodes.Case):
            return self._case(step, operation, up)
        if isinstance(operation, nodes.Merge):
            return op.merge(step, *(self.stream(parent) for parent in node.parents))
        if isinstance(operation, nodes.Join):
            return self._join(step, operation, node)
        if isinstance(operation, nodes.Batch):
            keyed = op.flat_map_batch(f"{step}_key", up, _by_partition)
            size, gathering = operation.size, Gathering()
            self._job.gate.holders.append(gathering)
            gathered = op.stateful_batch(step, keyed, lambda state: Gather(size, gathering, state))
            return op.flat_map_batch(f"{step}_out", gathered, unkey)
        fate = None
        if isinstance(operation, nodes.Finish):
            fate = Fate(step, self._job, operation.on_error)
        return op.flat_map_batch(step, up, RowFunction(step, operation, self._job, fate))

    def _branch(self, step: str, operation: nodes.Branch, up: BytewaxStream[Any]) -> BytewaxStream[Any]:
        pair = self._splits.get(id(operation.split))
        if pair is None:
            base = step.rsplit("_", 1)[0]
            judged = op.flat_map_batch(f"{base}_judge", up, Judge(base, operation, self._job))
            pair = self._splits[id(operation.split)] = op.branch(base, judged, _is_yes)
        side = pair.trues if operation.side else pair.falses
        return op.flat_map_batch(step, side, unkey)

    def _case(self, step: str, operation: nodes.Case, up: BytewaxStream[Any]) -> BytewaxStream[Any]:
        judged = self._splits.get(id(operation.split))
        if judged is None:
            base = "_".join(step.split("_")[:2])
            fate = Fate(base, self._job, operation.on_error, operation.defaults)
            judge = RouteJudge(base, operation.route, self._job, fate)
            judged = self._splits[id(operation.split)] = op.flat_map_batch(base, up, judge)
        return op.flat_map_batch(step, judged, Pick(operation.index, marks=operation.ordered))

    def _join(self, step: str, operation: nodes.Join, node: Node) -> BytewaxStream[Any]:
        job, types = self._job, types_before(node)
        lost = partial(_lost, job, step)
        halves = [
            op.flat_map_batch(f"{step}_{place}", self.stream(parent), _Halves(place, operation.ordered))
            for place, parent in enumerate(node.parents)
        ]

        def logic(resumed: list[Any] | None) -> JoinLogic:
            return JoinLogic(
                step,
                operation.names,
                job,
                fate=Fate(step, job, operation.on_error, operation.defaults),
                freeze=freeze_item,
                thaw=lambda frozen: thaw_item(frozen, types, lost),
                resumed=resumed,
            )

        joined = op.stateful_batch(step, op.merge(f"{step}_merge", *halves), logic)
        return op.flat_map_batch(f"{step}_out", joined, unkey)

    def _through(
        self, step: str, operation: nodes.Through, up: BytewaxStream[Any], types: Mapping[str, Any]
    ) -> BytewaxStream[Any]:
        job, settings = self._job, self._settings
        ordered = operation.order == "ordered"
        capacity = settings.capacity or operation.capacity
        lazily = _LazyPool(step, operation, job, settings, capacity)

        def logic(resumed: list[Frozen] | None) -> AskLogic:
            items = [thaw_item(frozen, types, partial(_lost, job, step)) for frozen in resumed or ()]
            return AskLogic(lazily.get(), ordered=ordered, freeze=freeze_item, resumed=items)

        keyed = op.flat_map_batch(f"{step}_key", up, _by_partition if ordered else by_id)
        asked = op.stateful_batch(step, keyed, logic)
        return op.flat_map_batch(f"{step}_out", asked, unkey)


class _Halves:
    """Items keyed for a join, each with the number of its branch."""

    def __init__(self, place: int, ordered: bool) -> None:
        self._place = place
        self._keyed = _by_partition if ordered else by_id

    def __call__(self, items: Iterable[Any]) -> list[tuple[str, Half]]:
        place = self._place
        return [(key, (place, item)) for key, item in self._keyed(items)]


Lost = Callable[[Row, str], DeadLetter]


def _lost(job: Job, step: str, row: Row, field: str) -> DeadLetter:
    error = RowError(
        f"the field {field!r} held an object without a form, which ended with the process: "
        "`dspy-stream dlq retry` runs the row from its beginning; text or plain data would be kept"
    )
    return job.write(row, "process", step, error)


class _LazyPool:
    """The pool of a step, made when the first worker needs it; by then the job is open."""

    def __init__(
        self, step: str, operation: nodes.Through, job: Job, settings: Settings, capacity: int
    ) -> None:
        self._make = (step, operation, job, settings, capacity)

    def get(self) -> Pool:
        step, operation, job, settings, capacity = self._make
        with job._lock:
            found = job.pools.get(step)
            if found is None:
                job.open()
                capacity = operation.place.capacity(capacity)
                place = replace(operation.place, workers=capacity, timeout=operation.timeout)
                policy = Policy(
                    operation.timeout,
                    operation.retries,
                    operation.on_error,
                    settings.outage,
                    settings.anew,
                    fallback=operation.fallback,
                    outputs=operation.outputs,
                    partial=operation.part is not None,
                    defaults=operation.defaults,
                    covered=operation.covered,
                    call=_called(operation, place, job),
                    bounded=place.bounds(operation.module),
                    noted=operation.joined,
                    probing=operation.lane is None,
                )
                work = ModuleWork(
                    step,
                    operation.module,
                    policy,
                    run_id=job.run_id,
                    letters=job,
                    watch=job,
                    clock=job.clock,
                    streak=job.streak(f"in {step}"),
                )
                work.meter.mishaps = partial(job.hosts.mishaps, step)
                clients = job.clients_for(operation.lane, settings.outage)
                lm, adapter = job.models or (settings.lm, settings.adapter)
                context = under(Scope(clients, lm=lm, adapter=adapter))
                context.run(WITNESS.set, work.attempt_failed)
                context.run(HOSTS.set, job.hosts)
                context.run(IGNORED.set, job.count_ignored)
                found = Pool(
                    work,
                    capacity,
                    context=context,
                    stopping=partial(getattr, job.gate, "closing"),  # asked for every row
                    patient=operation.lane is not None,
                    meter=work.meter,
                )
                job.pools[step] = found
                job.gate.holders.append(found)
            return found


def _called(operation: nodes.Through, place: Place, job: Job) -> Call:
    """How the rows of a step call its module."""
    call = job.hosts.call(operation.module, place)
    return call_of(operation.module) if operation.ahead and call is heard_steps else call


_DEAD: Final = "\0dead"
_GONE: Final = "\0dropped"
_ELSEWHERE: Final = "\0elsewhere"
_NOWHERE: Final = ("", "", -1, None)  # no row has it, whatever the data call their rows


def under(scope: Scope) -> contextvars.Context:
    """A context in which predictors run under ``scope``."""
    context = contextvars.copy_context()
    context.run(SCOPE.set, scope)
    return context


def freeze_item(item: Any) -> Frozen:
    """A row, or what became of one, as builtins."""
    if type(item) is Row:
        return freeze(item)
    if type(item) is DeadLetter:
        return (_DEAD, orjson.dumps(item.to_json()), _NOWHERE, None)
    mark = _GONE if type(item) is Dropped else _ELSEWHERE
    origin = orjson.dumps(list(item.origin)) if item.origin is not None else None
    return (mark, _bytes(item.row_id), _NOWHERE, origin)


def thaw_item(frozen: Frozen, types: Mapping[str, Any], lost: Lost | None = None) -> Any:
    """The item again; where a row's field held an object without a form, what ``lost`` makes of the row."""
    if frozen[2][2] >= 0:
        row, formless = thaw_noted(frozen, types)
        return row if lost is None or not formless else lost(row, formless[0])
    if frozen[0] == _DEAD:
        return DeadLetter.from_json(orjson.loads(frozen[1]))
    origin = Origin(*orjson.loads(frozen[3])) if isinstance(frozen[3], bytes) else None
    if frozen[0] == _ELSEWHERE and origin is not None:
        return Elsewhere(_row_id(frozen[1]), origin)
    return Dropped(_row_id(frozen[1]), origin)


def _row_id(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _is_yes(pair: tuple[bool, Any]) -> bool:
    return pair[0]
