"""What a provider is: a declaration of its name, its address, its key and the formats it speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dspy_stream.errors import LMConfigurationError
from dspy_stream.lm.address import Address
from dspy_stream.lm.providers.format import FormatMaker
from dspy_stream.lm.providers.openai import ChatCompletions
from dspy_stream.lm.providers.openai.embeddings import EmbeddingsFormat
from dspy_stream.lm.secret import Secret
from dspy_stream.types import Capabilities

__all__ = ["Provider", "Target"]

_PREFIX: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NO_FORMATS: Final[Mapping[str, FormatMaker]] = {}
_NO_QUERY: Final[Mapping[str, tuple[str, str]]] = {}
_NOTHING_KNOWN: Final = Capabilities()


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider: models are named ``prefix/model``.

    ``format`` is what it speaks, OpenAI's chat completions unless told; ``formats`` what it speaks
    besides, by ``model_type``. ``base`` is its address, where it has one of its own; ``root`` the
    path that is added to an address that has no version in it, such as ``/v1``. ``base_env`` and
    ``key_env`` name the environment variables for address and key, in the order in which they are
    looked at. ``needs_key``: refuse to connect without one, except to this machine. ``query`` maps
    a parameter of the address to its environment variable and its default; an option of the model
    of that name (with ``_`` for ``-``) goes before both. ``capabilities`` holds for all its models.
    ``embeddings`` is how it is asked for vectors, None where it has none. ``elsewhere`` is what is spoken in
    place of ``format`` at another address than ``base``: by servers that only speak like the provider.

    Raises:
        LMConfigurationError: a prefix that is not a plain lower-case name.

    >>> acme = Provider("acme", base="https://llm.acme.example/v1", key_env="ACME_API_KEY", needs_key=True)
    >>> acme.key_env
    ('ACME_API_KEY',)
    """

    prefix: str
    format: FormatMaker = ChatCompletions
    base: str | None = None
    base_env: tuple[str, ...] | str = ()
    key_env: tuple[str, ...] | str = ()
    needs_key: bool = False
    root: str = ""
    formats: Mapping[str, FormatMaker] = field(default_factory=lambda: _NO_FORMATS)
    query: Mapping[str, tuple[str, str]] = field(default_factory=lambda: _NO_QUERY)
    capabilities: Capabilities = _NOTHING_KNOWN
    embeddings: type[EmbeddingsFormat] | None = EmbeddingsFormat
    elsewhere: FormatMaker | None = None

    def __post_init__(self) -> None:
        if _PREFIX.fullmatch(self.prefix) is None:
            raise LMConfigurationError(f"a provider's prefix is a lower-case name, and not {self.prefix!r}")
        for name in ("base_env", "key_env"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model is: provider, its name there, address, the environment's key, and its format's maker."""

    provider: Provider
    model: str
    address: Address
    key: Secret | None
    make: FormatMaker
