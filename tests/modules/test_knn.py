"""KNN: which examples are near, and what it is given to compare."""

import asyncio

import pytest

from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.knn import KNN
from dspy_stream.program import Example


def letters(texts):
    return [[text.count("p"), text.count("q"), 1.0] for text in texts]


def examples(*texts):
    return [Example(text=text, label=f"is {text}").with_inputs("text") for text in texts]


def test_the_nearest_come_first():
    train = examples("pppp", "qqqq", "ppqq", "ppp")
    knn = KNN(2, train, letters)
    assert knn(text="p") == [train[0], train[3]]
    assert knn(text="qq") == [train[1], train[2]]
    assert knn.trainset_vectors.shape == (4, 3)


def test_inputs_alone_are_compared_and_named():
    seen = []

    def embed(texts):
        seen.append(texts)
        return letters(texts)

    train = [Example(b="2", a="1", label="x").with_inputs("a", "b")]
    KNN(1, train, embed)(b="4", a="3")
    assert seen == [["b: 2 | a: 1"], ["b: 4 | a: 3"]]


def test_of_a_single_example_and_of_more_than_there_are():
    train = examples("pp")
    assert KNN(1, train, letters)(text="q") == train
    assert KNN(9, examples("p", "q"), letters)(text="q") == examples("q", "p")


def test_coroutine_functions_and_async_calls():
    async def slow(texts):
        await asyncio.sleep(0.001)
        return letters(texts)

    knn = KNN(1, examples("p", "q"), slow)

    async def main():
        return await asyncio.gather(*(knn.acall(text="pq"[number % 2]) for number in range(10)))

    assert [row[0].text for row in asyncio.run(main())] == ["p", "q"] * 5


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ConfigurationError, match="k is 0 of 1 examples"):
        KNN(0, examples("x"), letters)
    with pytest.raises(ConfigurationError, match="k is 1 of 0 examples"):
        KNN(1, [], letters)
    with pytest.raises(ValueError, match="with_inputs"):
        KNN(1, [Example(text="x")], letters)
    with pytest.raises(ValueError, match="1 vectors for 2 examples"):
        KNN(1, examples("x", "y"), lambda texts: [[1.0]])
