"""The embedding formats of providers other than OpenAI, as what they do differently from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from dspy_stream.lm.providers.counts import Counter
from dspy_stream.lm.providers.openai.embeddings import EmbeddingsFormat
from dspy_stream.lm.providers.wire import check_path

__all__ = [
    "CohereEmbeddings",
    "GeminiEmbeddings",
    "MistralEmbeddings",
    "OllamaEmbeddings",
    "VoyageEmbeddings",
]

_VERSIONED: Final = re.compile(r"/(?:compatibility/)?v\d[a-z0-9]*/?$")


class MistralEmbeddings(EmbeddingsFormat):
    """Mistral's: OpenAI's form, fewer texts at once, and another name for the dimensions."""

    __slots__ = ()
    most = 128
    renamed: ClassVar[Mapping[str, str]] = {"dimensions": "output_dimension"}


class VoyageEmbeddings(EmbeddingsFormat):
    """Voyage's: OpenAI's form, and another name for the dimensions."""

    __slots__ = ()
    most = 1000
    renamed: ClassVar[Mapping[str, str]] = {"dimensions": "output_dimension"}


class _Own(EmbeddingsFormat):
    """An endpoint of the provider's own, beside the one that speaks OpenAI's formats."""

    __slots__ = ()
    beside = ""

    def url(self, base: str) -> str | None:
        """The address without its version, and this endpoint's path after it."""
        return _VERSIONED.sub("", base.rstrip("/")) + self.beside


class OllamaEmbeddings(_Own):
    """Ollama's ``/api/embed``.

    >>> format = OllamaEmbeddings("bge-m3")
    >>> format.url("http://127.0.0.1:11434/v1")
    'http://127.0.0.1:11434/api/embed'
    """

    __slots__ = ()
    beside = "/api/embed"

    def _found(self, value: dict[str, Any]) -> Any:
        return value.get("embeddings")

    def _counted(self, value: dict[str, Any]) -> tuple[Counter, int]:
        counts = value.get("prompt_eval_count")
        counter = Counter(None if counts is None else {"tokens": counts})
        return counter, counter.take("tokens")


class CohereEmbeddings(_Own):
    """Cohere's embed, version 2; ``input_type`` is ``search_document`` where no option says otherwise.

    >>> CohereEmbeddings("embed-v4.0").url("https://api.cohere.ai/compatibility/v1")
    'https://api.cohere.ai/v2/embed'
    """

    __slots__ = ()
    most = 96
    beside = "/v2/embed"
    renamed: ClassVar[Mapping[str, str]] = {"dimensions": "output_dimension"}

    def _asked(self, options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        made = {"input_type": "search_document", **options, "embedding_types": ["float"]}
        return {"model": self._model, **made, "texts": texts}

    def _found(self, value: dict[str, Any]) -> Any:
        held = value.get("embeddings")
        return held.get("float") if isinstance(held, dict) else None

    def _counted(self, value: dict[str, Any]) -> tuple[Counter, int]:
        meta = value.get("meta")
        counter = Counter(meta.get("billed_units") if isinstance(meta, dict) else None)
        found = counter.take("input_tokens")
        return counter, found


class GeminiEmbeddings(_Own):
    """Gemini's ``batchEmbedContents``; it does not say how many tokens there were.

    >>> format = GeminiEmbeddings("text-embedding-004")
    >>> format.url("https://generativelanguage.googleapis.com/v1beta")
    'https://generativelanguage.googleapis.com/v1beta/models/text-embedding-004:batchEmbedContents'
    """

    __slots__ = ()
    most = 100
    renamed: ClassVar[Mapping[str, str]] = {
        "dimensions": "outputDimensionality",
        "task_type": "taskType",
    }

    def url(self, base: str) -> str | None:
        """The model is part of the path."""
        check_path(self._model)
        return f"{base.rstrip('/')}/models/{self._model}:batchEmbedContents"

    def _asked(self, options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        name = f"models/{self._model}"
        parts = [{"model": name, "content": {"parts": [{"text": text}]}, **options} for text in texts]
        return {"requests": parts}

    def _found(self, value: dict[str, Any]) -> Any:
        held = value.get("embeddings")
        if not isinstance(held, list):
            return None
        return [each.get("values") if isinstance(each, dict) else None for each in held]

    def _counted(self, value: dict[str, Any]) -> tuple[Counter, int]:
        counter = Counter(value.get("usageMetadata"))
        return counter, counter.take("promptTokenCount")
