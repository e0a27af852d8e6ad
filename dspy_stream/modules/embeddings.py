"""Embeddings: a corpus that is searched by the vectors of its passages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.retrieve import RetrieverError
from dspy_stream.modules.settled import settled
from dspy_stream.modules.vectors import Graph, Nearest, Scan, matrix, normalized, read_matrix, write_matrix
from dspy_stream.program import Prediction
from dspy_stream.runtime import aperform, bridge

__all__ = ["Embeddings", "EmbeddingsWithScores"]

_CONFIG: Final = "config.json"
_VECTORS: Final = "corpus_embeddings.npy"
_GRAPH: Final = "index.usearch"
_FIELDS: Final = ("k", "normalize", "corpus")


class Embeddings:
    """A retriever over a list of passages: the ``k`` whose vectors are nearest to the query's.

    From ``brute_force_threshold`` passages on, an index finds candidates, which are then compared
    exactly; below, the query is compared with each. A call gives a prediction with ``passages`` and
    their ``indices`` in the corpus, the best first. Making it embeds the whole corpus and blocks.
    Needs the extra ``vectors``.

    Args:
        corpus: the passages.
        embedder: an Embedder, or any function from a list of texts to vectors, coroutine functions too.
        k: how many passages a call gives.
        cache: not supported; an Embedder has a journal.
        normalize: compare directions (cosine) rather than products.

    Raises:
        ConfigurationError: no passages.
        RetrieverError: ``cache`` is set.

    >>> letters = lambda texts: [[text.count("a"), text.count("b")] for text in texts]
    >>> search = Embeddings(["aaa", "bbb", "aab"], letters, k=2)
    >>> search("a").passages, search("b").indices
    (['aaa', 'aab'], [1, 2])
    """

    def __init__(
        self,
        corpus: Sequence[str],
        embedder: Callable[..., Any],
        k: int = 5,
        callbacks: Any = None,
        cache: bool = False,
        brute_force_threshold: int = 20_000,
        normalize: bool = True,
    ) -> None:
        del callbacks  # accepted for programs written for DSPy
        if cache:
            raise RetrieverError("Caching is not supported for embeddings-based retrievers")
        if not corpus:
            raise ConfigurationError("the corpus has no passages")
        vectors = matrix(settled(embedder(list(corpus))), "the embedder's vectors")
        if len(vectors) != len(corpus):
            raise ValueError(f"the embedder gave {len(vectors)} vectors for {len(corpus)} passages")
        vectors = normalized(vectors) if normalize else vectors
        nearest = Graph(vectors) if len(corpus) >= brute_force_threshold else Scan(vectors)
        self._fill(list(corpus), embedder, vectors, nearest, k=k, normalize=normalize)

    def _fill(
        self,
        corpus: list[str],
        embedder: Callable[..., Any],
        vectors: Any,
        nearest: Nearest,
        *,
        k: int,
        normalize: bool,
    ) -> None:
        if k < 1:
            raise ConfigurationError(f"k is {k}; at least one passage is wanted")
        self.corpus = corpus
        self.embedder = embedder
        self.k = k
        self.normalize = normalize
        self.corpus_embeddings = vectors
        self._nearest = nearest

    def __call__(self, query: str, k: int | None = None) -> Prediction:
        """The passages nearest to the query; inside a ``forward`` other rows go on meanwhile."""
        return self.forward(query, k)

    async def acall(self, query: str, k: int | None = None) -> Prediction:
        """The same from a coroutine."""
        return await aperform(bridge(self.forward, query, k))

    def forward(self, query: str, k: int | None = None) -> Prediction:
        """The same as calling."""
        passages, indices, _ = self._search(query, k)
        return Prediction(passages=passages, indices=indices)

    def _search(self, query: str, k: int | None) -> tuple[list[str], list[int], list[float]]:
        if k is not None and k < 0:
            raise ValueError(f"k is {k}; at least one passage is wanted")
        vectors = matrix(settled(self.embedder([query])), "the embedder's vectors")
        if vectors.shape != (1, self.corpus_embeddings.shape[1]):
            raise ValueError(
                f"the query's vector has {vectors.shape[-1]} numbers, those of the corpus "
                f"{self.corpus_embeddings.shape[1]}; is it another embedder?"
            )
        vector = (normalized(vectors) if self.normalize else vectors)[0]
        indices, scores = self._nearest.search(vector, min(k or self.k, len(self.corpus)))
        return [self.corpus[index] for index in indices], indices, scores

    # ------------------------------------------------------------------------------------- saving

    def save(self, path: str | Path) -> None:
        """Write passages, vectors and index into a folder; made where it is missing. No pickles."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        indexed = isinstance(self._nearest, Graph)
        # DSPy reads the folder too, and has an index of another kind.
        config = {"k": self.k, "normalize": self.normalize, "corpus": self.corpus, "has_faiss_index": False}
        config["has_index"] = indexed
        (folder / _CONFIG).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
        write_matrix(folder / _VECTORS, self.corpus_embeddings)
        if isinstance(self._nearest, Graph):
            self._nearest.save(folder / _GRAPH)

    def load(self, path: str | Path, embedder: Callable[..., Any]) -> Embeddings:
        """Read a folder that :meth:`save` wrote, or DSPy, into this retriever; returns it.

        DSPy's own index is not read: the query is then compared with every passage. An index file is
        read by native code, which does not guard against files made to harm: load folders you trust.

        Raises:
            FileNotFoundError: the folder or a file of it is missing.
            ValueError: the files do not fit together, or are none of these.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"Save directory not found: {folder}")
        config = _config(folder / _CONFIG)
        if not (folder / _VECTORS).is_file():
            raise FileNotFoundError(f"Embeddings file not found: {folder / _VECTORS}")
        vectors = read_matrix(folder / _VECTORS)
        if len(vectors) != len(config["corpus"]) or not len(vectors):
            raise ValueError(f"{folder}: {len(vectors)} vectors do not fit {len(config['corpus'])} passages")
        graph = folder / _GRAPH
        kept = config.get("has_index") is True and graph.is_file()
        nearest = Graph(vectors, graph) if kept else Scan(vectors)
        self._fill(config["corpus"], embedder, vectors, nearest, k=config["k"], normalize=config["normalize"])
        return self

    @classmethod
    def from_saved(cls, path: str | Path, embedder: Callable[..., Any]) -> Embeddings:
        """A retriever from a folder; nothing is embedded. Raises as :meth:`load`."""
        return cls.__new__(cls).load(path, embedder)


class EmbeddingsWithScores(Embeddings):
    """The same, with the ``scores`` of the passages in the prediction.

    >>> letters = lambda texts: [[text.count("a"), text.count("b")] for text in texts]
    >>> EmbeddingsWithScores(["aa", "b"], letters, k=1)("a").scores
    [1.0]
    """

    def forward(self, query: str, k: int | None = None) -> Prediction:
        """The same as calling."""
        passages, indices, scores = self._search(query, k)
        return Prediction(passages=passages, indices=indices, scores=scores)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"Config file not found: {path}")
    try:
        config = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"Invalid config: {path} is not JSON: {error}") from None
    for field, kind in zip(_FIELDS, (int, bool, list), strict=True):
        if not isinstance(config, dict) or field not in config:
            raise ValueError(f"Invalid config: missing required field '{field}'")
        if type(config[field]) is not kind:
            raise ValueError(f"Invalid config: '{field}' is no {kind.__name__}")
    if not all(isinstance(passage, str) for passage in config["corpus"]):
        raise ValueError("Invalid config: 'corpus' holds something other than texts")
    return dict(config)
