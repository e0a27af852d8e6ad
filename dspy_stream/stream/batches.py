"""The batch lane of one run: its journal, its ledger in the state folder, and the clients that use it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dspy_stream.lm.cache import DictJournal
from dspy_stream.state.batches import Ledger

if TYPE_CHECKING:
    from dspy_stream.lm.batch.lane import BatchLane
    from dspy_stream.lm.batch.plan import BatchOptions
    from dspy_stream.lm.cache import Journal
    from dspy_stream.modules.scope import Clients
    from dspy_stream.stream.job import State

__all__ = ["open_lane", "tell_of_others"]

_log = logging.getLogger("dspy_stream")


def open_lane(
    clients: Clients, state: State | None, options: BatchOptions, outage: float
) -> tuple[BatchLane, Clients]:
    """A lane beside a run's clients. Without a state folder nothing remembers what is at a provider."""
    from dspy_stream.lm.batch.lane import BatchLane

    made: list[BatchLane] = []

    def lane(journal: Journal | None) -> BatchLane:
        ledger = Ledger(state.store) if state is not None else None
        made.append(
            BatchLane(journal if journal is not None else DictJournal(), ledger, options, outage=outage)
        )
        return made[0]

    beside = clients.beside(lane)
    return made[0], beside


def tell_of_others(state: State | None, lane: BatchLane | None) -> None:
    """Warn of batches at a provider that no step of this run takes up."""
    ours = lane.names() if lane is not None else frozenset()
    for record in Ledger(state.store).list() if state is not None else ():
        if record.phase != "intended" and record.lane not in ours:
            _log.warning(
                "batch %s with %d requests is at its provider (%s), and no step of this run fetches it: rows "
                "that are in it are asked, and paid, again. Stop and run with lane='batch' to take it up, or "
                "give it up: dspy-stream state forget-batch FOLDER %s",
                *(record.batch_id or "of unknown fate", record.requests, record.lane, record.id),
            )
