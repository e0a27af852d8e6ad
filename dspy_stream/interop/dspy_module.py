"""DSPyModule: an unchanged program of DSPy as a module of this package."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError
from dspy_stream.interop import describe, elsewhere
from dspy_stream.interop.dspy_adapter import DSPyAdapter
from dspy_stream.interop.mapped import ours
from dspy_stream.interop.passage import KEY, STRAY, Passage
from dspy_stream.lm.base import Model
from dspy_stream.modules.module import Module
from dspy_stream.modules.scope import Scope, default_lm
from dspy_stream.program import Prediction
from dspy_stream.runtime import Steps, aperform, bridge, perform

__all__ = ["DSPyModule", "is_dspy_module"]

_ON_A_LOOP: Final = ("running event loop", "event loop is already running", "a coroutine of the engine")
_ISOLATION: Final = (None, "inline", "thread")


def is_dspy_module(value: Any) -> bool:
    """True for an object of a class of DSPy's ``Module``; tells without importing DSPy."""
    return any(_is_their_module(kind) for kind in type(value).__mro__)


def _is_their_module(kind: type) -> bool:
    return kind.__name__ == "Module" and kind.__module__.partition(".")[0] == "dspy"


_NO_LIMIT: Final = 10_000  # threads of asyncify


class DSPyModule(Module):
    """A program of DSPy, as it is, as a module: ``Stream.through(program)`` makes one of it.

    It reads its inputs from the row by name, as ``forward`` or the signature names them, and its
    outputs are those of DSPy's Prediction. Every model call that a predictor makes, under whichever
    model, goes through the layers of this package and belongs to the row: journal, limits, breaker,
    budget, usage. The model is the predictor's own ``dspy.LM``, else the run's, else what
    ``dspy.configure(lm=...)`` named. DSPy's settings hold otherwise (its adapter, its callbacks), but
    for its history and cache, which have no part in these calls: ``lm.history`` stays empty. Inline, a
    program that has an ``aforward`` runs by that, as its ``acall`` would. A predictor's LM of a class of the
    user's own is refused, and so is an LM that ``forward`` calls by itself: put a ``StreamLM`` there.

    Args:
        program: a ``dspy.Module``.
        isolation: ``"inline"`` runs hundreds of rows on one thread; code that blocks (a retriever,
            a tool) holds all of them up. ``"thread"`` gives each row a thread of its own while it runs, so
            that its code may block or start threads. None is inline, where DSPy's settings follow
            the context (after 2.6), and threads from the moment that the program is seen to wait for
            threads of its own, such as those of ``dspy.Parallel``, or for a loop of its own.
        inputs: the fields that it reads, where ``forward`` takes any.
        threads: rows that have a thread at the same time; more wait for one.

    A thread cannot be stopped: a row that ran out of time ends at its next model call.

    Raises:
        ConfigurationError: it is no such program, or ``isolation`` is no choice.
    """

    def __init__(
        self,
        program: Any,
        *,
        isolation: Literal["inline", "thread"] | None = None,
        inputs: Sequence[str] | None = None,
        threads: int = 64,
    ) -> None:
        if not is_dspy_module(program):
            raise ConfigurationError(f"DSPyModule takes a dspy.Module, not {type(program).__name__}")
        if isolation not in _ISOLATION or threads < 1:
            raise ConfigurationError(f"isolation={isolation!r}, threads={threads}: no such choice")
        self.program = program
        self.isolation = isolation
        self.threads = threads
        self._inputs = tuple(inputs) if inputs is not None else None
        self._async = describe.is_async(program)
        # A loop for each row in a thread costs as much again as DSPy itself.
        self._needs_loop = describe.needs_loop(program)
        self._pasts = describe.pasts_of(program)
        self._threaded = isolation == "thread" or (isolation is None and not _context_local())
        if isolation == "inline" and not _context_local():
            raise ConfigurationError(
                "isolation='inline' needs a DSPy whose settings follow the context: 3.0 or later"
            )
        self._lms: dict[Any, Any] = {}
        self._adapters: dict[int, tuple[Any, Any]] = {}
        self._pool: ThreadPoolExecutor | None = None

    # ---------------------------------------------------------------------------- what goes in and out

    def input_names(self) -> tuple[str, ...] | None:
        """Fields that it reads; None where it takes them all."""
        return self._inputs if self._inputs is not None else describe.inputs_of(self.program)

    def required_names(self) -> tuple[str, ...]:
        """Fields without which it cannot run."""
        required = describe.required_of(self.program)
        return required if self._inputs is None else tuple(name for name in required if name in self._inputs)

    def output_names(self) -> tuple[str, ...] | None:
        """Fields that it returns; None where only a call would tell."""
        return describe.exact_outputs_of(self.program)

    def validators(self) -> Iterator[tuple[str, Any]]:
        """Validators of the outputs whose types JSON does not know, for rows that a crash has left."""
        for name, field in (describe.outputs_of(self.program) or {}).items():
            found = describe.validator_of(field.annotation)
            if found is not None:
                yield name, found

    _output_validators = validators

    def composition(self) -> Any:
        """What decides the answers: the class, the state of the parts, the code that joins them."""
        return [
            f"{type(self.program).__module__}.{type(self.program).__qualname__}",
            describe.state_of(self.program),
            describe.code_of(self.program),
            _identity() if settings.lm is None else None,
        ]

    @property
    def label(self) -> str:
        """The program's class."""
        return type(self.program).__name__

    # ------------------------------------------------------------------------------------- calling

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; blocks."""
        return perform(self.steps(self._by_name(args, kwargs)))

    async def _acall(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await aperform(self.steps(self._by_name(args, kwargs)))

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        if args:
            raise ValueError(f"call {self.label} with its inputs by name")
        return kwargs

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The program for one row as steps."""
        given = describe.given_to(inputs, self._pasts)
        if not self._threaded:
            passage = Passage("task" if self._async else "bridge")
            try:
                made = yield from self._inline(passage, given)
            except Exception as error:  # noqa: BLE001 - whatever the program raises, unless it runs once more
                passage.strayed = passage.strayed or _wants_a_loop(error)
                if not self._strayed(passage):
                    _raise(error, passage)
            else:
                if not self._strayed(passage):
                    return _prediction(made, passage)
        passage = Passage("thread")
        try:
            made = yield _ended(self._submit(passage, given), passage)
        except Exception as error:
            _raise(error, passage)
            raise
        return _prediction(made, passage)

    def _strayed(self, passage: Passage) -> bool:
        """True where the program is to run once more, in a thread; what it made so far counts for nothing."""
        if not passage.strayed:
            return False
        if self.isolation is not None:
            raise ConfigurationError(f"{self.label}: {STRAY}")
        self._threaded = True
        return True

    def _inline(self, passage: Passage, inputs: Mapping[str, Any]) -> Steps[Any]:
        if not self._async:
            return (yield from bridge(self._called, passage, inputs))
        return (yield self._awaited(passage, inputs))

    def _called(self, passage: Passage, inputs: Mapping[str, Any]) -> Any:
        passage.begin()
        with self._settings(passage):
            return self.program(**inputs)

    async def _awaited(self, passage: Passage, inputs: Mapping[str, Any]) -> Any:
        passage.begin()
        with self._settings(passage):
            return await self.program.acall(**inputs)

    def _submit(self, passage: Passage, inputs: Mapping[str, Any]) -> Future[Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, f"dspy_{self.label}")
        return self._pool.submit(contextvars.copy_context().run, self._in_thread, passage, inputs)

    def _in_thread(self, passage: Passage, inputs: Mapping[str, Any]) -> Any:
        if self._needs_loop:
            return passage.run_async(lambda: self._awaited(passage, inputs))
        return passage.run(lambda: self._called(passage, inputs))

    def _settings(self, passage: Passage) -> Any:
        import dspy  # type: ignore[import-not-found, import-untyped, unused-ignore]

        return dspy.context(
            lm=self._lm(passage.scope),
            adapter=self._adapter(passage.scope),
            trace=[],  # the process's own would keep every call of every row
            disable_history=True,
            # asyncify has one limiter for all event loops, and wakes nobody on another loop than its own: who
            # waits for it may wait for ever. The step's capacity is the limit.
            async_max_workers=max(dspy.settings.async_max_workers, _NO_LIMIT),
            **{KEY: passage},
        )

    # -------------------------------------------------------------------------- what it runs under

    def _lm(self, scope: Scope | None) -> Any:
        from dspy_stream.interop.stream_lm import StreamLM

        own = _configured() if (scope is None or scope.lm is None) and settings.lm is None else None
        model: Model = default_lm(scope) if own is None else own.source
        found = self._lms.get(model)
        if found is None:
            found = self._lms[model] = own if own is not None else StreamLM(model)
        return found

    def _adapter(self, scope: Scope | None) -> Any:
        import dspy

        from dspy_stream.interop.routed import routed

        given = scope.adapter if scope is not None else None
        theirs = given.dspy_adapter if isinstance(given, DSPyAdapter) else dspy.settings.adapter
        found = self._adapters.get(id(theirs))
        if found is None:
            made = routed(theirs if theirs is not None else dspy.ChatAdapter())
            found = self._adapters[id(theirs)] = (theirs, made)  # kept, so that its id stays its own
        return found[1]

    def check_under(self, scope: Scope) -> None:
        """Find out before any row whether every model of the program can be asked.

        Raises:
            ConfigurationError: one of them cannot, or there is none.
        """
        import dspy

        from dspy_stream.interop.stream_lm import StreamLM

        predictors = self.program.named_predictors()
        for name, part in predictors:
            if part.lm is not None:
                self._check_model(scope, name, part.lm)
        for name, part in self.program.named_sub_modules():
            for attribute, value in vars(part).items():
                wild = isinstance(value, dspy.BaseLM) and not isinstance(value, StreamLM)
                if wild and not isinstance(part, dspy.Predict):
                    raise ConfigurationError(
                        f"{self.label}: no predictor calls {name}.{attribute}, a {type(value).__name__}, so "
                        "its calls would not be journaled; put dspy_stream.interop.StreamLM(...) there"
                    )
        if not predictors or any(part.lm is None for _, part in predictors):
            scope.clients.get(self._lm(scope).source)
        self._adapter(scope)

    def _check_model(self, scope: Scope, name: str, lm: Any) -> None:
        from dspy_stream.interop.stream_lm import stream_lm

        try:
            scope.clients.get(stream_lm(lm).source)
        except ConfigurationError as error:
            raise ConfigurationError(f"predictor {name!r} of {self.label}: {error}") from error

    # -------------------------------------------------------------------------------- saved state

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The program's state, as DSPy dumps it."""
        state: dict[str, Any] = self.program.dump_state(**({} if json_mode else {"json_mode": False}))
        return state

    def state_for_workers(self) -> dict[str, Any]:
        """What was learned, for a worker process that makes the program anew; see ``elsewhere.told``."""
        return elsewhere.told(self.program, self.label, self.dump_state())

    def take_state(self, told: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_for_workers` told, in a worker process; see ``elsewhere.checked``."""
        self.load_state(elsewhere.checked(self.program, self.label, told))
        for name, part in self.program.named_predictors():
            part.config = dict(told["configs"][name])

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Take over a state, as DSPy loads it."""
        unsafe = {"allow_unsafe_lm_state": True} if allow_unsafe_lm_state else {}
        self.program.load_state(dict(state), **unsafe)

    def save(
        self,
        path: str | Path,
        save_program: bool = False,
        modules_to_serialize: Sequence[Any] | None = None,
        *,
        format: str = "dspy",
    ) -> None:
        """Write the state as JSON, as DSPy saves it.

        Raises:
            ConfigurationError: the name does not end in ``.json``, or another form is asked for. Pickles
                are not written.
        """
        if format != "dspy" or modules_to_serialize:
            raise ConfigurationError(f"{self.label} is saved by DSPy: its state, as JSON")
        self.program.save(str(_json(path, not save_program)))

    def load(self, path: str | Path, allow_pickle: bool = False, allow_unsafe_lm_state: bool = False) -> None:
        """Read a state that DSPy saved as JSON, as DSPy loads it.

        Raises:
            ConfigurationError: the name does not end in ``.json``. Pickles are not read.
        """
        del allow_pickle
        unsafe = {"allow_unsafe_lm_state": True} if allow_unsafe_lm_state else {}
        self.program.load(str(_json(path)), **unsafe)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lms": {}, "_adapters": {}, "_pool": None}

    def __repr__(self) -> str:
        return f"DSPyModule({self.label})"


def _context_local() -> bool:
    """True where DSPy's settings follow the context, so that rows can share a thread."""
    module = sys.modules.get("dspy.dsp.utils.settings")
    return isinstance(getattr(module, "thread_local_overrides", None), contextvars.ContextVar)


def _configured() -> Any:
    """The model that ``dspy.configure`` named, as one of ours; None where it named none."""
    import dspy

    from dspy_stream.interop.stream_lm import stream_lm

    found = dspy.settings.lm
    return stream_lm(found) if found is not None else None


def _identity() -> Any:
    """What that model is; the name of its class where it cannot be asked, an error only when it is."""
    import dspy

    try:
        lm = _configured()
    except ConfigurationError:
        return type(dspy.settings.lm).__qualname__
    return lm.source.identity() if lm is not None else None


def _raise(error: Exception, passage: Passage) -> None:
    found = ours(error, passage)
    raise found from found.__cause__


def _wants_a_loop(error: Exception) -> bool:
    """True where the program, or asyncio for it, found itself on a loop and wanted one of its own."""
    return isinstance(error, (RuntimeError, ValueError)) and any(said in str(error) for said in _ON_A_LOOP)


async def _ended(future: Future[Any], passage: Passage) -> Any:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        passage.write_off()
        raise


def _prediction(made: Any, passage: Passage) -> Any:
    """What the program returned, with its fields as a prediction of this package.

    Raises:
        DSPyStreamError: a call has failed in a way that concerns the flow, whatever the program made of it.
    """
    if passage.fatal is not None:
        raise passage.fatal
    store = getattr(made, "_store", None)
    if not isinstance(store, dict) or isinstance(made, Prediction):
        return made
    completions = getattr(made, "_completions", None)
    if completions is not None and len(completions) > 1:
        columns = {name: [_plain(value) for value in values] for name, values in completions.items()}
        prediction = Prediction.from_completions(columns)
    else:
        prediction = Prediction.of({name: _plain(value) for name, value in store.items()})
    used = made.get_lm_usage() if hasattr(made, "get_lm_usage") else None
    if used:
        prediction.set_lm_usage(used)
    return prediction


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind.__module__.partition(".")[0] != "dspy":
        return [_plain(item) for item in value] if kind is list else value
    if kind.__name__ in describe.TEXTS:
        return getattr(value, describe.TEXTS[kind.__name__])
    return value.toDict() if hasattr(value, "toDict") else value


def _json(path: str | Path, wanted: bool = True) -> Path:
    if not wanted or Path(path).suffix != ".json":
        raise ConfigurationError(f"{path}: a state is kept as JSON; give a name that ends in .json")
    return Path(path)
