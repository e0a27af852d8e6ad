"""The base of everything callable with fields.

A subclass sets its parts in ``__init__`` and combines them in ``forward`` (plain synchronous
Python) or ``aforward``. In a script the module is called and answers; in a flow many rows run
through the same object at once, so ``forward`` keeps what belongs to a row in local variables.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TextIO, TypeVar

from dspy_stream import callbacks as _callbacks  # noqa: F401 - from now on callbacks are told
from dspy_stream import events
from dspy_stream.configuration import settings
from dspy_stream.events import ROW, Callbacks
from dspy_stream.history import HistoryOf, print_history
from dspy_stream.modules import walking
from dspy_stream.modules.calls import calling_within, counted, entered, forwarded, own_forward, taking
from dspy_stream.modules.made import Made
from dspy_stream.program import Example
from dspy_stream.program.refusals import NoProgram, SavedStateError
from dspy_stream.program.watch import watched
from dspy_stream.runtime import Steps, bridge, perform
from dspy_stream.usage import track_usage

if TYPE_CHECKING:
    from dspy_stream.lm.base import Model
    from dspy_stream.modules.compose import Pipeline
    from dspy_stream.modules.part import Part
    from dspy_stream.modules.predict import Predict

__all__ = ["BaseModule", "Module"]

M = TypeVar("M", bound="Module")

_OWN: Final = ("_callbacks", "_history")  # of one instance, and not of its copies


class Module(Made):
    """A program, or a part of one: called with fields, returns a :class:`Prediction`.

    >>> from dspy_stream.program import Example, Prediction
    >>> class Shout(Module):
    ...     def forward(self, text):
    ...         return Prediction(loud=text.upper())
    >>> Shout()(text="hello").loud
    'HELLO'
    """

    history = HistoryOf()
    _compiled = False

    def __init__(self, callbacks: Iterable[Any] | None = None) -> None:
        if callbacks:
            self.callbacks = Callbacks(callbacks)

    _holds: ClassVar[bool] = False  # a resource, by ``open`` and ``close``
    _own_call: ClassVar[bool] = False  # a ``__call__`` of its own, by which steps and parts call it, too

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if inspect.iscoroutinefunction(cls.__dict__.get("forward")):
            raise TypeError(f"{cls.__qualname__}.forward is a coroutine function; name it aforward")
        cls._own_call = cls.__call__ is not Module.__call__
        cls._holds = all(callable(getattr(cls, name, None)) for name in ("open", "close"))

    @property
    def callbacks(self) -> Callbacks:
        """Who hears of this module's own calls: a list of :class:`~dspy_stream.callbacks.BaseCallback`."""
        found: Callbacks = self.__dict__.setdefault("_callbacks", Callbacks())
        return found

    @callbacks.setter
    def callbacks(self, callbacks: Iterable[Any] | None) -> None:
        self.__dict__["_callbacks"] = Callbacks(callbacks)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OWN}

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the program and return its result; blocks until every model call is done.

        Inside a flow, or inside another module's ``forward``, it does not block the thread:
        other rows go on while this one waits.
        """
        if not events.active and ROW.get() is not None:  # a flow's row, and nobody listens
            return self._run(args, kwargs)
        with entered(self, args, kwargs) as call:
            call.outputs = self._run(args, kwargs)
        return call.outputs

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with watched("module", self, {"args": args, "kwargs": kwargs}) as told:
            if settings.track_usage:
                with track_usage() as tracker:
                    told.outputs = counted(self._call(args, kwargs), tracker)
            else:
                told.outputs = self._call(args, kwargs)
        return told.outputs

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._holds and (steps := calling_within(self, args, kwargs)) is not None:
            return perform(steps)
        if self._only_async():
            return perform(self._async_steps(args, kwargs))
        return self.forward(*args, **kwargs)

    async def acall(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the program from a coroutine; a synchronous ``forward`` does not block the loop."""
        if not events.active and ROW.get() is not None:
            return await self._arun(args, kwargs)
        with entered(self, args, kwargs) as call:
            call.outputs = await self._arun(args, kwargs)
        return call.outputs

    async def _arun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with watched("module", self, {"args": args, "kwargs": kwargs}) as told:
            if settings.track_usage:
                with track_usage() as tracker:
                    told.outputs = counted(await self._acall(args, kwargs), tracker)
            else:
                told.outputs = await self._acall(args, kwargs)
        return told.outputs

    async def _acall(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        from dspy_stream.runtime import aperform

        if self._holds and (steps := calling_within(self, args, kwargs)) is not None:
            return await aperform(steps)
        if self._has_aforward():
            return await self.aforward(*args, **kwargs)
        return await aperform(bridge(self.forward, *args, **kwargs))

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - a subclass takes them
        """The program, in plain Python. Subclasses define this or ``aforward``."""
        raise NoProgram(f"{type(self).__name__} defines neither forward nor aforward")

    async def aforward(self, *args: Any, **kwargs: Any) -> Any:
        """The program as a coroutine; where none is defined, ``forward``, which does not block the loop.

        ``acall`` and flows prefer it where it is defined.
        """
        from dspy_stream.runtime import aperform

        return await aperform(bridge(own_forward(self), *args, **kwargs))

    def _has_aforward(self) -> bool:
        return type(self).aforward is not Module.aforward or "aforward" in self.__dict__

    def _only_async(self) -> bool:
        return self._has_aforward() and type(self).forward is Module.forward

    def _async_steps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Steps[Any]:
        result = yield events.within(self.aforward(*args, **kwargs))
        return result

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The program for one row as steps, for a driver; see :mod:`dspy_stream.runtime`."""
        if self._has_aforward():
            return self._async_steps((), inputs)
        return forwarded(self.forward, inputs)

    def has_program(self) -> bool:
        """Whether it says what to do with a row, by a ``forward`` or in another way."""
        kind = type(self)
        own = kind.forward is not Module.forward or kind.steps is not Module.steps or self._own_call
        return own or self._has_aforward() or "forward" in self.__dict__

    def input_names(self) -> tuple[str, ...] | None:
        """Names of the fields the program reads from a row; None where it takes them all."""
        names = []
        for parameter in inspect.signature(taking(self)).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                return None
            if parameter.kind is not parameter.VAR_POSITIONAL:
                names.append(parameter.name)
        return tuple(names)

    def required_names(self) -> tuple[str, ...]:
        """Names of the fields without which the program cannot run."""
        return tuple(
            parameter.name
            for parameter in inspect.signature(taking(self)).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        )

    def output_names(self) -> tuple[str, ...] | None:
        """Names of the fields that the program returns; None where only a call would tell."""
        return None

    def __or__(self, other: Any) -> Pipeline:
        """``first | second``: the second reads the record with the outputs of the first."""
        from dspy_stream.modules.compose import Pipeline

        return Pipeline(self, other)

    def __ror__(self, other: Any) -> Pipeline:
        from dspy_stream.modules.compose import Pipeline

        return Pipeline(other, self)

    def using(self, **options: Any) -> Part:
        """This module as a part with options: ``retries``, ``timeout``, ``fallback``, ``capacity``...

        See :class:`~dspy_stream.modules.part.PartOptions`.
        """
        from dspy_stream.modules.part import Part

        return Part(self).using(**options)

    def batch(
        self,
        examples: Sequence[Any],
        num_threads: int | None = None,
        max_errors: int | None = None,
        return_failed_examples: bool = False,
        provide_traceback: bool | None = None,
        disable_progress_bar: bool = False,
        timeout: float | None = 120,
        straggler_limit: int = 3,
    ) -> Any:
        """The results for many examples, in order; several are worked on at a time.

        The arguments are those of :class:`~dspy_stream.modules.parallel.Parallel`. An example is
        called with its inputs, a dict with all its fields.

        Raises:
            ValueError: nobody has said which fields of an example are its inputs; nothing was run.
            ParallelFailed: ``max_errors`` examples failed; it has the results.
        """
        from dspy_stream.modules.parallel import Parallel

        for example in examples:
            if isinstance(example, Example):
                example.inputs()
        parallel = Parallel(
            num_threads=num_threads,
            max_errors=max_errors,
            return_failed_examples=return_failed_examples,
            provide_traceback=provide_traceback,
            disable_progress_bar=disable_progress_bar,
            timeout=timeout,
            straggler_limit=straggler_limit,
        )
        # Not called as a module: callbacks hear of the rows, and of no call around them.
        return parallel.forward([(self, example) for example in examples])

    def inspect_history(self, n: int = 1, file: TextIO | None = None) -> None:
        """Print the last ``n`` model calls made in this module; see :func:`dspy_stream.inspect_history`."""
        print_history(self.history, n, file)

    # -------------------------------------------------------------------------- walking the parts

    def named_sub_modules(
        self, type_: type[Any] | None = None, skip_compiled: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """This module and every module below it, with dotted names, the nearest first.

        Lists, tuples and dicts are searched too: ``self.parts[0]``, ``self.parts[key]``. The top is
        named ``self``. A part that is reached twice is named once. With ``skip_compiled`` the parts
        of frozen modules are left out.
        """
        kind = type_ if type_ is not None else Module
        return walking.named_sub_modules(self, kind, skip_compiled=skip_compiled)

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Every part that can be learned, by name. A Predict itself is named ``self``.

        Parts that are frozen (``_compiled`` is true), other than this module, are left out.
        """
        from dspy_stream.modules.predict import Predict

        return walking.learnable(self, Predict)

    def parameters(self) -> list[Any]:
        """The learnable parts, without their names."""
        return [part for _, part in self.named_parameters()]

    def named_predictors(self) -> list[tuple[str, Predict]]:
        """Every Predict below this module, by name."""
        from dspy_stream.modules.predict import Predict

        return [(name, part) for name, part in self.named_parameters() if isinstance(part, Predict)]

    def predictors(self) -> list[Predict]:
        """Every Predict below this module."""
        return [part for _, part in self.named_predictors()]

    def map_named_predictors(self: M, func: Callable[[Predict], Predict]) -> M:
        """Replace every predictor by ``func(predictor)``, in place, and return this module."""
        for predictor in self.predictors():
            changed = func(predictor)
            if changed is not predictor:
                walking.replace(self, predictor, changed)
        return self

    def set_lm(self, lm: Model | str | None) -> None:
        """Let every predictor below use this model."""
        from dspy_stream.lm.base import resolve

        model = resolve(lm) if lm is not None else None
        for predictor in self.predictors():
            predictor.lm = model

    def get_lm(self) -> Model | None:
        """The one model that all predictors use; None where they use the one that is configured.

        Raises:
            ValueError: they use several, or there is no predictor.
        """
        models = [predictor.lm for predictor in self.predictors()]
        if not models or any(model != models[0] for model in models):
            what = "Multiple LMs are being used in the module." if models else "The module has no predictor."
            raise ValueError(f"{what} There's no unique LM to return.")
        return models[0]

    def with_lm(self: M, lm: Model | str | None) -> M:
        """A copy of this module whose predictors use this model."""
        made = self.deepcopy()
        made.set_lm(lm)
        return made

    # ------------------------------------------------------------------------------------- copies

    def deepcopy(self: M) -> M:
        """A copy whose parts are copies too; what cannot be copied is shared.

        A part that is reached by several ways is still one part in the copy.
        """
        return copy.deepcopy(self)

    def __deepcopy__(self: M, memo: dict[int, Any]) -> M:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        for name, value in self.__getstate__().items():
            try:
                made.__dict__[name] = copy.deepcopy(value, memo)
            except Exception:  # noqa: BLE001, PERF203 - arbitrary user objects: a client or a lock refuses in its own way
                made.__dict__[name] = value
        return made

    def reset_copy(self: M) -> M:
        """A copy without what was learned: no demos, no traces, no model of its own."""
        made = self.deepcopy()
        for predictor in made.predictors():
            predictor.reset()
        return made

    # --------------------------------------------------------------------------------- saved state

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The learnable state by parameter name, in DSPy's layout; without ``json_mode`` not made JSON."""
        given = {} if json_mode else {"json_mode": False}  # a predictor of one's own may not take it
        return {name: part.dump_state(**given) for name, part in self.named_parameters()}

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> Any:
        """Take over a state in DSPy's layout; all of it or, on any error, nothing.

        Raises:
            ConfigurationError: names are missing or unknown, or a part does not fit.
        """
        from dspy_stream.modules.saving import apply_state

        apply_state(self, state, unsafe=allow_unsafe_lm_state)

    def save(
        self,
        path: str | Path,
        save_program: bool = False,
        modules_to_serialize: Sequence[Any] | None = None,
        *,
        format: str = "dspy",
    ) -> None:
        """Write the learnable state as JSON; the file is replaced whole or not at all.

        Args:
            path: a name that ends in ``.json``; with ``save_program`` also a folder.
            save_program: write the program itself too, where it is built of this package's parts;
                :func:`~dspy_stream.modules.saving.load` reads it.
            modules_to_serialize: for DSPy's pickles, which are not written; refused where given.
            format: ``dspy`` is what DSPy reads, by position; ``dspy_stream`` names every field and
                has a version and a digest.

        Raises:
            ConfigurationError: the path, the format or a part cannot be saved. Pickles are not written.
        """
        from dspy_stream.modules.saving import save

        if modules_to_serialize:
            raise SavedStateError("modules_to_serialize is for pickles, which are not written")
        save(self, Path(path), whole=save_program, form=format)

    def load(self, path: str | Path, allow_pickle: bool = False, allow_unsafe_lm_state: bool = False) -> None:
        """Read a state written by :meth:`save` or by DSPy.

        Args:
            allow_pickle: pickles are never read, whatever it says.
            allow_unsafe_lm_state: let the file say to which server the calls of its models go.

        Raises:
            ConfigurationError: the file is not such a state, or does not fit this program.
        """
        from dspy_stream.modules.saving import restore

        del allow_pickle
        restore(self, Path(path), unsafe=allow_unsafe_lm_state)

    def __repr__(self) -> str:
        parts = [f"{name} = {part!r}" for name, part in self.named_predictors()]
        return "\n".join(parts) if parts else f"{type(self).__name__}()"


BaseModule = Module  # DSPy has two classes here, and programs ask isinstance of either
