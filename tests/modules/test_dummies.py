"""What stands in for embeddings and a search in tests."""

import pytest

from dspy_stream.configuration import context
from dspy_stream.modules import KNN, Embedder, Retrieve
from dspy_stream.modules.dummies import DummyVectorizer, dummy_rm
from dspy_stream.program import Example

TEXTS = ["a red car", "two red cars", "the blue sky"]


def test_vectors_have_mean_0_and_length_1_and_are_the_same_again():
    vectors = DummyVectorizer(max_length=50)(TEXTS)
    for vector in vectors:
        assert (len(vector), sum(vector)) == (50, pytest.approx(0, abs=1e-9))
        assert sum(each * each for each in vector) == pytest.approx(1)
    assert vectors == DummyVectorizer(max_length=50)(TEXTS)
    assert DummyVectorizer(n_gram=3)(["ab", ""]) == [[0.0] * 100] * 2


def test_they_find_what_is_alike():
    trainset = [Example(text=text).with_inputs("text") for text in TEXTS]
    knn = KNN(k=2, trainset=trainset, vectorizer=Embedder(DummyVectorizer()))
    assert {found.text for found in knn(text="red car")} == {"a red car", "two red cars"}


def test_a_search_gives_the_nearest_passages():
    with context(rm=dummy_rm(TEXTS)):
        assert Retrieve(k=1)("blue").passages == ["the blue sky"]
        assert len(Retrieve(k=3)("red").passages) == 3
        with pytest.raises(ValueError, match="4 passages are wanted of 3"):
            Retrieve(k=4)("red")
    with pytest.raises(ValueError, match="of 0"):
        dummy_rm()("x", k=1)
