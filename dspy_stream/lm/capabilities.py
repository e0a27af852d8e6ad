"""What models are known to be able to do: dated data, looked up by a model's name.

What a provider's documentation said by :data:`CAPABILITIES_AS_OF`; a name that is not known here
counts as able to do nothing but text, which is always safe. ``LM(capabilities=...)`` corrects it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Final

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.families import claude, gemini, is_openai_reasoning
from dspy_stream.lm.providers import known_provider
from dspy_stream.types import Capabilities

__all__ = ["CAPABILITIES_AS_OF", "capabilities_of", "corrected"]

CAPABILITIES_AS_OF: Final = "2025-12"  # of newer models: 2026-11

_NOTHING: Final = Capabilities()
_JSON_TOOLS: Final = Capabilities(json_mode=True, tools=True)
_SCHEMA_TOOLS: Final = Capabilities(structured_outputs=True, json_mode=True, tools=True)
_SEES: Final = replace(_SCHEMA_TOOLS, images=True)
_GRAMMAR: Final = Capabilities(structured_outputs=True, json_mode=True)
_THINKS: Final = replace(_SCHEMA_TOOLS, reasoning=True)
_THINKS_ALOUD: Final = replace(_THINKS, thoughts=True)

# The first expression that fits the beginning of a name counts; a provider's last is for the rest.
_TABLE: Final[Mapping[str, tuple[tuple[str, Capabilities], ...]]] = {
    "openai": (
        (r"gpt-4o.*audio", Capabilities(tools=True, audio=True)),
        (r"gpt-4o.*(realtime|transcribe|tts|search)", _NOTHING),
        (r"gpt-4o-2024-05-13", replace(_JSON_TOOLS, images=True, logprobs=True)),
        (r"gpt-4o|gpt-4\.1", replace(_SEES, files=True, logprobs=True)),
        (r"gpt-5.*-chat", Capabilities(json_mode=True, images=True)),
        (r"gpt-4-turbo", replace(_JSON_TOOLS, images=True, logprobs=True)),
        (r"gpt-3\.5-turbo-instruct", Capabilities(logprobs=True)),
        (r"gpt-3\.5-turbo|gpt-4-(?:1106|0125)", replace(_JSON_TOOLS, logprobs=True)),
        (r"gpt-4", Capabilities(tools=True, logprobs=True)),
        (r"o1-(?:mini|preview)", Capabilities(reasoning=True)),
        (r"o3-mini", _THINKS),
    ),
    "groq": (
        (r"openai/gpt-oss", _THINKS_ALOUD),
        (r"meta-llama/llama-4", replace(_JSON_TOOLS, images=True)),
        (r"qwen/qwen3|deepseek-r1", replace(_JSON_TOOLS, reasoning=True, thoughts=True)),
        (r"llama-3|moonshotai/kimi", _JSON_TOOLS),
    ),
    "deepseek": (
        (r"deepseek-reasoner", replace(_JSON_TOOLS, reasoning=True, thoughts=True)),
        (r"deepseek-chat", replace(_JSON_TOOLS, logprobs=True)),
        (r"deepseek-flash", replace(_JSON_TOOLS, reasoning=True, images=True)),
        (r"deepseek-(?:v\d|pro)", replace(_JSON_TOOLS, reasoning=True)),
    ),
    "xai": (
        (r"grok-3-mini", _THINKS_ALOUD),
        (r"grok-4", _THINKS),
        (r"grok-2-vision", _SEES),
        (r"grok-(?:[23]|code)", _SCHEMA_TOOLS),
    ),
    "mistral": (
        (r"magistral", _THINKS_ALOUD),
        (r"pixtral|mistral-(?:medium|small)", _SEES),
        (r"mistral-large|ministral|codestral|devstral|open-mistral-nemo", _SCHEMA_TOOLS),
    ),
    "cohere": ((r"command-[ar]", _JSON_TOOLS),),
    "moonshot": ((r"kimi|moonshot", _JSON_TOOLS),),
    "perplexity": ((r"sonar", Capabilities(structured_outputs=True)),),
    "fireworks_ai": ((r"", _GRAMMAR),),
    # These hold any model to a grammar; what else one can do depends on the model.
    "ollama": ((r".*(?:llava|vision|gemma3)", replace(_GRAMMAR, images=True)), (r"", _GRAMMAR)),
    "hosted_vllm": ((r"", replace(_GRAMMAR, logprobs=True)),),
    "lm_studio": ((r"", replace(_GRAMMAR, json_mode=False)),),
}
# By chat they take no tools, or none while they reason.
_TOOLS_BY_RESPONSES: Final = re.compile(r"gpt-(?:[6-9](?!\d)|5\.[6-9])")
_ROUTED: Final = {"google": "gemini", "x-ai": "xai", "mistralai": "mistral"}  # a router's names for them


def capabilities_of(model: str, model_type: str = "chat") -> Capabilities:
    """What ``provider/name`` is known to do in that format; nothing but text where it is not known.

    >>> capabilities_of("openai/gpt-4o-mini").structured_outputs, capabilities_of("openai/my-model").tools
    (True, False)
    """
    prefix, _, name = model.partition("/")
    provider = known_provider(prefix)
    if provider is None or model_type == "text":
        return _NOTHING
    responses = model_type == "responses" or name.startswith("responses/")
    name = name.removeprefix("responses/").lower()
    if provider.prefix in ("openrouter", "litellm_proxy"):
        inner, _, rest = name.partition("/")
        found = _known(_ROUTED.get(inner, inner), rest.partition(":")[0])
        # Marks and documents are another matter on the way through.
        return replace(found, prompt_cache=False, citations=False)
    known = _known(provider.prefix, name)
    if known.tools and not responses and _TOOLS_BY_RESPONSES.match(name):
        known = replace(known, tools=False)
    return known if known != _NOTHING else provider.capabilities


def corrected(known: Capabilities, changes: Capabilities | Mapping[str, bool] | None) -> Capabilities:
    """What is known, with what the user knows better: all of it, or some of it by name.

    Raises:
        LMConfigurationError: a name that is no capability; the known ones are listed.

    >>> corrected(Capabilities(), {"tools": True}).tools
    True
    """
    if changes is None:
        return known
    if isinstance(changes, Capabilities):
        return changes
    names = [field.name for field in fields(Capabilities)]
    for name in changes:
        if name not in names:
            raise LMConfigurationError(f"there is no capability {name!r}; known: {', '.join(names)}")
    return replace(known, **{name: bool(able) for name, able in changes.items()})


@lru_cache(maxsize=1024)
def _known(provider: str, name: str) -> Capabilities:
    if provider == "azure":
        provider = "openai"  # by the name of the deployment, which is often that of the model
    if provider == "anthropic":
        return _claude(name)
    if provider == "gemini":
        return _gemini(name)
    if provider == "openai" and is_openai_reasoning(name) and not name.startswith(("o1-", "o3-mini")):
        return replace(_THINKS, images=True, files=True)
    for expression, able in _TABLE.get(provider, ()):
        if re.match(expression, name):
            return able
    return _NOTHING


def _claude(name: str) -> Capabilities:
    version = claude(name)
    if version is None or version < (3, 0):
        return _NOTHING
    return Capabilities(
        structured_outputs=version >= (4, 5),
        tools=True,
        reasoning=version >= (3, 7),
        images=True,
        files=version >= (3, 5),
        prompt_cache=True,
        citations=version >= (3, 5),
        thoughts=version >= (3, 7),
        thinks_if_told=version >= (3, 7),
    )


def _gemini(name: str) -> Capabilities:
    found = gemini(name)
    if found is None or "embedding" in found.kind or "image" in found.kind or "tts" in found.kind:
        return _NOTHING
    modern = found.version >= (2, 5)
    return Capabilities(
        structured_outputs=modern,
        json_mode=found.version >= (1, 5),
        tools=True,
        reasoning=modern,
        images=True,
        audio=found.version >= (1, 5),
        files=found.version >= (1, 5),
        thoughts=modern,
        thinks_if_told=modern,
    )
