"""In what a server's chat completions differ from OpenAI's own: data, no code for each server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.families import is_openai_reasoning

__all__ = ["OPENAI", "Dialect", "options_of", "sendable", "unmarked"]

# Settings of ours among the options; they are not the server's business.
_LOCAL: Final = frozenset({"prompt_cache", "stream_options", "api_version"})
# Settings of the model, of which a single call cannot have its own.
_OF_THE_MODEL: Final = (
    *("api_base", "base_url", "api_key", "endpoints", "timeout", "num_retries", "fallbacks", "model_type"),
    *("health", "limits", "breaker", "capabilities", "prices", "callbacks"),
)
# Reasoning models draw their answers themselves and refuse to be told how.
_SAMPLING: Final = ("temperature", "top_p")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one server speaks chat completions.

    ``path`` may hold ``{model}``; ``key_header`` carries the key, as ``Bearer`` where it is
    ``Authorization``. ``renamed`` gives options another name. ``reasoning_effort`` is sent flat, or
    as ``{"reasoning": {"effort": ...}}``. ``replays`` says under which name reasoning goes back to
    the server with earlier turns: ``reasoning_details`` (blocks) or ``reasoning_content`` (text,
    with tool calls only); elsewhere it stays here. ``developer``: knows that role. ``namespace`` is
    put before names that hold no slash. ``stream_usage``: takes ``stream_options``. ``one_answer``: refuses
    an ``n`` above 1. ``document_url``: takes files as blocks of that name. ``ignored``: options of the
    server's own that this format of its does nothing with. ``cache_marks``: takes ``cache_control`` in
    blocks and tools, or passes over it. ``most_stops``: so many texts in ``stop`` at most. ``toggle``: its
    models think unless ``thinking`` says no, and take no ``tool_choice`` while they do. ``tells_cost``: its
    counts say in US dollars what the call cost.

    >>> Dialect("acme", renamed={"seed": "random_seed"}).renamed["seed"]
    'random_seed'
    """

    name: str
    path: str = "/chat/completions"
    key_header: str = "Authorization"
    renamed: Mapping[str, str] | None = None
    reasoning: Literal["flat", "nested"] = "flat"
    replays: Literal["reasoning_details", "reasoning_content"] | None = None
    developer: bool = False
    namespace: str = ""
    stream_usage: bool = True
    one_answer: bool = False
    document_url: bool = False
    ignored: tuple[str, ...] = ()
    cache_marks: bool = True
    most_stops: int | None = None
    toggle: bool = False
    tells_cost: bool = False


OPENAI: Final = Dialect("openai", developer=True)


def sendable(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are the server's business, without those that are None.

    Raises:
        LMConfigurationError: a setting of the model is among them; it would have no effect.
    """
    for name in _OF_THE_MODEL:
        if options.get(name) is not None:
            raise LMConfigurationError(
                f"{name!r} is a setting of a model and no option of one call: give it to the model, "
                f"LM(..., {name}=...) or lm.copy({name}=...)"
            )
    return {name: value for name, value in options.items() if value is not None and name not in _LOCAL}


def options_of(model: str, options: Mapping[str, Any], dialect: Dialect = OPENAI) -> dict[str, Any]:
    """The options as the server takes them: those that are None left out, names and rules its own."""
    sent = sendable(options)
    for name in dialect.ignored:
        if name in sent:
            raise LMConfigurationError(
                f"{dialect.name} does nothing with {name!r} in this format: set it on the server", model=model
            )
    stop, most = sent.get("stop"), dialect.most_stops
    if most is not None and isinstance(stop, (list, tuple)) and len(stop) > most:
        raise LMConfigurationError(
            f"'stop' has {len(stop)} texts, and {dialect.name} takes at most {most}", model=model
        )
    if not dialect.cache_marks and "tools" in sent:
        sent["tools"] = unmarked(sent["tools"])
    if is_openai_reasoning(model):
        if sent.get("reasoning_effort") != "none":
            for name in _SAMPLING:
                sent.pop(name, None)
        if "max_tokens" in sent:
            limit = sent.pop("max_tokens")
            sent.setdefault("max_completion_tokens", limit)
    if dialect.one_answer:
        sent.pop("n", None)
    if dialect.toggle:
        _toggled(model, sent)
    if dialect.reasoning == "nested" and "reasoning_effort" in sent:
        sent["reasoning"] = {"effort": sent.pop("reasoning_effort"), **(sent.get("reasoning") or {})}
    for name, other in (dialect.renamed or {}).items():
        if name in sent:
            sent[other] = sent.pop(name)
    return sent


def _toggled(model: str, sent: dict[str, Any]) -> None:
    """DeepSeek's way: a switch for thinking, and no word on tools to a model that thinks."""
    if sent.get("reasoning_effort") in ("none", "disable"):
        del sent["reasoning_effort"]
        sent.setdefault("thinking", {"type": "disabled"})
    off = model == "deepseek-chat" or (sent.get("thinking") or {}).get("type") == "disabled"
    if not off and sent.pop("tool_choice", None) == "none":
        sent.pop("tools", None)


def unmarked(blocks: Any) -> Any:
    """Blocks, or tools, without the ``cache_control`` that is for another provider.

    >>> unmarked([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}])
    [{'type': 'text', 'text': 'a'}]
    """
    if not isinstance(blocks, (list, tuple)):
        return blocks
    return [
        {name: value for name, value in block.items() if name != "cache_control"}
        if isinstance(block, Mapping) and "cache_control" in block
        else block
        for block in blocks
    ]
