"""The batch lane of a run: one layer for each model and server, all with one journal and one ledger."""

from __future__ import annotations

import random

from dspy_stream.clock import Clock
from dspy_stream.errors import FlowError
from dspy_stream.lm.batch.layer import BatchLayer, Shared, Waiting
from dspy_stream.lm.batch.ledger import Ledger, MemoryLedger
from dspy_stream.lm.batch.plan import BatchOptions
from dspy_stream.lm.batch.target import target_of
from dspy_stream.lm.cache import Journal
from dspy_stream.lm.model import CLOCK, Model
from dspy_stream.lm.reserve import Meter
from dspy_stream.lm.secret import Secret

__all__ = ["BatchLane", "Waiting"]


class BatchLane:
    """Another way to a model's answers: through its provider's batch API.

    Give it as ``lane=`` to ``Model.connect``. ``journal`` is the one around the layer; ``ledger``
    keeps what is at the provider through a crash. ``outage`` is how many seconds the batch API may
    fail to answer, once it is asked, before the flow ends.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger | None = None,
        options: BatchOptions | None = None,
        *,
        outage: float = 300.0,
        clock: Clock = CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self.options = options if options is not None else BatchOptions()
        rng = rng if rng is not None else random.SystemRandom()
        ledger = ledger if ledger is not None else MemoryLedger()
        self._shared = Shared(journal, ledger, self.options, outage, clock, rng)
        self._layers: dict[str, tuple[BatchLayer, Secret | None]] = {}

    def __call__(self, model: Model) -> BatchLayer:
        """The layer of a model; models that differ in their options only share one.

        Raises:
            FlowError: its provider has no batch API, or none that is known here.
            LMConfigurationError: the model cannot be called with its settings.
        """
        target = target_of(model, self._shared.clock)
        found = self._layers.get(target.name)
        if found is None:
            meter = Meter(model.model, target.price, lasting=True)
            layer = BatchLayer(target.api(), target.format, target.name, self._shared, meter)
            found = self._layers[target.name] = (layer, target.secret)
        layer, secret = found
        if secret != target.secret:
            raise FlowError(
                f"{model.model} is given two API keys; the batches of a flow are those of one account"
            )
        return layer

    def names(self) -> frozenset[str]:
        """Which batches are taken up, once a row asks: those of the models that were connected."""
        return frozenset(self._layers)

    def hurry(self, seconds: float) -> None:
        """Closing is to be over in so many seconds from now; may be called from a signal handler."""
        for layer, _ in list(self._layers.values()):
            layer.hurry(seconds)

    def waiting(self) -> list[Waiting]:
        """What is waited for now; may be called from any thread."""
        return [line for layer, _ in list(self._layers.values()) for line in layer.waiting()]
