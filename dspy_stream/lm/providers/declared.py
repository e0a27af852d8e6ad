"""The providers that come with the package, as data.

Addresses and the names of environment variables are the providers' own, and those that users of
DSPy and LiteLLM have set already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from dspy_stream.lm.providers.anthropic import Messages
from dspy_stream.lm.providers.embeddings import (
    CohereEmbeddings,
    GeminiEmbeddings,
    MistralEmbeddings,
    OllamaEmbeddings,
    VoyageEmbeddings,
)
from dspy_stream.lm.providers.format import FormatMaker
from dspy_stream.lm.providers.gemini import GenerateContent
from dspy_stream.lm.providers.openai import ChatCompletions, Dialect, Responses, TextCompletions
from dspy_stream.lm.providers.openai.dialect import OPENAI
from dspy_stream.lm.providers.openai.embeddings import EmbeddingsFormat
from dspy_stream.lm.providers.provider import Provider

__all__ = ["ALIASES", "ANY", "PROVIDERS", "at_place"]

_OTHERS: Final[Mapping[str, FormatMaker]] = {"responses": Responses, "text": TextCompletions}
_TEXT: Final[Mapping[str, FormatMaker]] = {"text": TextCompletions}

# OpenAI itself refuses what many servers take that are named as its own.
_OPENAI: Final = replace(OPENAI, cache_marks=False, most_stops=4)
_AZURE: Final = replace(
    _OPENAI, name="azure", path="/openai/deployments/{model}/chat/completions", key_header="api-key"
)
_AZURE_V1: Final = replace(_OPENAI, name="azure", key_header="api-key")
_AZURE_PATH: Final = re.compile(
    r"/openai(/v1)?(?:/deployments(?:/[^/?]+)?)?(?:/chat/completions|/responses)?/?(?=\?|$)"
)

# What Ollama's own format takes and its OpenAI format leaves aside without a word, the context among it.
_OF_OLLAMA: Final = (
    *("num_ctx", "num_predict", "num_gpu", "num_thread", "num_batch", "num_keep", "options", "keep_alive"),
    *(
        "repeat_penalty",
        "repeat_last_n",
        "top_k",
        "min_p",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "think",
    ),
)


def _chat(dialect: Dialect) -> FormatMaker:
    return partial(ChatCompletions, dialect=dialect)


class _AzureResponses(Responses):
    """The responses format at Azure: another path, another header."""

    __slots__ = ()
    path = "/openai/responses"
    stream_path = "/openai/responses"

    def headers(self, key: str | None) -> dict[str, str]:
        made = super().headers(None)
        if key:
            made["api-key"] = key
        return made


class _AzureResponsesV1(_AzureResponses):
    __slots__ = ()
    path = "/responses"
    stream_path = "/responses"


def _hosted(
    prefix: str,
    base: str,
    *keys: str,
    dialect: Dialect | None = None,
    base_env: tuple[str, ...] = (),
    embeddings: type[EmbeddingsFormat] = EmbeddingsFormat,
) -> Provider:
    """A service that speaks chat completions and wants a key."""
    name = prefix.upper()
    return Provider(
        prefix,
        _chat(dialect) if dialect is not None else _chat(Dialect(prefix)),
        base,
        base_env or (f"{name}_API_BASE",),
        keys or (f"{name}_API_KEY",),
        needs_key=True,
        embeddings=embeddings,
    )


def _own_server(
    prefix: str,
    base: str | None = None,
    embeddings: type[EmbeddingsFormat] = EmbeddingsFormat,
    ignored: tuple[str, ...] = (),
) -> Provider:
    """A server of the user's own, which speaks chat completions and mostly wants no key."""
    name = prefix.upper()
    return Provider(
        prefix,
        _chat(Dialect(prefix, ignored=ignored)),
        base,
        (f"{name}_API_BASE",),
        (f"{name}_API_KEY",),
        root="/v1",
        formats=_TEXT,
        embeddings=embeddings,
    )


_FIRST: Final = (
    Provider(
        "openai",
        _chat(_OPENAI),
        "https://api.openai.com/v1",
        ("OPENAI_API_BASE", "OPENAI_BASE_URL"),
        ("OPENAI_API_KEY",),
        needs_key=True,
        formats=_OTHERS,
        elsewhere=ChatCompletions,
    ),
    Provider(
        "anthropic",
        Messages,
        "https://api.anthropic.com",
        ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"),
        ("ANTHROPIC_API_KEY",),
        needs_key=True,
        root="/v1",
        embeddings=None,
    ),
    Provider(
        "gemini",
        GenerateContent,
        "https://generativelanguage.googleapis.com",
        ("GEMINI_API_BASE",),
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        needs_key=True,
        root="/v1beta",
        embeddings=GeminiEmbeddings,
    ),
    Provider(
        "azure",
        _chat(_AZURE),
        None,
        ("AZURE_API_BASE", "AZURE_OPENAI_ENDPOINT"),
        ("AZURE_API_KEY", "AZURE_OPENAI_API_KEY"),
        needs_key=True,
        formats={"responses": _AzureResponses},
        query={"api-version": ("AZURE_API_VERSION", "2025-04-01-preview")},
    ),
    _own_server("ollama", "http://127.0.0.1:11434", OllamaEmbeddings, _OF_OLLAMA),
    _own_server("hosted_vllm"),
    _own_server("lm_studio", "http://127.0.0.1:1234"),
    _own_server("litellm_proxy"),
)
_HOSTED: Final = (
    _hosted(
        "openrouter",
        "https://openrouter.ai/api/v1",
        dialect=Dialect("openrouter", reasoning="nested", replays="reasoning_details", tells_cost=True),
    ),
    _hosted("groq", "https://api.groq.com/openai/v1", dialect=Dialect("groq", one_answer=True)),
    _hosted(
        "deepseek",
        "https://api.deepseek.com",
        dialect=Dialect("deepseek", replays="reasoning_content", toggle=True),
    ),
    _hosted("xai", "https://api.x.ai/v1"),
    _hosted(
        "mistral",
        "https://api.mistral.ai/v1",
        dialect=Dialect("mistral", renamed={"seed": "random_seed"}, stream_usage=False, document_url=True),
        embeddings=MistralEmbeddings,
    ),
    _hosted(
        "together_ai",
        "https://api.together.xyz/v1",
        *("TOGETHERAI_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHER_API_KEY"),
    ),
    _hosted(
        "fireworks_ai",
        "https://api.fireworks.ai/inference/v1",
        *("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY"),
        dialect=Dialect("fireworks_ai", namespace="accounts/fireworks/models/"),
    ),
    _hosted("perplexity", "https://api.perplexity.ai", "PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    _hosted(
        "cohere",
        "https://api.cohere.ai/compatibility/v1",
        *("COHERE_API_KEY", "CO_API_KEY"),
        embeddings=CohereEmbeddings,
    ),
    _hosted("voyage", "https://api.voyageai.com/v1", embeddings=VoyageEmbeddings),
    _hosted("moonshot", "https://api.moonshot.ai/v1"),
    _hosted("cerebras", "https://api.cerebras.ai/v1"),
    _hosted("deepinfra", "https://api.deepinfra.com/v1/openai"),
    _hosted("nvidia_nim", "https://integrate.api.nvidia.com/v1"),
)

PROVIDERS: Final[Mapping[str, Provider]] = {provider.prefix: provider for provider in (*_FIRST, *_HOSTED)}


def at_place(provider: Provider, base: str) -> tuple[Provider, str]:
    """A provider as it speaks at an address, and the address without the path that it adds itself.

    Azure speaks another format below ``/openai/v1``, and shows addresses with more of the path.
    """
    found = _AZURE_PATH.search(base) if provider is PROVIDERS["azure"] else None
    if found is None:
        return provider, base
    before, query = base[: found.start()], base[found.end() :]
    if found.group(1) is None:
        return provider, before + query
    spoken = replace(provider, format=_chat(_AZURE_V1), formats={"responses": _AzureResponsesV1}, query={})
    return spoken, before + "/openai/v1" + query


ALIASES: Final[Mapping[str, str]] = {
    "ollama_chat": "ollama",
    "google": "gemini",
    "claude": "anthropic",
    "azure_openai": "azure",
    "vllm": "hosted_vllm",
}
"""Other names for the same providers, from elsewhere."""

ANY: Final = Provider("any", _chat(Dialect("any")), formats=_OTHERS)
"""A model of no known provider, at an address that the user gave."""
