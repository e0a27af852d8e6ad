"""In what a server's chat completions differ from OpenAI's own: data, no code for each server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from dspy_stream.lm.families import is_openai_reasoning

__all__ = ["LOCAL_OPTIONS", "OPENAI", "Dialect", "options_of"]

# Settings of ours among the options; they are not the server's business.
LOCAL_OPTIONS: Final = frozenset({"prompt_cache", "stream_options", "api_version"})
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
    put before names that hold no slash. ``stream_usage``: takes ``stream_options``.

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


OPENAI: Final = Dialect("openai", developer=True)


def options_of(model: str, options: Mapping[str, Any], dialect: Dialect = OPENAI) -> dict[str, Any]:
    """The options as the server takes them: those that are None left out, names and rules its own."""
    sent = {name: value for name, value in options.items() if value is not None and name not in LOCAL_OPTIONS}
    if is_openai_reasoning(model):
        if sent.get("reasoning_effort") != "none":
            for name in _SAMPLING:
                sent.pop(name, None)
        if "max_tokens" in sent:
            limit = sent.pop("max_tokens")
            sent.setdefault("max_completion_tokens", limit)
    if dialect.reasoning == "nested" and "reasoning_effort" in sent:
        sent["reasoning"] = {"effort": sent.pop("reasoning_effort"), **(sent.get("reasoning") or {})}
    for name, other in (dialect.renamed or {}).items():
        if name in sent:
            sent[other] = sent.pop(name)
    return sent
