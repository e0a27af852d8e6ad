"""Make plans: an adapter's prompt, a model's connections, and the options of the calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from dspy_stream.adapters import Adapter
from dspy_stream.adapters.hook import is_compiled
from dspy_stream.adapters.misfits import tell_misfits
from dspy_stream.engine import Asked, Heads, Plan
from dspy_stream.errors import SignatureError
from dspy_stream.lm.base import Model, resolve
from dspy_stream.lm.kwargs import check_options
from dspy_stream.modules.calling import asking_itself
from dspy_stream.modules.scope import Clients
from dspy_stream.program import Signature
from dspy_stream.types import Head

__all__ = ["plan_for"]

# DSPy's rule: several completions of a nearly greedy model would all be the same.
_GREEDY, _DIVERSE = 0.15, 0.7
# What an option of the predictor means for a second model too.
_SHARED: Final = ("cache",)
# With these efforts a model is not to think; its reasoning, where it is wanted, is asked for in words.
_UNTHINKING: Final = (None, "none", "disable")


def plan_for(
    lm: Model,
    adapter: Adapter,
    *,
    signature: type[Signature],
    demos: Sequence[Any],
    config: Mapping[str, Any],
    clients: Clients,
    repairs: int = 1,
) -> Plan:
    """The plan of one predictor, with the plans that follow it where the adapter wants any.

    Connecting does no I/O.

    Raises:
        ConfigurationError: a model, an option, a demo or a field's type cannot be used.
    """
    if not (is_compiled(adapter, "__call__") and is_compiled(adapter, "acall")):
        return asking_itself(lm, adapter, signature=signature, demos=demos, config=config, clients=clients)
    able = lm.capabilities
    if {**lm.options, **config}.get("reasoning_effort", "") in _UNTHINKING:
        able = replace(able, reasoning=False)
    prepared = adapter.prepare(signature, demos, capabilities=able)
    tell_misfits(signature, demos)
    options, cache, rollout_id = _options(lm, prepared.options, config)
    defaults = {name: value for name, value in prepared.defaults.items() if name not in config}
    plainer = None
    # Options of the user's own are never taken back.
    if prepared.plainer is not None and not prepared.options.keys() & config.keys():
        plain = _options(lm, prepared.plainer, config)[0]
        plainer = Head(lm.model, prepared.head, {**defaults, **plain}, by=lm.by)
    fallback = then = None
    if adapter.fallback is not None:
        fallback = plan_for(
            lm,
            adapter.fallback,
            signature=signature,
            demos=demos,
            config=config,
            clients=clients,
            repairs=0,
        )
    second = adapter.second_step(signature)
    if second is not None:
        then = plan_for(
            resolve(second.model),
            second.adapter,
            signature=second.signature,
            demos=(),
            config={name: config[name] for name in _SHARED if name in config},
            clients=clients,
        )
    head = Head(lm.model, prepared.head, {**defaults, **options}, by=lm.by)
    client = clients.get(lm)
    heads = Heads(prepared.by_row) if prepared.by_row is not None else None
    asked = Asked(lm, adapter, signature, demos)
    return Plan(prepared, head, client, cache, rollout_id, repairs, plainer, fallback, then, heads, asked)


def asking(plan: Plan, lm: Model) -> Plan:
    """The same plan for another model that would be asked the same; whoever listens hears of that one."""
    fallback = asking(plan.fallback, lm) if plan.fallback is not None else None
    asked = plan.asked._replace(lm=lm) if plan.asked is not None else None
    return replace(plan, fallback=fallback, asked=asked)


def _options(
    lm: Model, adapter_options: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], bool, int | None]:
    """Options of a call: the model's, then the adapter's, then the predictor's own."""
    taken_back = {name: None for name, value in config.items() if value is None}
    options = {**lm.options, **adapter_options, **taken_back, **check_options(config)}
    cache = bool(options.pop("cache", lm.cache))
    rollout_id = options.pop("rollout_id", getattr(lm, "rollout_id", None))
    if rollout_id is not None and not isinstance(rollout_id, int):
        raise SignatureError(f"rollout_id is {rollout_id!r}; it must be a whole number or None")
    options = {name: value for name, value in options.items() if value is not None}
    if options.get("n") == 1:
        del options["n"]
    if options.get("n", 1) > 1 and options.get("temperature", 0.0) <= _GREEDY:
        options["temperature"] = _DIVERSE
    return options, cache, rollout_id
