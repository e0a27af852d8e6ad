"""Our steps as operators for bytewax's own dataflows.

import bytewax.operators as op
import dspy_stream.operators as dsop

answered = dsop.module("answer", questions, ds.Predict("question -> answer"))
op.output("out", answered.done, sink)
op.output("dead", answered.failed, letters)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Optional, Union

import bytewax.operators as op
from bytewax.dataflow import Stream, operator

from dspy_stream.modules.hosts import hosts
from dspy_stream.modules.module import Module
from dspy_stream.modules.part import Part, as_part
from dspy_stream.modules.scope import Scope, process_clients
from dspy_stream.rows import Origin, Row
from dspy_stream.stream.ask import AskLogic, Pool
from dspy_stream.stream.codec import dump_fields
from dspy_stream.stream.compile import by_id, freeze_item, thaw_item, under, unkey
from dspy_stream.stream.job import Job
from dspy_stream.stream.work import ModuleWork, Policy

__all__ = ["ModuleOut", "module"]


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

    Each item is a mapping with the module's inputs, or a :class:`~dspy_stream.rows.Row`; it comes
    out as the same kind of item with the outputs added, in completion order unless ``ordered``
    (then in input order per shard of ids). Items in flight are in bytewax's snapshot and are run
    again after a crash; finished calls come from ``settings.journal``, so set one that is on disk.
    When more than four times ``capacity`` items wait, the worker is held up: sources of ours wait
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

    rows = op.flat_map_batch("rows", up, lambda items: by_id([_row(item) for item in items]))
    asked = op.stateful_batch("ask", rows, logic)
    split = op.branch("split", op.flat_map_batch("unkey", asked, unkey), lambda item: type(item) is Row)
    done = op.flat_map_batch("items", split.trues, lambda items: [_item(item) for item in items])
    return ModuleOut(done, split.falses)


_PLAIN = Origin("bytewax", "", 0)


def _row(item: Any) -> Row:
    if isinstance(item, Row):
        return item
    if not isinstance(item, Mapping):
        raise TypeError(f"items must be mappings with the module's inputs, not {type(item).__name__}")
    digest = hashlib.blake2b(dump_fields(item), digest_size=8).hexdigest()
    return Row(digest, dict(item), _PLAIN)


def _item(row: Row) -> Any:
    return dict(row.fields) if row.origin is _PLAIN or row.origin == _PLAIN else row
