"""A saved model that cannot be asked as it is, and what of a saved model is no option of its requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from dspy_stream.clock import Clock
from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.circuit import BreakerPolicy
from dspy_stream.lm.limit import Limits
from dspy_stream.lm.settled import SettledLM
from dspy_stream.types import Layer

__all__ = ["ENDPOINTS", "LM_CLASSES", "NOT_OPTIONS", "SavedLM", "saved_settings", "without_foreign"]

ENDPOINTS: Final = ("api_base", "base_url", "model_list", "endpoints")
# What DSPy names as the class of its own models; any other would have to be imported.
LM_CLASSES: Final = (None, "dspy.clients.lm.LM")
# What a saved model may hold beside its options. Where requests and keys go is never read from a file.
NOT_OPTIONS: Final = frozenset(ENDPOINTS) | {
    *("model", "model_type", "cache", "num_retries", "rollout_id", "timeout", "api_key"),
    *("_dspy_lm_class", "finetuning_model", "launch_kwargs", "train_kwargs", "engine", "async_engine"),
    *("prompt_cache", "use_developer_role", "provider", "fallbacks", "health", "breaker"),
    *("limits", "callbacks", "capabilities", "prices", "cache_in_memory"),
}
# What DSPy's models take beside options, and this one has no use for; empty, it is passed over.
_FOREIGN: Final = (
    *("engine", "async_engine", "provider", "finetuning_model", "launch_kwargs", "train_kwargs"),
    *("use_developer_role", "prompt_cache", "cache_in_memory", "drop_params"),
)
_PASSED_OVER: Final = ("auto", "lm15", "litellm", True)
# A model's own settings. One that is misspelt would be sent to the provider, and do nothing here.
_OWN: Final = (
    *("api_base", "api_key", "timeout", "num_retries", "rollout_id", "prices", "endpoints", "fallbacks"),
    *("health", "limits", "breaker", "capabilities", "cache", "callbacks", "model_type"),
)
_MISSPELT: Final = 0.8  # how alike


def without_foreign(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without what only DSPy's models have: it would be sent to the provider.

    Raises:
        LMConfigurationError: one of them asks for something that is not done here, or is a setting
            of the model, misspelt.
    """
    for name in options:
        meant = get_close_matches(name, _OWN, n=1, cutoff=_MISSPELT)
        if meant:
            raise LMConfigurationError(
                f"{model}: {name}=... is no setting of a model; did you mean {meant[0]}=...? "
                f"As a field of the request it goes into extra_body={{{name!r}: ...}}",
                model=model,
            )
    for name in _FOREIGN:
        given = options.get(name)
        if given and given not in _PASSED_OVER:
            raise LMConfigurationError(
                f"{model}: {name}={given!r:.60} is not for here; a model of your own subclasses BaseLM",
                model=model,
            )
    return {name: value for name, value in options.items() if name not in _FOREIGN}


def saved_settings(state: Mapping[str, Any], load: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
    """Settings and options of a saved model; ``load`` makes its fallbacks."""
    kept = {name: value for name, value in state.items() if name not in NOT_OPTIONS}
    for name in ("cache", "num_retries", "rollout_id", "model_type", "health"):
        if state.get(name) is not None:
            kept[name] = state[name]
    if state.get("fallbacks"):
        kept["fallbacks"] = [o if isinstance(o, str) else load(o) for o in state["fallbacks"]]
    if state.get("limits") is not None:
        kept["limits"] = Limits(**state["limits"])
    if "breaker" in state:
        kept["breaker"] = None if state["breaker"] is None else BreakerPolicy(**state["breaker"])
    return kept


class SavedLM(SettledLM):
    """A saved model that cannot be asked as it is; its state is kept for saving it again.

    Connecting it raises an error that says why, and how to name another model.
    """

    __slots__ = ("_state", "_why")

    _state: Mapping[str, Any]
    _why: str

    def __init__(self, state: Mapping[str, Any], why: str) -> None:
        options = {name: value for name, value in state.items() if name not in NOT_OPTIONS}
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
