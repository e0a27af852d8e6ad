"""Vectors and the search for the nearest of them; the one place that knows numpy and usearch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from dspy_stream.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

__all__ = [
    "Graph",
    "Nearest",
    "Scan",
    "best",
    "matrix",
    "normalized",
    "of_bytes",
    "read_matrix",
    "write_matrix",
]

_TINY: Final = 1e-10
# So many candidates of the graph, for each that is wanted, are compared exactly.
_CANDIDATES: Final = 10


def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise ConfigurationError(
            "vectors need numpy, which comes with the extra: pip install 'dspy_stream[vectors]'"
        ) from error
    return np


def matrix(vectors: Iterable[Any], what: str = "the vectors") -> Matrix:
    """Vectors as rows of 32-bit floats.

    Raises:
        ValueError: they are no numbers, not finite, or not all as long.
    """
    np = _numpy()
    try:
        rows = vectors if hasattr(vectors, "__array__") else list(vectors)
        made: Matrix = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} are not rows of numbers, all of one length: {error}") from None
    if made.ndim == 1 and made.size == 0:
        made = made.reshape(0, 0)
    if made.ndim != 2:
        raise ValueError(f"{what} have {made.ndim} dimensions; one vector for each text makes 2")
    if not np.isfinite(made).all():
        raise ValueError(f"{what} hold NaN or an infinity")
    return made


def of_bytes(rows: Sequence[bytes]) -> Matrix:
    """Vectors from their 32-bit floats, lowest byte first.

    Raises:
        ValueError: not all are as long.
    """
    np = _numpy()
    if not rows:
        return matrix([])
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("the vectors are not all of one length; did the model change?")
    found = np.frombuffer(b"".join(rows), dtype="<f4").astype(np.float32)
    return matrix(found.reshape(len(rows), -1))


def normalized(vectors: Matrix) -> Matrix:
    """The same directions, of length 1."""
    np = _numpy()
    made: Matrix = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _TINY)
    return made


def best(scores: Any, k: int) -> Any:
    """Places of the ``k`` highest scores, the highest first; of equal ones the first."""
    return _numpy().argsort(-scores, kind="stable")[:k]


class Nearest(Protocol):
    """Finds the vectors with the highest product with a query."""

    def search(self, query: Any, k: int) -> tuple[list[int], list[float]]:
        """Places and products, the highest first."""
        ...


class Scan:
    """Compares a query with every vector."""

    def __init__(self, vectors: Matrix) -> None:
        self._vectors = vectors

    def search(self, query: Any, k: int) -> tuple[list[int], list[float]]:
        """Places and products, the highest first; exact."""
        scores = self._vectors @ query
        places = best(scores, k)
        return places.tolist(), scores[places].tolist()


class Graph:
    """A graph of neighbours (HNSW), built once: fast, and nearly always right.

    Candidates come from the graph, and are put in order by their exact products.
    """

    def __init__(self, vectors: Matrix, kept: Path | None = None) -> None:
        self._vectors = vectors
        index = _usearch()(ndim=int(vectors.shape[1]), metric="ip", dtype="f32")
        if kept is None:
            # By one thread: several make another graph each time, and other passages make other prompts,
            # which would be paid again after a crash; now and then one loses a vector altogether.
            index.add(_numpy().arange(len(vectors)), vectors, threads=1)
        else:
            index.load(str(kept))
            if len(index) != len(vectors) or index.ndim != vectors.shape[1]:
                raise ValueError(f"{kept.name} is not the index of these vectors")
        self._index = index

    def search(self, query: Any, k: int) -> tuple[list[int], list[float]]:
        """Places and products, the highest first."""
        if k * _CANDIDATES >= len(self._vectors):  # the graph may miss some, and spares nothing
            return Scan(self._vectors).search(query, k)
        found = self._index.search(query, k * _CANDIDATES)
        places = _numpy().sort(found.keys.astype(_numpy().int64))
        scores = self._vectors[places] @ query
        order = best(scores, k)
        return places[order].tolist(), scores[order].tolist()

    def save(self, path: Path) -> None:
        """Write the graph, in usearch's own form."""
        self._index.save(str(path))


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ConfigurationError(
            "so many vectors need an index: pip install 'dspy_stream[vectors]', or raise "
            "brute_force_threshold to compare with each of them"
        ) from error
    return Index


def write_matrix(path: Path, vectors: Matrix) -> None:
    """Write vectors in numpy's form, without pickles."""
    _numpy().save(path, vectors, allow_pickle=False)


def read_matrix(path: Path) -> Matrix:
    """Read them back.

    Raises:
        ValueError: the file holds something else, or needs a pickle.
    """
    try:
        return matrix(_numpy().load(path, allow_pickle=False), path.name)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
