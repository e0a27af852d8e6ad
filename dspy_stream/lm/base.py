"""The language model as a user names it: an immutable description, connected when it is needed."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Final

import orjson

from dspy_stream.clock import Clock
from dspy_stream.errors import LMConfigurationError, LMError, LMNotConfiguredError
from dspy_stream.lm.address import parse, saved
from dspy_stream.lm.backends import Backend, Keys, placed
from dspy_stream.lm.balance import Balancer
from dspy_stream.lm.cache import Journal
from dspy_stream.lm.capabilities import capabilities_of, corrected
from dspy_stream.lm.circuit import BreakerPolicy
from dspy_stream.lm.cost import PriceSource
from dspy_stream.lm.deadline import apart
from dspy_stream.lm.fallback import Alternative, Fallback
from dspy_stream.lm.forwarded import completion_of
from dspy_stream.lm.kwargs import check_options
from dspy_stream.lm.limit import Limits
from dspy_stream.lm.local import LocalLM
from dspy_stream.lm.model import CLOCK, BaseLM, Model
from dspy_stream.lm.places import Manner, connected
from dspy_stream.lm.providers import LOCAL, check_type, is_known
from dspy_stream.lm.retry import Retry
from dspy_stream.lm.saved import ENDPOINTS, LM_CLASSES, SavedLM, saved_settings, without_foreign
from dspy_stream.lm.secret import Secret
from dspy_stream.lm.settled import SettledLM
from dspy_stream.lm.several import Several
from dspy_stream.runtime import Ask, aperform, perform
from dspy_stream.types import Capabilities, Layer, Response

__all__ = ["LM", "BaseLM", "Model", "SavedLM", "resolve"]

_BREAKER: Final = BreakerPolicy()
_INNER: Final = (0, -1)  # the layers below a forward, among those kept with a model; no journal has this key


class LM(SettledLM):
    """A language model of some provider: name, options, and how to call it.

    ``model`` is ``provider/name``: ``openai/...``, ``anthropic/...``, ``gemini/...``, ``azure/...``,
    ``ollama/...`` and others, ``local/nearest``, or any name together with ``api_base=URL`` where a
    server speaks OpenAI's format. ``model_type`` is ``chat``, or ``responses`` or ``text`` where the
    provider has them. ``capabilities`` corrects what the model is known to do: a mapping such as
    ``{"tools": True}``, or all of them. The key is ``api_key`` or the
    provider's environment variable; a server on this machine needs none. It is sent to that
    server only, and is never shown or saved.

    ``timeout`` is the whole time of a call in seconds, retries and their waits included, waits for
    a permit not; ``num_retries`` more attempts follow a failure that may pass. ``cache=False``: the
    answer is not shared with other rows or runs. ``rollout_id`` asks for another answer to the same
    question. ``prices`` is a mapping from full model names to ``Price``, or a function. All other
    ``options`` are sent as they are; those that are None are not sent, nor ``temperature`` and ``top_p`` to
    OpenAI's reasoning models, which refuse them. ``n`` answers are asked for one by one where a provider
    gives fewer.

    Several places that serve the model share its calls: ``endpoints`` are :class:`Backend` s, and
    a list as ``api_key`` is several keys for one address. ``fallbacks`` are other models, asked in
    order when this one is down or a prompt is too long for it: a name takes this model's options
    along, an ``LM`` brings its own. ``breaker`` says when a place that fails is left alone, None
    for never, and ``health`` is a path below its address that must answer a GET before it is tried again.
    ``limits`` are those of the provider; what is not said is found out while running. ``callbacks``
    hear of this model's calls.
    None of these changes what is asked, or the key under which an answer is kept.

    Raises:
        LMConfigurationError: an unknown provider, a bad address, or a bad option.

    >>> lm = LM("openai/gpt-4o-mini", temperature=0.0)
    >>> lm.copy(temperature=0.7).options
    {'temperature': 0.7}
    """

    __slots__ = (
        *("api_base", "breaker", "endpoints", "fallbacks", "health", "limits", "timeout"),
        *("_able", "_prices", "_secret"),
    )

    api_base: str | None
    breaker: BreakerPolicy | None
    endpoints: tuple[Backend, ...]
    fallbacks: tuple[str | Model, ...]
    health: str | None
    limits: Limits | None
    timeout: float
    _able: Capabilities | Mapping[str, bool] | None
    _prices: PriceSource | None
    _secret: Secret | None

    def __init__(
        self,
        model: str,
        model_type: str = "chat",
        temperature: float | None = None,
        max_tokens: int | None = None,
        cache: bool = True,
        callbacks: Iterable[Any] | None = None,
        num_retries: int = 3,
        *,
        api_base: str | None = None,
        api_key: Keys = None,
        timeout: float = 120.0,
        rollout_id: int | None = None,
        prices: PriceSource | None = None,
        endpoints: Sequence[Backend] = (),
        fallbacks: Sequence[str | Model] = (),
        health: str | None = None,
        limits: Limits | None = None,
        breaker: BreakerPolicy | None = _BREAKER,
        capabilities: Capabilities | Mapping[str, bool] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, str):
            raise LMNotConfiguredError(f"a model is named 'provider/name', and not {model!r:.60}")
        api_base = options.pop("base_url", None) or api_base
        options = {"temperature": temperature, "max_tokens": max_tokens, **without_foreign(model, options)}
        if type(num_retries) is not int or num_retries < 0:
            raise LMConfigurationError(f"{model}: num_retries is a whole number from 0 on", model=model)
        if not isinstance(timeout, (int, float)) or not timeout > 0:
            raise LMConfigurationError(f"{model}: timeout is a number of seconds above 0", model=model)
        if health is not None and (breaker is None or not health.startswith("/")):
            raise LMConfigurationError(f"{model}: health is a path such as '/models', and needs a breaker")
        if model.startswith(f"{LOCAL}/"):
            LocalLM(model)
        # A subclass with a way of its own to the answer may have any name.
        placeless = bool(self.by) and api_base is api_key is None and not (endpoints or is_known(model))
        secret, several = (None, ()) if placeless else placed(model, api_base, api_key, endpoints)
        corrected(Capabilities(), capabilities)
        if not placeless and not model.startswith(f"{LOCAL}/"):
            check_type(model, model_type, api_base if not several else several[0].api_base)
        self._fill(
            model=model,
            api_base=api_base,
            breaker=breaker,
            cache=cache,
            callbacks=callbacks,
            endpoints=several,
            fallbacks=_checked(model, fallbacks),
            health=health,
            limits=limits,
            model_type=model_type,
            num_retries=num_retries,
            timeout=float(timeout),
            rollout_id=rollout_id,
            options=check_options(options),
            _able=capabilities,
            _prices=prices,
            _secret=secret,
        )

    def copy(self, **changes: Any) -> LM:
        """The same model with other settings or options; None takes an option away.

        An explicit key goes along only while the server stays the same; another address or key takes the
        place of several endpoints.
        """
        kept: dict[str, Any] = {name: getattr(self, name) for name in ("model", *_SETTINGS)}
        if not self.endpoints:
            kept |= {"api_base": self.api_base, "api_key": self._secret}
        elif not changes.keys() & {"api_base", "base_url", "api_key"}:
            kept["endpoints"] = self.endpoints
        kept |= {"prices": self._prices, "capabilities": self._able, "callbacks": self.callbacks}
        own = getattr(self, "__dict__", {})
        # A subclass may want to be made with other arguments; what it keeps goes along.
        made = object.__new__(type(self))
        LM.__init__(made, **{**kept, **self.options, **{k: v for k, v in changes.items() if k not in own}})
        if own:
            made.__dict__.update({**own, **{name: value for name, value in changes.items() if name in own}})
        return made

    def forward(
        self, prompt: str | None = None, messages: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Any:
        """Ask and return the answer in the form of OpenAI's chat completions; blocks.

        For a subclass whose own ``forward`` changes the question or the answer. Not looked up and
        not kept: that is done around ``forward``. Tried again here, and so not by whoever asks ``forward``.
        """
        with _told_tried(), apart():
            return completion_of(perform(_one(self._inner_ask(prompt, messages, kwargs))))

    async def aforward(
        self, prompt: str | None = None, messages: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Any:
        """The same from a coroutine, for a subclass's own ``aforward``."""
        with _told_tried(), apart():
            return completion_of(await aperform(_one(self._inner_ask(prompt, messages, kwargs))))

    def _inner_ask(
        self, prompt: str | None, messages: list[dict[str, Any]] | None, options: dict[str, Any]
    ) -> Ask:
        layers = self._layers
        if _INNER not in layers:
            # Of two threads, both take the first one's; it keeps the connections of all calls.
            layers.setdefault(_INNER, (None, self._own(CLOCK, random.Random())))  # noqa: S311 - spreads retries
        return Ask(layers[_INNER][1], self.request(prompt if messages is None else None, messages, **options))

    @property
    def _waits(self) -> bool:
        return type(self).aforward is not LM.aforward

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:
        replaced = type(self).forward is not LM.forward or self._waits
        return super()._paid(clock, rng) if replaced else self._own(clock, rng)

    def _own(self, clock: Clock, rng: random.Random) -> Layer:
        if not self.fallbacks:
            return self._retried(clock, rng, patient=True)
        last = len(self.fallbacks) - 1
        others = [
            self._alternative(other, clock, rng, patient=number == last)
            for number, other in enumerate(self.fallbacks)
        ]
        return Fallback(self._retried(clock, rng, patient=False), self.options, others)

    def connect(self, journal: Journal | None = None, **how: Any) -> Layer:
        """The stacked layers, and ``n`` answers also of a provider that gives one at a time."""
        made = super().connect(journal, **how)
        return made if self.by or self.model.startswith(f"{LOCAL}/") else Several(made)

    def _alternative(
        self, other: str | Model, clock: Clock, rng: random.Random, *, patient: bool
    ) -> Alternative:
        options = None if isinstance(other, str) else other.options
        if isinstance(other, str):
            other = LM(other, num_retries=self.num_retries, timeout=self.timeout, prices=self._prices)
        layer: Layer
        if isinstance(other, LM) and not other.fallbacks:
            layer = other._retried(clock, rng, patient=patient)
        elif isinstance(other, BaseLM):
            layer = other._paid(clock, rng)
        else:
            layer = other.connect(clock=clock, rng=rng)
        return Alternative(other.model, layer, options, other.capabilities)

    def _retried(self, clock: Clock, rng: random.Random, *, patient: bool) -> Layer:
        """The model without its fallbacks; ``patient``: there is nobody else to ask meanwhile."""
        core = self._core(clock, rng, patient=patient)
        return Retry(
            core, num_retries=self.num_retries, timeout=self.timeout, clock=clock, rng=rng, patient=patient
        )

    def _core(self, clock: Clock, rng: random.Random, *, patient: bool) -> Layer:
        if self.model.startswith(f"{LOCAL}/"):
            return LocalLM(self.model).core(clock)
        places = self.endpoints or (Backend(self.api_base, self._secret),)
        manner = Manner(
            model=self.model,
            model_type=self.model_type,
            options=self.options,
            timeout=self.timeout,
            prices=self._prices,
            limits=self.limits,
            breaker=self.breaker,
            health=self.health,
            patient=patient,
        )
        members = [connected(place, manner, clock=clock, rng=rng) for place in places]
        return (
            members[0].layer
            if len(members) == 1
            else Balancer(members, name=self.model, clock=clock, rng=rng)
        )

    def identity(self) -> dict[str, Any]:
        """What decides the answers: name and options. Not the server: it is the same model at another one."""
        made = super().identity()
        if self.model_type != "chat":
            made["model_type"] = self.model_type
        return made

    @property
    def capabilities(self) -> Capabilities:
        """What the model is known to do beyond text, as corrected by ``capabilities=``."""
        return corrected(capabilities_of(self.model, self.model_type), self._able)

    def dump_state(self) -> dict[str, Any]:
        """The saved form, in DSPy's layout; no key, and of an address no query but its version."""
        state = {**super().dump_state(), "model_type": self.model_type, "num_retries": self.num_retries}
        if self.api_base is not None:
            state["api_base"] = saved(self.api_base)
        if any(place.api_base is not None for place in self.endpoints):
            state["endpoints"] = [saved(o.api_base) if o.api_base else None for o in self.endpoints]
        if self.fallbacks:
            state["fallbacks"] = [o if isinstance(o, str) else o.dump_state() for o in self.fallbacks]
        if self.health is not None:
            state["health"] = self.health
        if self.limits is not None:
            state["limits"] = asdict(self.limits)
        if self.breaker != _BREAKER:
            state["breaker"] = None if self.breaker is None else asdict(self.breaker)
        return state

    @classmethod
    def load_state(cls, state: Mapping[str, Any], *, servers: bool = False) -> BaseLM:
        """A model from its saved form, DSPy's too; of a subclass, one of it.

        A saved model that names its own server, or a provider that is not known here, can be
        loaded but not connected: a file does not decide where data is sent, unless ``servers`` says
        that this one may. So is one with options that are not sent, such as ``headers``.

        Raises:
            LMConfigurationError: the state is not that of a model.
        """
        name = state.get("model")
        if not isinstance(name, str) or not name:
            raise LMConfigurationError("the saved model has no name")
        address = state.get("api_base") or state.get("base_url")
        given: dict[str, Any] = {}
        if servers and isinstance(address, str) and not (state.get("model_list") or state.get("endpoints")):
            given["api_base"] = address
        elif any(state.get(place) for place in ENDPOINTS):
            return SavedLM(state, "it names a server of its own, and servers are not taken from files")
        kind = state.get("_dspy_lm_class")
        if cls is LM and not given and kind not in LM_CLASSES:
            return SavedLM(state, f"it is a {kind}, and classes are not taken from files")
        try:
            return cls(name, **given, **saved_settings(state, LM.load_state))
        except (LMConfigurationError, TypeError) as error:
            return SavedLM(state, str(error))

    def _compared(self) -> tuple[Any, ...]:
        options = orjson.dumps(dict(self.options), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        settings = [getattr(self, name) for name in _SETTINGS]
        return (self.model, self.api_base, options, self.endpoints, self._able, *settings)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LM):
            return NotImplemented
        if self is other:
            return True
        same = self._compared() == other._compared() and self._prices is other._prices
        kept = getattr(self, "__dict__", {}) == getattr(other, "__dict__", {})
        return same and kept and type(self) is type(other) and self._secret == other._secret

    def __hash__(self) -> int:
        return hash((self.model, self.api_base, self.rollout_id))

    def __repr__(self) -> str:
        shown = [repr(self.model)]
        if self.api_base is not None:
            shown.append(f"api_base={parse(self.api_base).origin!r}")
        if self.endpoints:
            shown.append(f"endpoints={len(self.endpoints)}")
        if self.fallbacks:
            shown.append(f"fallbacks={[o if isinstance(o, str) else o.model for o in self.fallbacks]}")
        return f"LM({', '.join([*shown, *(f'{name}={value!r}' for name, value in self.options.items())])})"


@contextmanager
def _told_tried() -> Iterator[None]:
    """Errors say that what may pass was tried again already."""
    try:
        yield
    except LMError as error:
        error.tried = True
        raise


def _one(asked: Ask) -> Generator[Ask, Response, Response]:
    response = yield asked
    return response


_SETTINGS: Final = (
    *("cache", "num_retries", "timeout", "rollout_id", "fallbacks", "health", "breaker", "limits"),
    "model_type",
)


def _checked(model: str, fallbacks: Sequence[str | Model]) -> tuple[str | Model, ...]:
    """Fallbacks that are models, or the names of some."""
    if isinstance(fallbacks, str):
        raise LMConfigurationError(f"{model}: fallbacks is a list of models, not {fallbacks!r}", model=model)
    for other in fallbacks:
        resolve(other)
    return tuple(fallbacks)


@lru_cache(maxsize=64)
def _named(name: str) -> Model:
    return LM(name)


def resolve(model: str | Model | None) -> Model:
    """A model from its name; a model is returned as it is.

    Raises:
        LMNotConfiguredError: no model was named.
        LMConfigurationError: no provider of that name, or not a model at all.

    >>> resolve("local/nearest")
    LM('local/nearest')
    """
    if model is None or model == "":
        raise LMNotConfiguredError("no model was named; pass lm='provider/name', or configure(lm=...)")
    if isinstance(model, str):
        return _named(model)
    if isinstance(model, (BaseLM, Model)):
        return model
    raise LMConfigurationError(f"{type(model).__name__} is not a model: pass a name or an LM")
