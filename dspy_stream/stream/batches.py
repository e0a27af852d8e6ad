"""The batch lane of one run: its journal, its ledger in the state folder, and the clients that use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_stream.lm.cache import DictJournal
from dspy_stream.state.batches import Ledger

if TYPE_CHECKING:
    from dspy_stream.lm.batch.lane import BatchLane
    from dspy_stream.lm.batch.plan import BatchOptions
    from dspy_stream.lm.cache import Journal
    from dspy_stream.modules.scope import Clients
    from dspy_stream.stream.job import State

__all__ = ["open_lane"]


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
