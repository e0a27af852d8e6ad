"""The language model as a user names it: an immutable description, connected when it is needed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import orjson

from dspy_stream.clock import Clock
from dspy_stream.errors import LMConfigurationError, LMNotConfiguredError
from dspy_stream.lm.address import parse
from dspy_stream.lm.client import Client
from dspy_stream.lm.cost import PriceSource, price_of
from dspy_stream.lm.local import LocalLM
from dspy_stream.lm.model import BaseLM, Model, check_options
from dspy_stream.lm.providers import LOCAL, find, locate
from dspy_stream.lm.retry import Retry
from dspy_stream.lm.secret import Secret
from dspy_stream.types import Layer

__all__ = ["LM", "BaseLM", "Model", "SavedLM", "resolve"]

_ENDPOINTS: Final = ("api_base", "base_url", "model_list")
# What a saved model may hold beside its options. Where requests and keys go is never read from a file.
_NOT_OPTIONS: Final = frozenset(_ENDPOINTS) | {
    *("model", "model_type", "cache", "num_retries", "rollout_id", "timeout", "api_key"),
    *("_dspy_lm_class", "finetuning_model", "launch_kwargs", "train_kwargs", "engine", "async_engine"),
    *("prompt_cache", "use_developer_role", "provider"),
}


class LM(BaseLM):
    """A language model behind OpenAI's chat-completions format: name, options, and how to call it.

    ``model`` is ``provider/name``: ``openai/...``, ``hosted_vllm/...``, ``ollama/...``,
    ``local/nearest``, or any name together with ``api_base=URL``. The key is ``api_key`` or the
    provider's environment variable; a server on this machine needs none. It is sent to that
    server only, and is never shown or saved.

    ``timeout`` is the whole time of a call in seconds, retries and their waits included;
    ``num_retries`` more attempts follow a failure that may pass. ``cache=False``: the answer
    is not shared with other rows or runs. ``rollout_id`` asks for another answer to the same
    question. ``prices`` is a mapping from full model names to ``Price``, or a function. All other
    ``options`` are sent as they are; those that are None are not sent.

    Raises:
        LMConfigurationError: an unknown provider, a bad address, or a bad option.

    >>> lm = LM("openai/gpt-4o-mini", temperature=0.0)
    >>> lm.copy(temperature=0.7).options
    {'temperature': 0.7}
    """

    __slots__ = ("_prices", "_secret", "api_base", "num_retries", "timeout")

    api_base: str | None
    num_retries: int
    timeout: float
    _prices: PriceSource | None
    _secret: Secret | None

    def __init__(
        self,
        model: str,
        *,
        api_base: str | None = None,
        api_key: str | Secret | None = None,
        cache: bool = True,
        num_retries: int = 3,
        timeout: float = 120.0,
        rollout_id: int | None = None,
        prices: PriceSource | None = None,
        **options: Any,
    ) -> None:
        api_base = options.pop("base_url", None) or api_base
        if options.pop("model_type", "chat") != "chat":
            raise LMConfigurationError(f"{model}: model_type is always 'chat'", model=model)
        if num_retries < 0 or not timeout > 0:
            raise LMConfigurationError(f"{model}: num_retries is at least 0 and timeout above 0", model=model)
        self._fill(
            model=model,
            api_base=api_base,
            cache=cache,
            num_retries=num_retries,
            timeout=float(timeout),
            rollout_id=rollout_id,
            options=check_options(options),
            _prices=prices,
            _secret=_bound(model, api_base, api_key),
        )

    def copy(self, **changes: Any) -> LM:
        """The same model with other settings or options; None takes an option away.

        An explicit key goes along only while the server stays the same.
        """
        kept: dict[str, Any] = {name: getattr(self, name) for name in ("model", "api_base", *_SETTINGS)}
        return LM(**{**kept, "api_key": self._secret, "prices": self._prices, **self.options, **changes})

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:
        core = self._core(clock)
        return Retry(core, num_retries=self.num_retries, timeout=self.timeout, clock=clock, rng=rng)

    def _core(self, clock: Clock) -> Layer:
        if self.model.startswith(f"{LOCAL}/"):
            return LocalLM(self.model).core(clock)
        from dspy_stream.lm.transport import Endpoint  # the HTTP library is loaded when it is needed

        target = locate(self.model, api_base=self.api_base, has_key=self._secret is not None)
        secret = self._secret if self._secret is not None else target.key
        key = secret.reveal(target.address.origin) if secret is not None else None
        provider = target.provider
        format = provider.format(target.model, price=price_of(self.model, self._prices), now=clock.time)
        return Client(
            Endpoint(target.address.join(format.path), format.headers(key)),
            format,
            model=self.model,
            provider=provider.prefix,
            secret=secret,
            timeout=self.timeout,
        )

    def identity(self) -> dict[str, Any]:
        """What decides the answers: name, options, and the server where it is not the provider's own."""
        made = super().identity()
        if self.api_base is not None:
            made["api_base"] = parse(self.api_base).origin
        return made

    def dump_state(self) -> dict[str, Any]:
        """The saved form, in DSPy's layout; no key."""
        state = {**super().dump_state(), "num_retries": self.num_retries}
        if self.api_base is not None:
            state["api_base"] = self.api_base
        return state

    @staticmethod
    def load_state(state: Mapping[str, Any]) -> Model:
        """A model from its saved form, DSPy's too.

        A saved model that names its own server, or a provider that is not known here, can be
        loaded but not connected: a file does not decide where data is sent.

        Raises:
            LMConfigurationError: the state is not that of a model.
        """
        name = state.get("model")
        if not isinstance(name, str) or not name:
            raise LMConfigurationError("the saved model has no name")
        if any(state.get(place) for place in _ENDPOINTS):
            return SavedLM(state, "it names a server of its own, and servers are not taken from files")
        try:
            return LM(name, **_saved_settings(state))
        except (LMConfigurationError, TypeError) as error:
            return SavedLM(state, str(error))

    def _compared(self) -> tuple[Any, ...]:
        options = orjson.dumps(dict(self.options), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        return (self.model, self.api_base, options, *(getattr(self, name) for name in _SETTINGS))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LM):
            return NotImplemented
        if self is other:
            return True
        same = self._compared() == other._compared() and self._prices is other._prices
        return same and self._secret == other._secret

    def __hash__(self) -> int:
        return hash((self.model, self.api_base, self.rollout_id))

    def __repr__(self) -> str:
        shown = [repr(self.model)]
        if self.api_base is not None:
            shown.append(f"api_base={parse(self.api_base).origin!r}")
        return f"LM({', '.join([*shown, *(f'{name}={value!r}' for name, value in self.options.items())])})"


_SETTINGS: Final = ("cache", "num_retries", "timeout", "rollout_id")


class SavedLM(BaseLM):
    """A saved model that cannot be asked as it is; its state is kept for saving it again.

    Connecting it raises an error that says why, and how to name another model.
    """

    __slots__ = ("_state", "_why")

    _state: Mapping[str, Any]
    _why: str

    def __init__(self, state: Mapping[str, Any], why: str) -> None:
        options = {name: value for name, value in state.items() if name not in _NOT_OPTIONS}
        self._fill(
            model=str(state["model"]),
            options={name: value for name, value in options.items() if value is not None},
            cache=bool(state.get("cache", True)),
            rollout_id=state.get("rollout_id"),
            _state={name: value for name, value in state.items() if name != "api_key"},
            _why=why,
        )

    def _paid(self, clock: Clock, rng: random.Random) -> Layer:  # noqa: ARG002
        raise LMConfigurationError(
            f"the saved model {self.model!r} cannot be asked: {self._why}; name another, set_lm or lm=...",
            model=self.model,
        )

    def dump_state(self) -> dict[str, Any]:
        """The state as it was read, without a key."""
        return dict(self._state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SavedLM) and self._state == other._state

    def __hash__(self) -> int:
        return hash(self.model)

    def __repr__(self) -> str:
        return f"SavedLM({self.model!r})"


def _bound(model: str, api_base: str | None, api_key: str | Secret | None) -> Secret | None:
    """Check provider and address, and tie a key to the server that they name now."""
    if model.startswith(f"{LOCAL}/"):
        LocalLM(model)
        return None
    find(model, api_base)
    if api_base is not None:
        parse(api_base)
    if api_key is None or isinstance(api_key, Secret):
        return api_key
    return Secret(api_key.strip(), locate(model, api_base=api_base, has_key=True).address.origin)


def _saved_settings(state: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in state.items() if name not in _NOT_OPTIONS}
    for name in ("cache", "num_retries", "rollout_id", "model_type"):
        if state.get(name) is not None:
            kept[name] = state[name]
    return kept


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
