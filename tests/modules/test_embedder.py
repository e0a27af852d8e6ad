"""Embedder: functions and endpoints, batches, what is kept and what is paid for, refusals."""

import asyncio
import base64
import json
import struct

import numpy as np
import pytest

from dspy_stream.configuration import configure, context
from dspy_stream.engine import Ticket
from dspy_stream.errors import LMAuthError, LMConfigurationError, LMIncompleteError, LMInvalidRequestError
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.cost import Price
from dspy_stream.modules import Module
from dspy_stream.modules.embedder import Embedder
from dspy_stream.modules.scope import SCOPE, TICKET, Clients, Scope
from dspy_stream.program import Prediction
from dspy_stream.runtime import aperform
from dspy_stream.usage import track_usage
from tests.lm.server import ModelServer, Reply


def vector(text):
    return [float(len(text)), float(text.count("a")), 0.5]


def answer(texts, **changes):
    data = [{"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(texts)]
    tokens = sum(len(text) for text in texts)
    value = {"object": "list", "data": data, "model": "small", "usage": {"prompt_tokens": tokens}}
    return Reply(json.dumps({**value, **changes}).encode())


def embeds(seen):
    return answer(seen.json["input"])


def at(server, **options):
    return Embedder("openai/small", api_base=server.url, api_key="", **options)


def serving(then, test):
    """Run a test against a server."""

    async def main():
        async with ModelServer(then=then) as server:
            return await test(server)

    return asyncio.run(main())


class TestFunctions:
    def test_texts_become_rows_in_their_order(self):
        made = Embedder(lambda texts: [vector(text) for text in texts])(["a", "bb"])
        assert made.tolist() == [[1, 1, 0.5], [2, 0, 0.5]]
        assert made.dtype == np.float32

    def test_a_single_text_becomes_a_vector(self):
        assert Embedder(lambda texts: [vector(text) for text in texts])("aa").tolist() == [2, 2, 0.5]
        assert Embedder(lambda texts: [])([]).shape == (0, 0)

    @pytest.mark.parametrize(
        ("made", "called", "sizes"), [(2, None, [2, 2, 1]), (2, 4, [4, 1]), (200, None, [5])]
    )
    def test_in_batches(self, made, called, sizes):
        seen = []

        def fn(texts):
            seen.append(len(texts))
            return np.ones((len(texts), 2))

        assert Embedder(fn, batch_size=made)(list("abcde"), batch_size=called).shape == (5, 2)
        assert seen == sizes

    def test_coroutine_functions_and_options(self):
        async def fn(texts, scale=1, shift=0):
            await asyncio.sleep(0)
            return [[len(text) * scale + shift] for text in texts]

        embedder = Embedder(fn, scale=2)
        assert embedder(["ab"], shift=1).tolist() == [[5]]
        assert asyncio.run(embedder.acall("ab", scale=3)).tolist() == [6]

    @pytest.mark.parametrize(
        ("made", "words"),
        [
            ([[1.0]], "2 texts were embedded, and 1 vectors came back"),
            ([[1.0], [1.0, 2.0]], "all of one length"),
            ([1.0, 2.0], "1 dimensions"),
            ([["x"], ["y"]], "rows of numbers"),
            ([[float("nan")], [1.0]], "NaN or an infinity"),
        ],
    )
    def test_vectors_that_do_not_fit_are_refused(self, made, words):
        with pytest.raises(ValueError, match=words):
            Embedder(lambda texts: made)(["a", "b"])

    def test_what_is_no_text_or_no_model_is_refused(self):
        with pytest.raises(ValueError, match="All inputs must be strings"):
            Embedder(lambda texts: texts)(["a", 1])
        with pytest.raises(ValueError, match="must be a string or a callable"):
            Embedder(7)
        with pytest.raises(ValueError, match="batch_size is 0"):
            Embedder(lambda texts: texts, batch_size=0)


class TestEndpoints:
    def test_texts_are_sent_together_and_vectors_come_in_their_order(self):
        def reversed_order(seen):
            reply = json.loads(embeds(seen).body)
            return Reply(json.dumps({**reply, "data": reply["data"][::-1]}).encode())

        async def test(server):
            made = await at(server, dimensions=3).acall(["a", "bb", "ccc"])
            assert made.tolist() == [[1, 1, 0.5], [2, 0, 0.5], [3, 0, 0.5]]
            (seen,) = server.seen
            assert seen.json == {"model": "small", "dimensions": 3, "input": ["a", "bb", "ccc"]}
            assert b"POST /v1/embeddings" in seen.head

        serving(reversed_order, test)

    def test_from_synchronous_code(self):
        async def test(server):
            loop = asyncio.get_running_loop()
            made = await loop.run_in_executor(None, lambda: at(server)("aa"))
            assert made.tolist() == [2, 2, 0.5]

        serving(embeds, test)

    def test_packed_vectors(self):
        def packed(seen):
            data = base64.b64encode(struct.pack("<2f", 1.5, -2.0)).decode()
            return Reply(json.dumps({"data": [{"index": 0, "embedding": data}]}).encode())

        async def test(server):
            assert (await at(server, encoding_format="base64").acall("x")).tolist() == [1.5, -2.0]

        serving(packed, test)

    def test_in_batches(self):
        async def test(server):
            texts = [f"text {number}" for number in range(25)]
            made = await at(server, batch_size=10).acall(texts)
            assert made.tolist() == [vector(text) for text in texts]
            assert sorted(len(seen.json["input"]) for seen in server.seen) == [5, 10, 10]
            await at(server).acall(["other", "others"], batch_size=1)
            assert [len(seen.json["input"]) for seen in server.seen[3:]] == [1, 1]

        serving(embeds, test)

    def test_a_text_is_paid_for_once(self):
        async def test(server):
            journal = DictJournal()
            with context(journal=journal):
                await at(server).acall(["a", "b", "a"])
                await at(server).acall(["b", "c"])
                assert [seen.json["input"] for seen in server.seen] == [["a", "b"], ["c"]]
                await at(server, dimensions=2).acall(["a"])
                await at(server).acall(["a"], caching=False)
                await at(server, caching=False).acall(["a"])
                assert len(server.seen) == 5
                assert len(journal.entries) == 4

        serving(embeds, test)

    def test_rows_at_the_same_time_share_a_request(self):
        class Program(Module):
            def __init__(self, embedder):
                self.embedder = embedder

            def forward(self, text):
                return Prediction(vector=self.embedder(text).tolist())

        async def test(server):
            module = Program(at(server))
            scope = Scope(Clients(DictJournal()))

            async def row(number):
                SCOPE.set(scope)
                return (await aperform(module.steps({"text": "a" * number}))).vector

            from dspy_stream.runtime import hop

            async def all_rows():
                return await asyncio.gather(*(row(number) for number in range(1, 41)))

            made = await hop(all_rows())  # as in a flow: on the engine's own loop
            assert made == [vector("a" * number) for number in range(1, 41)]
            assert [len(seen.json["input"]) for seen in server.seen] == [40]

        serving(embeds, test)

    def test_what_was_used_is_counted(self):
        async def test(server):
            embedder = at(server, prices={"openai/small": Price(2.0, 0.0)})
            ticket = Ticket("run", "step", "row")
            TICKET.set(ticket)
            with context(journal=DictJournal()), track_usage() as tracker:
                await embedder.acall(["aaa", "bbbbb", "c"])
                await embedder.acall(["aaa"])
            used = ticket.usage["openai/small"]
            assert used.prompt_tokens == 9
            assert used.cost == pytest.approx(9 * 2.0 / 1_000_000)
            assert ticket.hits == 1
            assert tracker.get_total_tokens()["openai/small"]["prompt_tokens"] == 9

        serving(embeds, test)


class TestFailures:
    def test_what_may_pass_is_tried_again(self):
        async def test(server):
            server.replies.append(Reply(b"{}", status=503))
            assert (await at(server).acall("a")).tolist() == vector("a")
            assert len(server.seen) == 2

        serving(embeds, test)

    def test_a_text_that_is_refused_fails_alone(self):
        def picky(seen):
            if "" in seen.json["input"]:
                return Reply(b'{"error": {"message": "empty input"}}', status=400)
            return embeds(seen)

        async def test(server):
            embedder = at(server)
            texts = ["a", "bb", "", "ccc", "dddd"]
            made = await asyncio.gather(*(embedder.acall(text) for text in texts), return_exceptions=True)
            assert isinstance(made.pop(2), LMInvalidRequestError)
            assert [row.tolist() for row in made] == [vector(text) for text in texts if text]

        serving(picky, test)

    def test_a_wrong_key_is_not_tried_in_halves(self):
        async def test(server):
            with pytest.raises(LMAuthError):
                await at(server).acall(["a", "b", "c"])
            assert len(server.seen) == 1

        serving(lambda seen: Reply(b"{}", status=401), test)

    @pytest.mark.parametrize(
        "changes",
        [
            {"data": []},
            {"data": None},
            {"data": [{"index": 0, "embedding": [1.0]}]},
            {"data": [{"index": 0, "embedding": ["x"]}, {"index": 1, "embedding": [1.0]}]},
            {"data": [{"index": 0, "embedding": "????"}, {"index": 1, "embedding": [1.0]}]},
            {"data": [1, 2]},
            {"data": [{"index": 0}, {"index": 1}]},
        ],
    )
    def test_an_answer_that_holds_something_else(self, changes):
        async def test(server):
            with pytest.raises(LMIncompleteError):
                await at(server, num_retries=0).acall(["a", "b"])

        serving(lambda seen: answer(["a", "b"], **changes), test)

    def test_vectors_of_several_lengths(self):
        def odd(seen):
            return answer([], data=[{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}])

        async def test(server):
            with pytest.raises(ValueError, match="not all of one length"):
                await at(server).acall(["a", "b"])

        serving(odd, test)

    def test_a_caller_that_goes_away_takes_nobody_along(self):
        async def test(server):
            embedder = at(server)
            first = asyncio.ensure_future(embedder.acall("a"))
            second = asyncio.ensure_future(embedder.acall("bb"))
            await asyncio.sleep(0.01)
            first.cancel()
            assert (await second).tolist() == vector("bb")

        def slow(seen):
            reply = embeds(seen)
            return Reply(reply.body, delay=0.05)

        serving(slow, test)


class TestPlaces:
    def target(self, model, **options):
        embedder = Embedder(model, **options)
        layer = embedder._lm._paid(_clock(), _rng())
        endpoint = layer._inner._inner._inner._inner._endpoint
        return str(endpoint.url), endpoint.headers

    def test_paths_and_headers_are_the_providers(self, monkeypatch):
        monkeypatch.delenv("AZURE_API_VERSION", raising=False)
        url, headers = self.target("openai/text-embedding-3-small", api_key="k1")
        assert url == "https://api.openai.com/v1/embeddings"
        assert headers["Authorization"] == "Bearer k1"
        url, headers = self.target("azure/mine", api_key="k2", api_base="https://x.openai.azure.com")
        assert url.startswith("https://x.openai.azure.com/openai/deployments/mine/embeddings?api-version=")
        assert headers["api-key"] == "k2"
        assert "Authorization" not in headers
        url, headers = self.target("gemini/text-embedding-004", api_key="k3")
        models = "https://generativelanguage.googleapis.com/v1beta/models/"
        assert url == f"{models}text-embedding-004:batchEmbedContents"
        assert headers["x-goog-api-key"] == "k3"
        assert "Authorization" not in headers

    @pytest.mark.parametrize(
        ("model", "address"),
        [
            ("ollama/bge-m3", "http://127.0.0.1:11434/api/embed"),
            ("cohere/embed-v4.0", "https://api.cohere.ai/v2/embed"),
            ("voyage/voyage-3.5", "https://api.voyageai.com/v1/embeddings"),
            ("mistral/mistral-embed", "https://api.mistral.ai/v1/embeddings"),
            ("deepinfra/bge", "https://api.deepinfra.com/v1/openai/embeddings"),
        ],
    )
    def test_each_has_its_own(self, model, address):
        url, headers = self.target(model, api_key="k")
        assert (url, headers["Authorization"]) == (address, "Bearer k")

    def test_a_provider_without_any_is_named(self):
        with pytest.raises(LMConfigurationError, match="anthropic is not known to have embeddings"):
            self.target("anthropic/claude", api_key="k")

    def test_keys_are_not_shown(self):
        embedder = Embedder("openai/small", api_key="very secret")
        assert "secret" not in repr(embedder) + repr(embedder._lm)


def _clock():
    from dspy_stream.clock import SystemClock

    return SystemClock()


def _rng():
    import random

    return random.Random(0)


def test_settings_of_the_process_are_used_outside_of_scopes():
    async def test(server):
        configure(journal=DictJournal())
        await at(server).acall("a")
        await at(server).acall("a")
        assert len(server.seen) == 1

    serving(embeds, test)
