"""Our steps as operators for bytewax's own dataflows.

import bytewax.operators as op
import dspy_stream.operators as dsop

answered = dsop.module("answer", questions, ds.Predict("question -> answer"))
op.output("out", answered.done, sink)
op.output("dead", answered.failed, letters)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Optional, Union

import bytewax.operators as op
from bytewax.dataflow import Stream, operator

from dspy_stream.modules.hosts import hosts
from dspy_stream.modules.module import Module
from dspy_stream.modules.part import Part, as_part
from dspy_stream.modules.scope import Scope, process_clients
from dspy_stream.program import Example
from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.stream.ask import AskLogic, Pool
from dspy_stream.stream.codec import dump_fields
from dspy_stream.stream.compile import by_id, freeze_item, shard, thaw_item, under, unkey
from dspy_stream.stream.job import Job
from dspy_stream.stream.work import ModuleWork, Policy

__all__ = ["ModuleOut", "module"]

_TOLD = 20_000


@dataclass(frozen=True)
class ModuleOut:
    """What comes out of :func:`module`: ``done``, the items with their outputs; ``failed``, dead letters."""

    done: Stream[Any]
    failed: Stream[Any]


@operator
def module(
    step_id: str,
    up: Stream[Any],
    module: Union[Module, Part],  # noqa: UP007
    *,
    capacity: int = 128,
    ordered: bool = False,
    timeout: Optional[float] = None,  # noqa: UP045
    retries: int = 0,
) -> ModuleOut:
    """Run a module over a stream of mappings, ``capacity`` items in flight.

    Each item is a mapping with the module's inputs, an :class:`~dspy_stream.program.Example`, a
    :class:`~dspy_stream.rows.Row`, or a pair of a key and one of the first two, as in bytewax's keyed
    streams. It comes out as the same kind of item with the outputs added, in completion order unless
    ``ordered``: then in input order, that of pairs by their key, that of rows by their source partition.
    Items of other kinds come out of ``failed``. Items in flight are in bytewax's snapshot and are run
    again after a crash; finished calls come from ``settings.journal``, so set one that is on disk.
    When more than 4 x ``capacity`` + 1,024 items are held, the worker is held up: sources of ours wait
    by themselves instead.

    A module with options may say where its code runs, ``module.using(isolation="thread")``; its other
    options are not looked at. Threads, processes and resources are kept until the process ends.
    """
    holder: list[Pool] = []
    part = as_part(module)
    place = replace(part.options.place(step_id), timeout=timeout)
    place.check(part.module)

    def logic(resumed: Any) -> AskLogic:
        if not holder:
            job = Job(step_id, "")
            call, bounded = hosts().call(part.module, place), place.bounds(part.module)
            policy = Policy(timeout, retries, call=call, bounded=bounded)
            work = ModuleWork(
                step_id, part.module, policy, run_id="", letters=job, watch=job, clock=job.clock
            )
            context = under(Scope(process_clients()))
            holder.append(Pool(work, place.capacity(capacity), context=context))
        pool = holder[0]
        items = [thaw_item(frozen, {}) for frozen in resumed or ()]
        return AskLogic(pool, ordered=ordered, freeze=freeze_item, resumed=items, hard=pool.high)

    shards = _in_order if ordered else by_id
    rows = op.flat_map_batch("rows", up, lambda items: shards([_row(item, step_id) for item in items]))
    asked = op.stateful_batch("ask", rows, logic)
    split = op.branch("split", op.flat_map_batch("unkey", asked, unkey), lambda item: type(item) is Row)
    done = op.flat_map_batch("items", split.trues, lambda items: [_item(item) for item in items])
    return ModuleOut(done, split.falses)


_FROM = "bytewax"
_EXAMPLE = "bytewax, an Example"
_KEYED = "bytewax, a pair"
_KEYED_EXAMPLE = "bytewax, a pair with an Example"


def _row(item: Any, step: str) -> Row | DeadLetter:
    if isinstance(item, Row):
        return item
    key, value = "", item
    keyed = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
    if keyed:
        key, value = item
    if isinstance(value, Example):
        kind, fields = (_KEYED_EXAMPLE if keyed else _EXAMPLE), dict(value.items())
    elif isinstance(value, Mapping):
        kind, fields = (_KEYED if keyed else _FROM), dict(value)
    else:
        return _refused(item, step)
    digest = hashlib.blake2b(dump_fields(fields), digest_size=8).hexdigest()
    return Row(digest, fields, Origin(kind, key, 0))


def _refused(item: Any, step: str) -> DeadLetter:
    """What becomes of an item that nothing can be asked about."""
    told = repr(item)[:_TOLD].encode("utf-8", "backslashreplace")
    message = (
        f"{step}: items are mappings with the module's inputs, or pairs of a key and a mapping,"
        f" not {type(item).__name__}"
    )
    error = {"code": "bad_item", "type": "RecordError", "message": message}
    row_id = hashlib.blake2b(told, digest_size=8).hexdigest()
    return DeadLetter(row_id, Origin(_FROM, "", 0), told, "check", error, step=step)


def _in_order(items: Iterable[Row | DeadLetter]) -> list[tuple[str, Any]]:
    return [(shard(item.origin.partition), item) for item in items]


def _item(row: Row) -> Any:
    kind, key = row.origin.name, row.origin.partition
    if kind == _FROM:
        return dict(row.fields)
    if kind == _EXAMPLE:
        return Example(**row.fields)
    if kind == _KEYED:
        return key, dict(row.fields)
    return (key, Example(**row.fields)) if kind == _KEYED_EXAMPLE else row
