"""What the rows of a worker run under, as a frame: models by number, the adapter by name, what was learned.

A worker knows of a model what is needed to write a prompt for it. It has neither its address nor a key.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Final, NamedTuple

from dspy_stream import configuration
from dspy_stream.adapters import BAMLAdapter, ChatAdapter, JSONAdapter, XMLAdapter
from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError, LMNotConfiguredError
from dspy_stream.lm.base import LM, Model
from dspy_stream.modules.module import Module
from dspy_stream.modules.scope import (
    HINTS,
    SCOPE,
    Scope,
    default_adapter,
    default_lm,
    process_clients,
    trace_in_force,
)
from dspy_stream.program import Example, Signature
from dspy_stream.program.carried import pack
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.program.marked import is_plain
from dspy_stream.types import Layer

__all__ = ["ADAPTERS", "SETTINGS", "Described", "Scopes", "contract", "same_contract"]

_log = logging.getLogger("dspy_stream")

ADAPTERS: Final[dict[str, type[Any]]] = {
    "chat": ChatAdapter,
    "json": JSONAdapter,
    "xml": XMLAdapter,
    "baml": BAMLAdapter,
}
"""The adapters that a worker can make by itself."""


_OPTIONS: Final = ("use_native_function_calling", "use_json_adapter_fallback", "parallel_tool_calls")
"""Of an adapter; the others hold classes or functions."""

SETTINGS: Final = (
    *("track_usage", "num_threads", "max_errors", "provide_traceback", "disable_history", "max_history_size"),
    *("history_in_flows", "async_max_workers", "allow_tool_async_sync_conversion", "warn_on_type_mismatch"),
    "max_trace_size",
)
"""Settings that hold in workers as they do where the row comes from, beside the model and the adapter, and
those of the program's own that are plain values of JSON."""

_KEPT: Final = 256  # scopes that are described once; every attempt of BestOfN has one


class Described(NamedTuple):
    """A scope as told to workers, and the models that their questions name by number."""

    head: dict[str, Any]
    body: bytes
    key: bytes
    models: tuple[Model, ...]
    layers: tuple[Layer, ...]
    predictors: tuple[tuple[str, Any], ...] = ()


class Scopes:
    """Describes the scopes that the rows of one module run under; each is described once."""

    def __init__(self, module: Module, who: str) -> None:
        self._module = weakref.ref(module)  # which goes with the program, and takes its workers with it
        self._who = who
        self._left: set[str] = set()
        self._known: OrderedDict[int, tuple[Scope, Described]] = OrderedDict()

    def current(self) -> Described:
        """The scope in force here.

        Raises:
            ConfigurationError: its adapter is none that a worker could make.
        """
        scope = SCOPE.get()
        if scope is None:  # settings and predictors may have changed since the last call
            return self._described(None)
        found = self._known.get(id(scope))
        if found is None:
            # The scope is kept beside what it is called, so that its id stays its own.
            found = self._known[id(scope)] = (scope, self._described(scope))
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found[1]

    def row(self) -> dict[str, Any]:
        """What a row runs under beside its scope: Refine's hints, settings, whether calls are traced."""
        hints = HINTS.get()
        named = self._named() if hints else ()
        return {
            "hints": {name: hints[id(predictor)] for name, predictor in named if id(predictor) in hints},
            "settings": {**self._own(), **{name: getattr(settings, name) for name in SETTINGS}},
            "trace": trace_in_force() is not None,
        }

    def _own(self) -> dict[str, Any]:
        """The program's own settings, those that can go along; the others are named once."""
        found = configuration.of_program()
        plain = {name: value for name, value in found.items() if is_plain(value)}
        for name in found.keys() - plain.keys() - self._left:
            self._left.add(name)
            _log.warning(
                "%s: the setting %s is no plain value but of type %s, and does not go into worker processes: "
                "there it is what the file of the program configures at its top",
                self._who,
                name,
                type(found[name]).__name__,
            )
        return plain

    def _described(self, scope: Scope | None) -> Described:
        models: list[Model] = []
        predictors: dict[str, Any] = {}
        demos: dict[str, Any] = {}
        try:
            models.append(default_lm(scope))
            default: int | None = 0
        except LMNotConfiguredError:
            default = None  # its predictors may have models of their own, or it has none
        for name, predictor in self._named():
            given = scope.parameters.get(id(predictor)) if scope is not None else None
            lm = predictor.lm if given is None or given.lm is None else LM.load_state(given.lm)
            predictors[name] = {
                "contract": contract(predictor.signature),
                "instructions": predictor.signature.instructions if given is None else given.instructions,
                "config": to_jsonable(predictor.config if given is None else given.config, name),
                "lm": _number(models, lm) if lm is not None else None,
            }
            demos[name] = [_plain(demo) for demo in (predictor.demos if given is None else given.demos)]
        attempt = scope.attempt if scope is not None else None
        head = {
            "models": [_told(model) for model in models],
            "default": default,
            "adapter": self._adapter(scope, needed=bool(predictors)),
            "predictors": predictors,
            "states": self._states(),
            "attempt": [attempt.rollout, attempt.hinted] if attempt is not None else None,
        }
        clients = scope.clients if scope is not None else process_clients()
        body = pack(demos)
        named = tuple((name, weakref.ref(predictor)) for name, predictor in self._named())
        return Described(head, body, pack(head) + body, tuple(models), tuple(map(clients.get, models)), named)

    def _named(self) -> list[tuple[str, Any]]:
        module = self._module()
        assert module is not None  # a row of it is being run
        return list(module.named_predictors())

    def _states(self) -> dict[str, Any]:
        """What programs of another framework have learned, by the names of the modules that they are."""
        module = self._module()
        assert module is not None
        parts = module.named_sub_modules()
        return {name: part.state_for_workers() for name, part in parts if hasattr(part, "state_for_workers")}

    def _adapter(self, scope: Scope | None, *, needed: bool) -> list[Any] | None:
        """The name of the adapter's class, and its options."""
        adapter = default_adapter(scope)
        given = vars(adapter)
        options = {name: given[name] for name in _OPTIONS if name in given}
        for name, kind in ADAPTERS.items():
            if type(adapter) is kind and is_plain(options) and _alike(given, vars(kind(**options))):
                return [name, options]
        if not needed:
            return None
        raise ConfigurationError(
            f"{self._who}: a worker process cannot make this {type(adapter).__name__}; one of "
            f"{', '.join(ADAPTERS)} can be used, with {', '.join(_OPTIONS)}, or isolation='thread'"
        )


def _alike(given: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two adapters differ in nothing; what one falls back on follows from its options."""
    return {**given, "fallback": None} == {**other, "fallback": None}


@lru_cache(maxsize=256)
def contract(signature: type[Signature]) -> str:
    """A digest of the fields, by which parent and worker know that they mean the same signature.

    Without its instructions, which are learned, and go along by themselves.
    """
    return signature.with_instructions("-").digest()


def same_contract(name: str, signature: type[Signature], theirs: str) -> None:
    """See that a worker's predictor has the fields of the parent's.

    Raises:
        ConfigurationError: it has not, and its prompts would be others.
    """
    if contract(signature) != theirs:
        raise ConfigurationError(
            f"predictor {name!r} has another signature in the program of this run than the one that a worker "
            f"process made, which is {signature.signature!r}, with its types and descriptions: a signature "
            "that is changed after the module was made does not go along. Change it in the class or factory "
            "that makes the module, or use isolation='thread'"
        )


def _plain(demo: Any) -> dict[str, Any]:
    return dict(demo.items(include_dspy=True)) if isinstance(demo, Example) else dict(demo)


def _number(models: list[Model], lm: Model) -> int:
    for number, known in enumerate(models):
        if known is lm:
            return number
    models.append(lm)
    return len(models) - 1


def _told(model: Model) -> dict[str, Any]:
    return {
        "model": model.model,
        "options": dict(model.options),
        "cache": model.cache,
        "rollout_id": model.rollout_id,
        "capabilities": asdict(model.capabilities),
        "by": model.by,
    }


def names_of(module: Module) -> Sequence[str]:
    """The predictors, by which parent and worker know that they mean the same program."""
    return [name for name, _ in module.named_predictors()]
