"""Which provider a model's name belongs to, where it is, and which key it takes.

A provider is a declaration (:class:`Provider`): its prefix, its wire formats, and the environment
variables that name its address and key. Those that come with the package are in ``declared``; a
user's own are added with :func:`register_provider`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.address import Address, parse, parse_base
from dspy_stream.lm.providers.declared import ALIASES, ANY, PROVIDERS, at_place
from dspy_stream.lm.providers.format import Format, FormatMaker
from dspy_stream.lm.providers.provider import Provider, Target
from dspy_stream.lm.secret import Secret

__all__ = [
    "LOCAL",
    "PROVIDERS",
    "Format",
    "Provider",
    "Target",
    "at_place",
    "check_type",
    "find",
    "is_known",
    "key_names",
    "known_provider",
    "locate",
    "register_provider",
]

LOCAL: Final = "local"

_VERSION: Final = re.compile(r"/v\d+[a-z]*\d*(?:/|$)")
_QUERY_VALUE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Beginnings of names that belong to one provider, for a better question in the error.
_GUESSES: Final = {"claude": "anthropic", "gemini": "gemini"}

# Replaced as a whole under the lock, so that who reads it needs none.
_registered: dict[str, Provider] = {}
_lock: Final = threading.Lock()


def register_provider(provider: Provider, *, replace: bool = False) -> Provider:
    """Make ``prefix/model`` name the models of a provider of your own; returns it.

    Register it before models are named. Thread-safe; holds for the whole process.

    Raises:
        LMConfigurationError: the prefix is taken, by the package or by an earlier registration,
            and ``replace`` is not set; or it is ``local``, which is never free.

    >>> acme = Provider("acme", base="https://llm.acme.example/v1", key_env="ACME_API_KEY", needs_key=True)
    >>> register_provider(acme).prefix, find("acme/large-1")[1]
    ('acme', 'large-1')
    """
    global _registered
    prefix = provider.prefix
    if prefix == LOCAL:
        raise LMConfigurationError(f"the prefix {LOCAL!r} is taken by the model in this process")
    with _lock:
        taken = prefix in PROVIDERS or prefix in ALIASES or prefix in _registered
        if taken and not replace and _registered.get(prefix) != provider:
            raise LMConfigurationError(
                f"there is a provider {prefix!r} already: choose another prefix, or pass replace=True"
            )
        _registered = {**_registered, prefix: provider}
    return provider


def known_provider(prefix: str) -> Provider | None:
    """The provider of that prefix or of that other name for it; a user's own goes first."""
    found = _registered.get(prefix)
    return found if found is not None else PROVIDERS.get(ALIASES.get(prefix, prefix))


def key_names() -> set[str]:
    """Environment variables that may hold a key of some provider.

    >>> "OPENAI_API_KEY" in key_names()
    True
    """
    providers = (*PROVIDERS.values(), *_registered.values())
    return {name for provider in providers for name in provider.key_env}


def is_known(model: str) -> bool:
    """Whether a name is of a provider that is known, or of a model in this process."""
    prefix, _, name = model.partition("/")
    return bool(name) and (prefix == LOCAL or known_provider(prefix) is not None)


def find(model: str, api_base: str | None = None) -> tuple[Provider, str]:
    """The provider of ``prefix/name`` and the name it is known by there.

    With ``api_base`` any name will do: a known prefix is taken off, another is part of the name.

    Raises:
        LMConfigurationError: no such provider; the known ones are listed.

    >>> find("openai/gpt-4o-mini")[1], find("org/some-model", "http://127.0.0.1:8000/v1")[1]
    ('gpt-4o-mini', 'org/some-model')
    """
    prefix, slash, name = model.partition("/")
    provider = known_provider(prefix)
    if provider is not None and name:
        return provider, name
    if api_base is not None and model:
        return ANY, model
    names = [*PROVIDERS, *sorted(_registered.keys() - PROVIDERS), LOCAL]
    near = get_close_matches(prefix, names, n=1) if slash and name else []
    guess = _GUESSES.get(re.split(r"[-.]", model, maxsplit=1)[0], "openai")
    meant = f"{near[0]}/{name}" if near else f"{guess}/{model}" if not slash and model else None
    hint = f"; did you mean {meant!r}?" if meant else "."
    known = ", ".join(f"{each}/" for each in names)
    raise LMConfigurationError(
        f"no provider is known for the model {model!r}{hint} Known: {known}; "
        "any other server that speaks OpenAI's format can be named with api_base=URL (--api-base URL)",
        model=model,
    )


def locate(
    model: str,
    *,
    api_base: str | None = None,
    has_key: bool = False,
    environ: Mapping[str, str] = os.environ,
    model_type: str = "chat",
    options: Mapping[str, Any] | None = None,
) -> Target:
    """Where the model is, the format it is asked in, and the key the environment has for it.

    ``api_base`` goes before the environment; ``has_key`` says that the user gave a key, so that
    the environment's is not wanted. ``options`` may hold parameters of the address (``api_version``).

    Raises:
        LMConfigurationError: no address, no key where one is needed (the variable is named), or a
            format that the provider does not speak.
    """
    provider, name = find(model, api_base)
    kind, _, rest = name.partition("/")
    if kind == "responses" and rest and kind in provider.formats:  # as in openai/responses/gpt-5
        name, model_type = rest, kind
    setting = "api_base" if api_base else next((n for n in provider.base_env if environ.get(n)), None)
    base = api_base or (environ[setting] if setting is not None else provider.base)
    if base is None:
        wanted = provider.base_env[0] if provider.base_env else "the address"
        raise LMConfigurationError(f"{model}: no address; pass api_base=URL or set {wanted}", model=model)
    parse(base)
    provider, base = at_place(provider, base)
    format = _format(provider, model, model_type)
    if format is provider.format and base.rstrip("/") != provider.base:
        format = provider.elsewhere or format
    address = _complete(parse_base(base, setting or "the provider's base"), provider, environ, options or {})
    key = None if has_key else _key(provider, environ)
    if key is None and not has_key and provider.needs_key and not address.is_loopback:
        wanted = provider.key_env[0] if provider.key_env else "its key"
        raise LMConfigurationError(
            f"{model}: no API key; set {wanted} or pass api_key=... ('' where none is needed)",
            model=model,
            provider=provider.prefix,
        )
    return Target(provider, name, address, Secret(key, address.origin) if key is not None else None, format)


def check_type(model: str, model_type: str, api_base: str | None = None) -> None:
    """Make sure that the model's provider speaks what ``model_type`` names.

    Raises:
        LMConfigurationError: it does not; what it speaks is listed.
    """
    _format(find(model, api_base)[0], model, model_type)


def _format(provider: Provider, model: str, model_type: str) -> FormatMaker:
    found = provider.format if model_type == "chat" else provider.formats.get(model_type)
    if found is None:
        known = ", ".join(repr(name) for name in ("chat", *provider.formats))
        raise LMConfigurationError(
            f"{model}: model_type is one of {known}, and not {model_type!r}", model=model
        )
    return found


def _key(provider: Provider, environ: Mapping[str, str]) -> str | None:
    found = [(environ.get(name) or "").strip() for name in provider.key_env]
    return next((key for key in found if key), None)


def _complete(
    address: Address, provider: Provider, environ: Mapping[str, str], options: Mapping[str, Any]
) -> Address:
    """The address with the path and the query that the provider's addresses end with."""
    url, mark, query = address.url.partition("?")
    if provider.root and not _VERSION.search(url):
        url = url.rstrip("/") + provider.root
    for name, (variable, default) in provider.query.items():
        if f"{name}=" in query:
            continue
        value = str(options.get(name.replace("-", "_")) or environ.get(variable) or default)
        if _QUERY_VALUE.fullmatch(value) is None:
            raise LMConfigurationError(f"{name} is not a version: pass one such as {default!r}")
        query, mark = f"{query}&{name}={value}" if query else f"{name}={value}", "?"
    return parse(url + mark + query)
