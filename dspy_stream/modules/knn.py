"""KNN: the examples of a set that are nearest to some inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.settled import settled
from dspy_stream.modules.vectors import Scan, matrix
from dspy_stream.program import Example
from dspy_stream.runtime import aperform, bridge

__all__ = ["KNN"]


class KNN:
    """Find the ``k`` examples whose inputs are nearest to those of a call, the nearest first.

    Inputs are compared by the products of their vectors. Making it embeds the whole set and blocks;
    a call embeds the inputs. Needs the extra ``vectors``.

    Args:
        k: how many examples.
        trainset: examples that know their inputs.
        vectorizer: an Embedder, or any function from a list of texts to vectors, coroutine functions too.

    Raises:
        ConfigurationError: no examples, or ``k`` below 1.
        ValueError: an example does not know its inputs.

    >>> letters = lambda texts: [[text.count("a"), text.count("b")] for text in texts]
    >>> examples = [Example(word="bb", is_a=False), Example(word="aa", is_a=True)]
    >>> knn = KNN(1, [example.with_inputs("word") for example in examples], letters)
    >>> knn(word="aab")[0].is_a
    True
    """

    def __init__(self, k: int, trainset: Sequence[Example], vectorizer: Callable[..., Any]) -> None:
        if k < 1 or not trainset:
            raise ConfigurationError(f"k is {k} of {len(trainset)} examples; both are at least 1")
        self.k = k
        self.trainset = list(trainset)
        self.embedding = vectorizer
        self.trainset_vectors = matrix(
            settled(vectorizer([_text(dict(example.inputs().items())) for example in trainset])),
            "the vectorizer's vectors",
        )
        if len(self.trainset_vectors) != len(trainset):
            raise ValueError(
                f"the vectorizer gave {len(self.trainset_vectors)} vectors for {len(trainset)} examples"
            )
        self._scan = Scan(self.trainset_vectors)

    def __call__(self, **inputs: Any) -> list[Example]:
        """The nearest examples; inside a ``forward`` other rows go on meanwhile."""
        query = matrix(settled(self.embedding([_text(inputs)])), "the vectorizer's vectors")
        places, _ = self._scan.search(query[0], self.k)
        return [self.trainset[place] for place in places]

    async def acall(self, **inputs: Any) -> list[Example]:
        """The same from a coroutine."""
        return await aperform(bridge(self, **inputs))


def _text(inputs: Mapping[str, Any]) -> str:
    return " | ".join(f"{name}: {value}" for name, value in inputs.items())
