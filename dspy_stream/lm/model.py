"""What every model is to the rest of the package, and how it is called directly."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TextIO, runtime_checkable

from dspy_stream.clock import Clock, SystemClock
from dspy_stream.configuration import settings
from dspy_stream.errors import LMConfigurationError
from dspy_stream.events import Callbacks
from dspy_stream.history import History, HistoryOf, outputs_of, print_history
from dspy_stream.lm.cache import DictJournal, Journal, direct
from dspy_stream.lm.cost import Price, price_of
from dspy_stream.lm.deadline import apart
from dspy_stream.lm.forwarded import Forwarded, seconds_of
from dspy_stream.lm.kwargs import Kwargs, check_options
from dspy_stream.lm.retry import Retry
from dspy_stream.lm.stack import Wrap, stack
from dspy_stream.types import Capabilities, Head, Layer, Message, Request, Response, turns_of
from dspy_stream.usage import note

if TYPE_CHECKING:
    from dspy_stream.runtime import Ask

__all__ = ["CLOCK", "BaseLM", "Lane", "Model", "check_options"]

CLOCK: Final = SystemClock()

Lane = Callable[["Model"], Layer]
"""Another way to a model's answers than a call for each."""

_WAYS: Final = ("forward", "aforward", "__call__", "acall")
_HERE: Final = __name__.partition(".")[0]


@runtime_checkable
class Model(Protocol):
    """What a predictor needs of a model; ``LM``, ``LocalLM`` and ``ScriptedLM`` are models.

    Models are hashable, and equal where they would be asked the same things in the same way.
    """

    @property
    def model(self) -> str:
        """The full name, ``provider/name``."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Options sent with every request."""
        ...

    @property
    def by(self) -> str:
        """The user's class that answers, where it does so in a way of its own; part of what is asked."""
        ...

    @property
    def cache(self) -> bool:
        """Whether answers may be shared between rows."""
        ...

    @property
    def rollout_id(self) -> int | None:
        """Which of several answers to the same question is asked for."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the model is known to do beyond answering in text."""
        ...

    def connect(
        self,
        journal: Journal | None = None,
        *,
        clock: Clock = CLOCK,
        rng: random.Random | None = None,
        wrap: Wrap | None = None,
        lane: Lane | None = None,
    ) -> Layer:
        """The stacked layers of the model; does no I/O."""
        ...

    def identity(self) -> dict[str, Any]:
        """What decides the answers, as JSON: name and options; no server and no key."""
        ...

    def dump_state(self) -> dict[str, Any]:
        """The saved form; no key."""
        ...


class BaseLM:
    """A model of one's own: a subclass with a ``forward`` that asks whatever it likes.

    ``forward(prompt=None, messages=None, **kwargs)`` returns an object or a dict in the form of
    OpenAI's chat completions (text completions and responses too), or plain text. It is called in a
    thread and may block; ``async def aforward`` goes before it and runs on the engine's loop. ``messages``
    is always given, ``prompt`` too where the question is a single text; ``kwargs`` are the options in
    which the call differs from the model's own, ``self.kwargs``, None for one that it takes away:
    ``{**self.kwargs, **kwargs}`` are all. What it raises is raised by the call; an ``LMError``
    that may pass is tried again ``num_retries`` times. A call has ``timeout`` seconds, an attribute of the
    class or the model, or an option: 120 where nobody says otherwise; one that hangs is an
    ``LMTimeoutError``.

    A subclass keeps attributes of its own. Those set here do not change later, but for who
    listens: ``callbacks`` is a list, and ``history`` holds the latest calls. With ``cache=True`` answers
    are kept and given again, also to other models of the same name and options; so it is off by default, and
    each call reaches ``forward``.

    >>> class Echo(BaseLM):
    ...     def forward(self, prompt=None, messages=None, **kwargs):
    ...         return {"choices": [{"message": {"content": messages[-1]["content"].upper()}}]}
    >>> Echo("mine/echo")("hello")
    ['HELLO']
    """

    __slots__ = (
        *("_history", "_layers", "cache", "callbacks", "model", "model_type", "num_retries", "options"),
        "rollout_id",
    )

    history = HistoryOf()
    timeout: float = 120.0

    model: str
    model_type: str
    options: Mapping[str, Any]
    cache: bool
    num_retries: int
    rollout_id: int | None
    callbacks: Callbacks
    _history: History
    _layers: dict[tuple[int, int], tuple[Journal | None, Layer]]

    _by: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.keys().isdisjoint(_WAYS) and cls.__module__.partition(".")[0] != _HERE:
            cls._by = cls.__qualname__  # else it would be given the answers of the class it is made from

    @property
    def by(self) -> str:
        """The subclass that has a way of its own to an answer; empty for models of this package."""
        return self._by

    def __new__(cls, *_args: Any, **_kwargs: Any) -> BaseLM:
        """A model whose ``__init__`` may leave out to call this class's own."""
        made = super().__new__(cls)
        made._fill(model=cls.__name__, options={}, cache=False, rollout_id=None)
        return made

    def __init__(
        self,
        model: str,
        model_type: str = "chat",
        temperature: float | None = None,
        max_tokens: int | None = None,
        cache: bool = False,
        callbacks: Iterable[Any] | None = None,
        num_retries: int = 3,
        **kwargs: Any,
    ) -> None:
        self._fill(
            model=model,
            model_type=model_type,
            cache=cache,
            callbacks=callbacks,
            num_retries=num_retries,
            rollout_id=kwargs.pop("rollout_id", None),
            options=check_options({"temperature": temperature, "max_tokens": max_tokens, **kwargs}),
        )

    def _fill(self, **values: Any) -> None:
        values = {"model_type": "chat", "num_retries": 0, **values}
        values["callbacks"] = Callbacks(values.get("callbacks"))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_layers", {})

    @property
    def capabilities(self) -> Capabilities:
        """What the model is known to do beyond text, as its ``supports_...`` properties say."""
        return Capabilities(
            structured_outputs=self.supports_response_schema,
            json_mode="response_format" in self.supported_params,
            tools=self.supports_function_calling,
            reasoning=self.supports_reasoning,
            thoughts=self.supports_reasoning,
        )

    @property
    def supports_function_calling(self) -> bool:
        """Whether the model takes tools as such."""
        return False

    @property
    def supports_reasoning(self) -> bool:
        """Whether it thinks before it answers, and can be told how hard."""
        return False

    @property
    def supports_response_schema(self) -> bool:
        """Whether its answers can be held to a JSON schema."""
        return False

    @property
    def supported_params(self) -> set[str]:
        """Names of options that it is known to take; ``response_format`` says that it has a JSON mode."""
        return set()

    @property
    def kwargs(self) -> dict[str, Any]:
        """The options, under DSPy's name; ``temperature`` and ``max_tokens`` are None where not given."""
        rollout = {} if self.rollout_id is None else {"rollout_id": self.rollout_id}
        return Kwargs({**self.options, **rollout})

    @kwargs.setter
    def kwargs(self, given: Mapping[str, Any]) -> None:
        self.options = check_options(given)

    def forward(
        self, prompt: str | None = None, messages: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Any:
        """What a subclass answers; see the class."""
        raise NotImplementedError(f"{type(self).__name__} has neither forward nor aforward")

    async def aforward(
        self, prompt: str | None = None, messages: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Any:
        """The same for a model that waits without blocking."""
        raise NotImplementedError(f"{type(self).__name__} has no aforward")

    def price(self) -> Price | None:
        """What a call costs; None where that is not known."""
        return price_of(self.model, getattr(self, "_prices", None))

    def copy(self, **changes: Any) -> BaseLM:
        """The same model with other settings or options; None takes an option away."""
        settings = set(slots(type(self)))
        kept = {name: getattr(self, name) for name in settings if name not in ("_layers", "_history")}
        kept |= getattr(self, "__dict__", {})
        changed = {name: value for name, value in changes.items() if name in kept}
        others = {name: value for name, value in changes.items() if name not in kept}
        kept["options"] = check_options({**self.options, **others})
        made = object.__new__(type(self))
        made._fill(**{**kept, **changed})
        return made

    def connect(
        self,
        journal: Journal | None = None,
        *,
        clock: Clock = CLOCK,
        rng: random.Random | None = None,
        wrap: Wrap | None = None,
        lane: Lane | None = None,
    ) -> Layer:
        """The stacked layers: single flight, cache (where there is a journal), ``wrap``, the model's own.

        ``lane`` stands in for the model's own layers: another way to the same answers. Does no I/O.

        Raises:
            LMConfigurationError: the model cannot be called with its settings.
        """
        rng = rng if rng is not None else random.Random()  # noqa: S311  spreads retries; not cryptography
        if lane is not None:
            paid = lane(self)
        elif type(self).__call__ is not BaseLM.__call__:
            acall = self.acall if type(self).acall is not BaseLM.acall else None
            paid = Forwarded(self.__call__, acall, timeout=self._seconds(), own=self.kwargs)
        else:
            paid = self._paid(clock, rng)
        return stack(paid, journal, self.model, wrap)

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:
        """The model's own layers, retries included."""
        seconds = self._seconds()
        aforward = self.aforward if self._waits else None
        asked = Forwarded(self.forward, aforward, timeout=seconds, own=self.kwargs)
        return Retry(asked, num_retries=self.num_retries, timeout=seconds, clock=clock, rng=rng)

    @property
    def _waits(self) -> bool:
        """Whether a subclass has an ``aforward`` of its own, which goes before its ``forward``."""
        return type(self).aforward is not BaseLM.aforward

    def _seconds(self) -> float:
        return seconds_of(self.options.get("timeout"), seconds_of(self.timeout, BaseLM.timeout))

    def identity(self) -> dict[str, Any]:
        """What decides the answers, as JSON: name and options."""
        made: dict[str, Any] = {"model": self.model, "options": dict(self.options)}
        if self.rollout_id is not None:
            made["rollout_id"] = self.rollout_id
        return made

    def dump_state(self) -> dict[str, Any]:
        """The saved form, in DSPy's layout; no key."""
        kind = type(self)
        state = {
            "_dspy_lm_class": f"{kind.__module__}.{kind.__qualname__}",
            "model": self.model,
            "model_type": self.model_type,
            "cache": self.cache,
            "num_retries": self.num_retries,
            **self.options,
        }
        if self.rollout_id is not None:
            state["rollout_id"] = self.rollout_id
        return state

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> BaseLM:
        """A model from its saved form: called on a subclass, one of it; no class is looked up by its name."""
        if cls is BaseLM:
            from dspy_stream.lm.base import LM

            return LM.load_state(state)
        return cls(**{name: value for name, value in state.items() if name != "_dspy_lm_class"})

    def __call__(
        self, prompt: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> list[Any]:
        """Ask once and return all completions; blocks the calling thread.

        Each is a text, or a dict with ``text`` and what came beside it: ``reasoning_content``,
        ``tool_calls``, ``logprobs``, ``citations``. Inside a module's ``forward`` it waits as any other
        model call there does.

        ``options`` go before the model's own for this call, ``cache`` and ``rollout_id`` included.

        Raises:
            LMError: the call failed for good.
        """
        from dspy_stream import runtime

        return runtime.perform(self._ask(self.request(prompt, messages, **options), prompt))

    async def acall(
        self, prompt: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> list[Any]:
        """The same from a coroutine, on any event loop."""
        from dspy_stream import runtime

        return await runtime.aperform(self._ask(self.request(prompt, messages, **options), prompt))

    def request(
        self, prompt: str | None = None, messages: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> Request:
        """The request that a call with these arguments makes.

        Raises:
            LMConfigurationError: not one of prompt and messages, or a message without role or content.
        """
        if (prompt is None) == (messages is None):
            raise LMConfigurationError("pass a prompt, or messages=[...]: one of the two")
        if not isinstance(prompt, (str, NoneType)):
            raise LMConfigurationError(f"a prompt is a text; messages=[...] takes turns: {prompt!r:.80}")
        try:
            tail = turns_of(messages) if messages is not None else (Message("user", prompt or ""),)
        except ValueError as error:
            raise LMConfigurationError(str(error)) from None
        merged = {**self.options, **options}
        cache = bool(merged.pop("cache", self.cache))
        rollout_id = merged.pop("rollout_id", self.rollout_id)
        if rollout_id is not None and merged.get("temperature") == 0:
            words = "rollout_id has no effect at temperature 0: it pays for the same answer again"
            warnings.warn(words, stacklevel=3)
        return Request(Head(self.model, (), check_options(merged), by=self.by), tail, rollout_id, cache)

    def _ask(self, request: Request, prompt: str | None) -> Generator[Ask, Response, list[Any]]:
        from dspy_stream.telling import put  # what loads with it is wanted from the first call on

        with apart():
            response = yield from put(self, self._connected(), request, prompt=prompt)
        note(self.model, response)
        return outputs_of(response, self.model_type)

    def inspect_history(self, n: int = 1, file: TextIO | None = None) -> None:
        """Print the last ``n`` calls of this model; see :func:`dspy_stream.inspect_history`."""
        print_history(self.history, n, file)

    def _connected(self) -> Layer:
        """The layers for calls outside any program, one stack a journal, kept with the model."""
        journal: Journal | None = settings.journal
        key = (id(journal), direct())
        found = self._layers.get(key)
        if found is None:
            # The journal is kept beside its layers, so that its id stays its own.
            from dspy_stream.lm.charged import InForce
            from dspy_stream.lm.reserve import meter_of

            kept: Journal = journal if journal is not None else DictJournal()
            # A subclass's own __call__ is what calls this, so its answers are not asked for again.
            rng = random.Random()  # noqa: S311  spreads retries; not cryptography
            layer = self.connect(
                kept,
                rng=rng,
                wrap=lambda _name, paid: InForce(paid, meter_of(self)),
                lane=lambda _lm: self._paid(CLOCK, rng),
            )
            found = self._layers[key] = (journal, layer)
        return found[1]

    def __copy__(self) -> BaseLM:
        return self

    def __deepcopy__(self, memo: object) -> BaseLM:
        return self  # immutable: a copied module asks the same model


def slots(kind: type) -> list[str]:
    return [name for base in kind.__mro__ for name in base.__dict__.get("__slots__", ())]
