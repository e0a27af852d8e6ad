"""What a module runs under: a model, an adapter, a journal and a parameter set, as one value.

A module object is never changed to try other parameters on it. A :class:`Scope` maps each of its
predictors to the parameters it is to use, and the plans made from them are kept in the scope. Two
scopes can drive the same module object at the same time, row by row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from dspy_stream import configuration
from dspy_stream.adapters import Adapter, BAMLAdapter, ChatAdapter, JSONAdapter, XMLAdapter
from dspy_stream.configuration import settings
from dspy_stream.engine import Plan, Ticket
from dspy_stream.errors import ConfigurationError, LMNotConfiguredError
from dspy_stream.events import ROW
from dspy_stream.lm.base import Model, resolve
from dspy_stream.lm.charged import InForce
from dspy_stream.lm.reserve import meter_of
from dspy_stream.program import InputField, PredictorParameters, Signature
from dspy_stream.state.journal import MemoryJournal
from dspy_stream.types import Layer

if TYPE_CHECKING:
    from dspy_stream.lm.cache import Journal
    from dspy_stream.lm.model import Lane
    from dspy_stream.lm.stack import Wrap

__all__ = [
    "HINTS",
    "SCOPE",
    "TICKET",
    "TRACE",
    "Clients",
    "Scope",
    "default_adapter",
    "default_lm",
    "process_clients",
    "trace_in_force",
]


Around = Callable[[Model, Layer], Layer]
"""What is put around the layers of a model that are paid for."""


def _for_model(around: Around | None, lm: Model) -> Wrap | None:
    return None if around is None else lambda _name, paid: around(lm, paid)


class Clients:
    """Connected models of one journal: each model's layers are stacked once and shared.

    ``wrap`` is put around what each model is paid for; ``lane`` is another way to their answers.
    """

    def __init__(
        self, journal: Journal | None, *, wrap: Around | None = None, lane: Lane | None = None
    ) -> None:
        self._journal = journal
        self._wrap = wrap
        self._lane = lane
        self._layers: dict[Model, Layer] = {}
        self._beside: list[Clients] = []
        self._lock = threading.Lock()

    def get(self, lm: Model) -> Layer:
        """The stacked layers of ``lm``; connecting does no I/O."""
        found = self._layers.get(lm)
        if found is None:
            with self._lock:
                found = self._layers.get(lm)
                if found is None:
                    found = self._layers[lm] = lm.connect(
                        self._journal, wrap=_for_model(self._wrap, lm), lane=self._lane
                    )
        return found

    def named(self, name: str) -> Layer | None:
        """The layers of the model of this name; None where none is connected, or several are."""
        with self._lock:
            found = [layer for lm, layer in self._layers.items() if lm.model == name]
        return found[0] if len(found) == 1 else None

    def beside(self, lane: Callable[[Journal | None], Lane]) -> Clients:
        """Clients with the same journal and wrap that go another way; closed together with these."""
        made = Clients(self._journal, wrap=self._wrap, lane=lane(self._journal))
        self._beside.append(made)
        return made

    async def aclose(self) -> None:
        """Close every layer; to be awaited on the engine's loop."""
        for other in self._beside:
            await other.aclose()
        layers, self._layers = list(self._layers.values()), {}
        for layer in layers:
            await layer.aclose()


_process: dict[int, Clients] = {}
_process_lock = threading.Lock()
_memory: MemoryJournal = MemoryJournal()


def forget_memory() -> None:
    """Forget the answers that are kept in memory for calls outside flows."""
    global _memory
    _memory = MemoryJournal()


def _in_force(lm: Model, paid: Layer) -> Layer:
    return InForce(paid, meter_of(lm))


def process_clients() -> Clients:
    """The clients of calls made outside any flow: ``settings.journal``, or memory."""
    journal = settings.journal if settings.journal is not None else _memory
    with _process_lock:
        found = _process.get(id(journal))
        if found is None:
            found = _process[id(journal)] = Clients(journal, wrap=_in_force)
        return found


class Attempt(NamedTuple):
    """One of several attempts at the same question: which answer is asked for, and with advice or not.

    Its calls have a temperature of 1.0, where the predictor names none, so that the answers differ.
    """

    rollout: int
    hinted: bool = False

    def signature(self, own: type[Signature]) -> type[Signature]:
        """The predictor's signature, with the field of the advice."""
        if not self.hinted or HINT in own.input_fields:
            return own
        return own.append(HINT, InputField(desc="advice that was drawn from an earlier attempt"), str)

    def config(self, own: Mapping[str, Any], lm: Model) -> dict[str, Any]:
        """The predictor's options for this attempt."""
        first = own.get("rollout_id", getattr(lm, "rollout_id", None)) or 0
        return {"temperature": _TEMPERATURE, **own, "rollout_id": first + self.rollout}


HINT: Final = "hint_"
NO_HINT: Final = "N/A"
_TEMPERATURE: Final = 1.0
_INNER: Final = 64


class Scope:
    """One parameter set in force for the predictors of a module.

    ``parameters`` maps ``id(predictor)`` to what it runs under; a predictor that is not named
    runs under its own attributes. ``plans`` is filled as predictors are first asked. ``attempt``
    says how its questions differ from those of the scope that it was made from.
    """

    __slots__ = ("adapter", "attempt", "attempts", "clients", "inner", "lm", "parameters", "plans")

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
        self.attempt: Attempt | None = None
        self.attempts: dict[Attempt, Scope] = {}
        self.inner: dict[tuple[Model | None, Adapter | None], Scope] = {}

    def within(self, lm: Model | None, adapter: Adapter | None) -> Scope:
        """The scope of a ``context`` block that names a model or an adapter; made once for each of few."""
        found = self.inner.get((lm, adapter))
        if found is None:
            if len(self.inner) >= _INNER:  # a program that makes an adapter for every row
                self.inner.clear()
            found = self.inner[lm, adapter] = Scope(
                self.clients, lm=lm or self.lm, adapter=adapter or self.adapter, parameters=self.parameters
            )
            found.attempt = self.attempt
        return found

    def trying(self, number: int, of: int, *, hinted: bool = False) -> Scope:
        """The scope of one of several attempts at the same question; made once, with plans of its own.

        Attempts within attempts ask for answers of their own too.
        """
        outer = self.attempt
        rollout = number if outer is None else outer.rollout * of + number
        wanted = Attempt(rollout, hinted or (outer is not None and outer.hinted))
        found = self.attempts.get(wanted)
        if found is None:
            found = Scope(self.clients, lm=self.lm, adapter=self.adapter, parameters=self.parameters)
            found.attempt = wanted
            self.attempts[wanted] = found
        return found


SCOPE: ContextVar[Scope | None] = ContextVar("dspy_stream_scope", default=None)
# One variable under two names: events say which row they are of.
TICKET = cast("ContextVar[Ticket | None]", ROW)

# The calls of predictors in this context, as (predictor, inputs, prediction) in the order in which
# they were answered; None where nobody wants to know.
TRACE = configuration.TRACE

# What predictors are told of earlier attempts, by ``id(predictor)``.
HINTS: ContextVar[Mapping[int, str]] = ContextVar("dspy_stream_hints", default=MappingProxyType({}))


def trace_in_force() -> list[Any] | None:
    """What takes the calls of predictors here; None where nobody wants to know."""
    found = TRACE.get()
    return found if found is not None else configuration.shared_trace


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
            "No LM is loaded: no language model is set. Call dspy_stream.configure(lm=...), run it within "
            "dspy_stream.context(lm=...), pass lm=... to the predictor, or name one on the command line with "
            "--lm; local/nearest needs no key and no server"
        )
    return resolve(lm)


_CHAT: Final = ChatAdapter()
_ADAPTERS: Final[Mapping[str, Adapter]] = {
    "chat": _CHAT,
    "json": JSONAdapter(),
    "xml": XMLAdapter(),
    "baml": BAMLAdapter(),
}


def default_adapter(scope: Scope | None) -> Adapter:
    """The adapter in force: the scope's, the settings', or ChatAdapter.

    Raises:
        ConfigurationError: the settings name one that is not known.
    """
    if scope is not None and scope.adapter is not None:
        return scope.adapter
    adapter: Adapter | str | None = settings.adapter
    return _by_name(adapter) if adapter is not None else _CHAT


def _by_name(adapter: Adapter | str) -> Adapter:
    if not isinstance(adapter, str):
        return adapter
    if adapter not in _ADAPTERS:
        raise ConfigurationError(f"there is no adapter {adapter!r}; there are {', '.join(_ADAPTERS)}")
    return _ADAPTERS[adapter]


def _entered(values: Mapping[str, Any]) -> Callable[[], None] | None:
    """A ``context`` block within a scope: the model and the adapter that it names go before the scope's."""
    scope = SCOPE.get()
    lm, adapter = values.get("lm"), values.get("adapter")
    if scope is None or (lm is None and adapter is None):
        return None
    model = resolve(lm) if lm is not None else None
    token = SCOPE.set(scope.within(model, _by_name(adapter) if adapter is not None else None))
    return lambda: SCOPE.reset(token)


configuration.inside(_entered)
