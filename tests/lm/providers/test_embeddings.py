"""The embedding endpoints of several providers: what each is sent, read back, capped and journaled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from dspy_stream.errors import LMConfigurationError, LMIncompleteError, LMInvalidRequestError
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.cost import Price
from dspy_stream.lm.embeddings import EmbeddingLM
from dspy_stream.lm.providers.embeddings import GeminiEmbeddings
from dspy_stream.lm.providers.openai.embeddings import EmbeddingsFormat, vector_of
from dspy_stream.types import Request, Response
from tests.lm.server import ModelServer, Reply, Seen

Embed = Callable[[dict[str, Any]], dict[str, Any]]


def vector(text: str) -> list[float]:
    return [float(len(text)), 0.5]


def openai(asked: dict[str, Any]) -> dict[str, Any]:
    data = [{"index": n, "embedding": vector(text)} for n, text in enumerate(asked["input"])]
    return {"data": data[::-1], "usage": {"prompt_tokens": 40, "total_tokens": 40}}


def voyage(asked: dict[str, Any]) -> dict[str, Any]:
    return {**openai(asked), "usage": {"total_tokens": 40}}


def ollama(asked: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "embeddings": [vector(t) for t in asked["input"]], "prompt_eval_count": 40}


def cohere(asked: dict[str, Any]) -> dict[str, Any]:
    made = {"float": [vector(text) for text in asked["texts"]]}
    return {"id": "x", "embeddings": made, "meta": {"billed_units": {"input_tokens": 40}}}


def gemini(asked: dict[str, Any]) -> dict[str, Any]:
    texts = [one["content"]["parts"][0]["text"] for one in asked["requests"]]
    return {"embeddings": [{"values": vector(text)} for text in texts]}


def embed(
    model: str, answer: Embed, texts: list[str], **options: Any
) -> tuple[list[Response], list[Seen], DictJournal]:
    journal = DictJournal()

    async def go() -> tuple[list[Response], list[Seen], DictJournal]:
        then = lambda seen: Reply(json.dumps(answer(seen.json)).encode())  # noqa: E731
        async with ModelServer(then=then) as server:
            lm = EmbeddingLM(model, api_base=server.url, api_key="k", num_retries=0, **options)
            layer = lm.connect(journal)
            made = await asyncio.gather(*(layer(lm.question(text)) for text in texts))
            again = await layer(lm.question(texts[0]))
            await layer.aclose()
            assert again.cached, "each vector is in the journal"
            return list(made), list(server.seen), journal

    return asyncio.run(go())


SENT: list[tuple[str, Embed, str, dict[str, Any], str]] = [
    (
        "openai/m",
        openai,
        "/v1/embeddings",
        {"model": "m", "dimensions": 2, "input": ["a", "bcd"]},
        "Bearer k",
    ),
    (
        *("mistral/m", openai, "/v1/embeddings"),
        *({"model": "m", "output_dimension": 2, "input": ["a", "bcd"]}, "Bearer k"),
    ),
    (
        *("voyage/m", voyage, "/v1/embeddings"),
        *({"model": "m", "output_dimension": 2, "input": ["a", "bcd"]}, "Bearer k"),
    ),
    ("ollama/m", ollama, "/api/embed", {"model": "m", "dimensions": 2, "input": ["a", "bcd"]}, "Bearer k"),
    (
        *("cohere/m", cohere, "/v2/embed"),
        {
            **{"model": "m", "input_type": "search_document", "output_dimension": 2},
            **{"embedding_types": ["float"], "texts": ["a", "bcd"]},
        },
        "Bearer k",
    ),
]


@pytest.mark.parametrize(("model", "answer", "path", "body", "key"), SENT, ids=[each[0] for each in SENT])
def test_what_is_sent_and_read(model: str, answer: Embed, path: str, body: dict[str, Any], key: str) -> None:
    prices = {model: Price(1.0, 0.0)}
    made, seen, _ = embed(model, answer, ["a", "bcd"], dimensions=2, prices=prices)
    (only,) = seen
    assert only.head.split(b" ")[:2] == [b"POST", path.encode()]
    assert only.json == body
    assert only.headers["authorization"] == key
    assert [len(vector_of(response.choices[0])) // 4 for response in made] == [2, 2]
    assert sum(response.usage.prompt_tokens for response in made) == 40
    assert sum(response.usage.cost or 0.0 for response in made) == pytest.approx(40e-6)


def test_gemini_is_asked_for_many_at_once() -> None:
    made, (seen,), _ = embed("gemini/m", gemini, ["a", "bcd"], dimensions=2, task_type="CLUSTERING")
    assert b"/v1/models/m:batchEmbedContents" in seen.head
    assert seen.headers["x-goog-api-key"] == "k"
    assert seen.json["requests"][1] == {
        "model": "models/m",
        "content": {"parts": [{"text": "bcd"}]},
        "outputDimensionality": 2,
        "taskType": "CLUSTERING",
    }
    assert [response.usage.prompt_tokens for response in made] == [0, 0]
    with pytest.raises(LMConfigurationError, match="cannot be part of an address"):
        GeminiEmbeddings("../files").url("https://x.example/v1beta")


@pytest.mark.parametrize(
    ("model", "answer", "most", "name"),
    [
        ("cohere/m", cohere, 96, "texts"),
        ("gemini/m", gemini, 100, "requests"),
        ("mistral/m", openai, 128, "input"),
    ],
)
def test_no_more_texts_go_together_than_a_provider_takes(
    model: str, answer: Embed, most: int, name: str
) -> None:
    texts = [f"text {n}" for n in range(250)]
    made, seen, journal = embed(model, answer, texts, batch_size=1000)
    assert max(len(each.json[name]) for each in seen) == most
    assert sum(len(each.json[name]) for each in seen) == len(texts) == len(journal.entries)
    assert len(made) == len(texts)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("ollama/m", {"embeddings": [[1.0]]}),  # one too few
        ("ollama/m", {"embeddings": [[1.0], []]}),
        ("cohere/m", {"embeddings": {"int8": [[1], [2]]}}),
        ("cohere/m", {"embeddings": [[1.0], [2.0]]}),
        ("gemini/m", {"embeddings": [{"values": [1.0]}, None]}),
        ("gemini/m", {}),
        ("voyage/m", {"data": None}),
    ],
)
def test_what_holds_no_vectors_is_an_incomplete_answer(model: str, given: dict[str, Any]) -> None:
    with pytest.raises(LMIncompleteError):
        embed(model, lambda asked: given, ["a", "bcd"])


def test_a_refused_text_fails_alone() -> None:
    def then(seen: Seen) -> Reply:
        texts = seen.json["texts"]
        if "bad" in texts:
            return Reply(b'{"message":"invalid request: bad text"}', status=400)
        return Reply(json.dumps(cohere(seen.json)).encode())

    async def go() -> list[Any]:
        async with ModelServer(then=then) as server:
            lm = EmbeddingLM("cohere/m", api_base=server.url, api_key="k")
            layer = lm.connect(None)
            asked = (layer(lm.question(text)) for text in ("a", "bad", "b", "c"))
            return await asyncio.gather(*asked, return_exceptions=True)

    made = asyncio.run(go())
    assert [isinstance(each, Response) for each in made] == [True, False, True, True]
    assert isinstance(made[1], LMInvalidRequestError)


@pytest.mark.parametrize("name", ["api_base", "timeout"])
def test_a_setting_is_not_sent_as_an_option(name: str) -> None:
    with pytest.raises(LMConfigurationError, match=name):
        EmbeddingsFormat("m").encode(Request.of("x/m", "hi", **{name: 5}))
