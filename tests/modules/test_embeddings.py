"""Embeddings: which passages are found, scanning and by the graph, and the folder it is kept in."""

import asyncio
import json
import random

import numpy as np
import pytest

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules import Module
from dspy_stream.modules.embedder import Embedder
from dspy_stream.modules.embeddings import Embeddings, EmbeddingsWithScores
from dspy_stream.modules.vectors import Graph, Scan, matrix, normalized
from dspy_stream.program import Prediction
from dspy_stream.stream import Stream

CORPUS = ["aaaa", "bbbb", "aabb", "aaab", "a"]


def letters(texts):
    return [[text.count("a"), text.count("b")] for text in texts]


def cloud(count, size=16, seed=1):
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


class TestSearch:
    def test_the_nearest_come_first(self):
        made = Embeddings(CORPUS, letters, k=3)("aaa")
        assert made.passages == ["aaaa", "a", "aaab"]
        assert made.indices == [0, 4, 3]
        assert set(made.keys()) == {"passages", "indices"}

    def test_products_where_nothing_is_normalized(self):
        assert Embeddings(CORPUS, letters, k=2, normalize=False)("a").passages == ["aaaa", "aaab"]

    def test_scores(self):
        made = EmbeddingsWithScores(CORPUS, letters, k=2)("b")
        assert made.passages == ["bbbb", "aabb"]
        assert made.scores == pytest.approx([1.0, 0.5**0.5])

    def test_so_many_as_there_are(self):
        search = Embeddings(CORPUS, letters, k=50)
        assert len(search("a").passages) == 5
        assert len(search("a", k=1).passages) == 1
        assert Embeddings(["only"], letters)("a").passages == ["only"]

    def test_coroutine_functions_and_async_calls(self):
        async def slow(texts):
            await asyncio.sleep(0.001)
            return letters(texts)

        search = Embeddings(CORPUS, slow, k=1)

        async def main():
            return await asyncio.gather(*(search.acall("ab"[number % 2]) for number in range(20)))

        assert [row.passages for row in asyncio.run(main())] == [["aaaa"], ["bbbb"]] * 10
        assert search("b").passages == ["bbbb"]

    def test_within_a_forward(self):
        class Program(Module):
            def __init__(self):
                self.search = Embeddings(CORPUS, letters, k=1)

            def forward(self, question):
                return Prediction(context=self.search(question).passages)

        assert asyncio.run(Program().acall(question="b")).context == ["bbbb"]
        assert Program()(question="a").context == ["aaaa"]

    @pytest.mark.parametrize("split", [None, True, False])
    def test_as_a_step_of_a_flow(self, split):
        rows = Stream.from_iterable([{"query": "a"}, {"query": "b"}])
        searched = rows.through(Embeddings(CORPUS, letters, k=1), split=split)
        assert "01_Embeddings" in searched.write([]).explain()
        found = searched.to_list()
        assert [(row["query"], row["passages"]) for row in found] == [("a", ["aaaa"]), ("b", ["bbbb"])]


class TestRefusals:
    def test_caching(self):
        with pytest.raises(AssertionError, match="Caching is not supported for embeddings-based retrievers"):
            Embeddings(CORPUS, letters, cache=True)

    def test_an_empty_corpus_or_no_passages_wanted(self):
        with pytest.raises(ConfigurationError, match="no passages"):
            Embeddings([], letters)
        with pytest.raises(ConfigurationError, match="k is 0"):
            Embeddings(CORPUS, letters, k=0)

    @pytest.mark.parametrize("threshold", [1, 100])
    def test_fewer_passages_than_none(self, threshold):
        search = Embeddings(CORPUS, letters, brute_force_threshold=threshold)
        with pytest.raises(ValueError, match="k is -1; at least one passage is wanted"):
            search("a", k=-1)

    def test_an_embedder_that_gives_nothing(self):
        search = Embeddings(CORPUS, letters)
        search.embedder = lambda texts: None
        with pytest.raises(ValueError, match="the embedder's vectors are not rows of numbers"):
            search("a")

    def test_vectors_that_do_not_fit(self):
        with pytest.raises(ValueError, match="1 vectors for 5 passages"):
            Embeddings(CORPUS, lambda texts: [[1.0]])
        search = Embeddings(CORPUS, letters)
        search.embedder = lambda texts: [[1.0, 2.0, 3.0]]
        with pytest.raises(ValueError, match="has 3 numbers, those of the corpus 2"):
            search("a")


class TestGraph:
    def test_it_finds_what_a_scan_finds(self):
        vectors = normalized(matrix(cloud(2000)))
        queries = normalized(matrix(cloud(50, seed=2)))
        graph, scan = Graph(vectors), Scan(vectors)
        right = 0
        for query in queries:
            found, exact = graph.search(query, 5), scan.search(query, 5)
            right += len(set(found[0]) & set(exact[0]))
            assert found[1] == sorted(found[1], reverse=True)
            assert found[1] == pytest.approx([float(vectors[place] @ query) for place in found[0]], abs=1e-5)
        assert right >= 0.95 * 250

    def test_built_again_it_finds_the_same_so_that_prompts_are_the_same(self):
        vectors = normalized(matrix(cloud(4000)))
        queries = normalized(matrix(cloud(400, seed=3)))
        first, second = (
            [graph.search(query, 5) for query in queries] for graph in (Graph(vectors), Graph(vectors))
        )
        assert first == second

    def test_where_all_are_wanted_none_is_missing(self):
        vectors = cloud(3000)
        for k in (300, 3000):
            places, scores = Graph(vectors).search(vectors[7], k)
            assert (places, scores) == Scan(vectors).search(vectors[7], k)
            assert len(set(places)) == k

    def test_it_is_used_from_the_threshold_on(self):
        texts = [str(number) for number in range(300)]
        rows = dict(zip(texts, cloud(300), strict=True))
        embed = lambda given: [rows[text] for text in given]  # noqa: E731
        small = Embeddings(texts, embed, brute_force_threshold=301)
        large = Embeddings(texts, embed, brute_force_threshold=300)
        assert isinstance(small._nearest, Scan)
        assert isinstance(large._nearest, Graph)
        for text in random.Random(0).sample(texts, 20):
            assert large(text).passages[0] == small(text).passages[0] == text


class TestFolders:
    @pytest.mark.parametrize("threshold", [3, 100])
    def test_what_was_saved_is_read_without_embedding_it_again(self, tmp_path, threshold):
        before = Embeddings(CORPUS, letters, k=2, brute_force_threshold=threshold)
        before.save(tmp_path / "new" / "folder")
        asked = []

        def embed(texts):
            asked.append(texts)
            return letters(texts)

        after = Embeddings.from_saved(tmp_path / "new" / "folder", embed)
        assert asked == []
        assert (after.k, after.normalize, after.corpus) == (2, True, CORPUS)
        assert type(after._nearest) is type(before._nearest)
        assert after("b").toDict() == before("b").toDict()
        assert asked == [["b"]]
        assert type(EmbeddingsWithScores.from_saved(tmp_path / "new" / "folder", embed)("b").scores) is list

    def test_a_folder_of_dspys_is_read(self, tmp_path):
        config = {"k": 1, "normalize": True, "corpus": CORPUS, "has_faiss_index": True}
        (tmp_path / "config.json").write_text(json.dumps(config))
        np.save(tmp_path / "corpus_embeddings.npy", np.array(letters(CORPUS), dtype=np.float64))
        assert Embeddings.from_saved(tmp_path, letters)("b").passages == ["bbbb"]

    def test_what_is_missing_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Save directory not found"):
            Embeddings.from_saved(tmp_path / "none", letters)
        with pytest.raises(FileNotFoundError, match="Config file not found"):
            Embeddings.from_saved(tmp_path, letters)
        Embeddings(CORPUS, letters).save(tmp_path)
        (tmp_path / "corpus_embeddings.npy").unlink()
        with pytest.raises(FileNotFoundError, match="Embeddings file not found"):
            Embeddings.from_saved(tmp_path, letters)

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("{", "is not JSON"),
            ("[]", "missing required field 'k'"),
            ('{"k": 1, "normalize": true}', "missing required field 'corpus'"),
            ('{"k": "1", "normalize": true, "corpus": []}', "'k' is no int"),
            ('{"k": 1, "normalize": true, "corpus": [1]}', "other than texts"),
            ('{"k": 1, "normalize": true, "corpus": ["a"]}', "5 vectors do not fit 1 passages"),
        ],
    )
    def test_files_that_do_not_fit(self, tmp_path, config, words):
        Embeddings(CORPUS, letters).save(tmp_path)
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(ValueError, match=words):
            Embeddings.from_saved(tmp_path, letters)

    def test_pickles_are_not_read(self, tmp_path):
        class Harm:
            def __reduce__(self):
                return (pytest.fail, ("a pickle was read",))

        Embeddings(CORPUS, letters).save(tmp_path)
        np.save(tmp_path / "corpus_embeddings.npy", np.array([Harm()], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match="pickle"):
            Embeddings.from_saved(tmp_path, letters)

    def test_an_index_of_other_vectors_is_refused(self, tmp_path):
        Embeddings(CORPUS, letters, brute_force_threshold=1).save(tmp_path)
        Graph(matrix(cloud(9))).save(tmp_path / "index.usearch")
        with pytest.raises(ValueError, match="not the index of these vectors"):
            Embeddings.from_saved(tmp_path, letters)


@pytest.mark.parametrize(("module", "words"), [("numpy", "vectors need numpy"), ("usearch", "need an index")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, module, words):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    if module == "usearch":
        monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    with pytest.raises(ConfigurationError, match=rf"{words}.*dspy_stream\[vectors\]"):
        Embeddings(CORPUS, letters, brute_force_threshold=1)


def test_where_numpy_is_missing_nothing_is_asked(monkeypatch):
    asked = []
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(ConfigurationError, match="vectors need numpy"):
        Embedder(lambda texts: asked.append(texts) or [[1.0] for _ in texts])(["a"])
    assert not asked
