"""What a module runs under: a model, an adapter, a journal and a parameter set, as one value.

A module object is never changed to try other parameters on it. A :class:`Scope` maps each of its
predictors to the parameters it is to use, and the plans made from them are kept in the scope. Two
scopes can drive the same module object at the same time, row by row.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from dspy_stream.adapters import Adapter, ChatAdapter
from dspy_stream.configuration import settings
from dspy_stream.engine import Plan, Ticket
from dspy_stream.errors import LMNotConfiguredError
from dspy_stream.lm.base import Model, resolve
from dspy_stream.program import PredictorParameters
from dspy_stream.state.journal import MemoryJournal
from dspy_stream.types import Layer

if TYPE_CHECKING:
    from dspy_stream.lm.cache import Journal
    from dspy_stream.lm.model import Lane
    from dspy_stream.lm.stack import Wrap

__all__ = ["SCOPE", "TICKET", "Clients", "Scope", "default_adapter", "default_lm", "process_clients"]


class Clients:
    """Connected models of one journal: each model's layers are stacked once and shared.

    ``wrap`` is put around what each model is paid for; ``lane`` is another way to their answers.
    """

    def __init__(
        self, journal: Journal | None, *, wrap: Wrap | None = None, lane: Lane | None = None
    ) -> None:
        self._journal = journal
        self._wrap = wrap
        self._lane = lane
        self._layers: dict[Model, Layer] = {}
        self._lock = threading.Lock()

    def get(self, lm: Model) -> Layer:
        """The stacked layers of ``lm``; connecting does no I/O."""
        found = self._layers.get(lm)
        if found is None:
            with self._lock:
                found = self._layers.get(lm)
                if found is None:
                    found = self._layers[lm] = lm.connect(self._journal, wrap=self._wrap, lane=self._lane)
        return found

    async def aclose(self) -> None:
        """Close every layer; to be awaited on the engine's loop."""
        layers, self._layers = list(self._layers.values()), {}
        for layer in layers:
            await layer.aclose()


_process: dict[int, Clients] = {}
_process_lock = threading.Lock()
_memory: Final = MemoryJournal()


def process_clients() -> Clients:
    """The clients of calls made outside any flow: ``settings.journal``, or memory."""
    journal = settings.journal if settings.journal is not None else _memory
    with _process_lock:
        found = _process.get(id(journal))
        if found is None:
            found = _process[id(journal)] = Clients(journal)
        return found


class Scope:
    """One parameter set in force for the predictors of a module.

    ``parameters`` maps ``id(predictor)`` to what it runs under; a predictor that is not named
    runs under its own attributes. ``plans`` is filled as predictors are first asked.
    """

    __slots__ = ("adapter", "clients", "lm", "parameters", "plans")

    def __init__(
        self,
        clients: Clients,
        *,
        lm: Model | None = None,
        adapter: Adapter | None = None,
        parameters: Mapping[int, PredictorParameters] | None = None,
    ) -> None:
        self.clients = clients
        self.lm = lm
        self.adapter = adapter
        self.parameters: Mapping[int, PredictorParameters] = parameters if parameters is not None else {}
        self.plans: dict[int, Plan] = {}


SCOPE: ContextVar[Scope | None] = ContextVar("dspy_stream_scope", default=None)
TICKET: ContextVar[Ticket | None] = ContextVar("dspy_stream_ticket", default=None)


def default_lm(scope: Scope | None) -> Model:
    """The model in force where a predictor names none.

    Raises:
        LMNotConfiguredError: nobody named one.
    """
    if scope is not None and scope.lm is not None:
        return scope.lm
    lm: Any = settings.lm
    if lm is None:
        raise LMNotConfiguredError(
            "no language model is set: call dspy_stream.configure(lm=...), pass lm=... to this call, "
            "or name one on the command line with --lm; local/nearest needs no key and no server"
        )
    return resolve(lm)


_CHAT: Final = ChatAdapter()


def default_adapter(scope: Scope | None) -> Adapter:
    """The adapter in force: the scope's, the settings', or ChatAdapter."""
    if scope is not None and scope.adapter is not None:
        return scope.adapter
    adapter: Adapter | None = settings.adapter
    return adapter if adapter is not None else _CHAT
