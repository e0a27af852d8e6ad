"""Which provider a model's name belongs to, where it is, and which key it takes.

A provider is a declaration: its prefix, its wire format, and the environment variables that name
its address and key. A new one is a new entry in :data:`PROVIDERS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.address import Address, parse
from dspy_stream.lm.providers.format import Format, FormatMaker
from dspy_stream.lm.providers.openai import ChatCompletions
from dspy_stream.lm.secret import Secret

__all__ = ["LOCAL", "PROVIDERS", "Format", "Provider", "Target", "find", "locate"]

LOCAL: Final = "local"


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider: ``prefix/model``, its format, default address, and where settings come from."""

    prefix: str
    format: FormatMaker
    base: str | None
    base_env: tuple[str, ...]
    key_env: str
    needs_key: bool


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model is: provider, its name there, the address, and the key that the environment has."""

    provider: Provider
    model: str
    address: Address
    key: Secret | None


PROVIDERS: Final[Mapping[str, Provider]] = {
    provider.prefix: provider
    for provider in (
        Provider(
            "openai",
            ChatCompletions,
            "https://api.openai.com/v1",
            ("OPENAI_API_BASE", "OPENAI_BASE_URL"),
            "OPENAI_API_KEY",
            needs_key=True,
        ),
        Provider(
            "hosted_vllm",
            ChatCompletions,
            None,
            ("HOSTED_VLLM_API_BASE",),
            "HOSTED_VLLM_API_KEY",
            needs_key=False,
        ),
        Provider(
            "ollama",
            ChatCompletions,
            "http://127.0.0.1:11434/v1",
            ("OLLAMA_API_BASE",),
            "OLLAMA_API_KEY",
            needs_key=False,
        ),
    )
}

# A model of no known provider, at an address that the user gave.
_ANY: Final = Provider("", ChatCompletions, None, (), "", needs_key=False)


def find(model: str, api_base: str | None = None) -> tuple[Provider, str]:
    """The provider of ``prefix/name`` and the name it is known by there.

    With ``api_base`` any name will do: a known prefix is taken off, another is part of the name.

    Raises:
        LMConfigurationError: no such provider; the known ones are listed.

    >>> find("openai/gpt-4o-mini")[1], find("org/some-model", "http://127.0.0.1:8000/v1")[1]
    ('gpt-4o-mini', 'org/some-model')
    """
    prefix, slash, name = model.partition("/")
    provider = PROVIDERS.get(prefix)
    if provider is not None and name:
        return provider, name
    if api_base is not None and model:
        return _ANY, model
    known = ", ".join(f"{name}/" for name in [*PROVIDERS, LOCAL])
    hint = f"; did you mean 'openai/{model}'?" if not slash and model else ""
    raise LMConfigurationError(
        f"no provider is known for the model {model!r}{hint}. Known: {known}; "
        "any other server that speaks OpenAI's format can be named with api_base=URL",
        model=model,
    )


def locate(
    model: str, *, api_base: str | None = None, has_key: bool = False, environ: Mapping[str, str] = os.environ
) -> Target:
    """Where the model is, and the key the environment has for it.

    ``api_base`` goes before the environment; ``has_key`` says that the user gave a key, so that
    the environment's is not wanted.

    Raises:
        LMConfigurationError: no address, or no key where one is needed; the variable is named.
    """
    provider, name = find(model, api_base)
    base = api_base or next((environ[n] for n in provider.base_env if environ.get(n)), provider.base)
    if base is None:
        wanted = provider.base_env[0]
        raise LMConfigurationError(f"{model}: no address; pass api_base=URL or set {wanted}", model=model)
    address = parse(base)
    key = None if has_key or not provider.key_env else (environ.get(provider.key_env) or "").strip() or None
    if key is None and not has_key and provider.needs_key and not address.is_loopback:
        raise LMConfigurationError(
            f"{model}: no API key; set {provider.key_env} or pass api_key=... ('' where none is needed)",
            model=model,
            provider=provider.prefix,
        )
    return Target(provider, name, address, Secret(key, address.origin) if key is not None else None)
