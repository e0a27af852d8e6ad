"""Retrieve: the retriever of the settings, and the passages in whatever form they come."""

import asyncio
from types import SimpleNamespace

import pytest

from dspy_stream.configuration import context
from dspy_stream.modules.embeddings import Embeddings
from dspy_stream.modules.retrieve import Retrieve
from dspy_stream.program import Example, Prediction


@pytest.mark.parametrize(
    "found",
    [
        ["one", "two"],
        [SimpleNamespace(long_text="one"), SimpleNamespace(long_text="two")],
        [{"long_text": "one"}, Example(long_text="two")],
        Prediction(passages=["one", "two"]),
        iter(["one", "two"]),
    ],
    ids=["texts", "objects", "mappings", "prediction", "iterator"],
)
def test_passages_in_every_form(found):
    with context(rm=lambda query, k: found):
        assert Retrieve()("?").passages == ["one", "two"]


@pytest.mark.parametrize("found", ["one", {"long_text": "one"}, SimpleNamespace(long_text="one")])
def test_a_single_passage(found):
    with context(rm=lambda query, k: found):
        assert Retrieve()("?").passages == ["one"]


def test_how_many_and_what_else_is_passed_on():
    def rm(query, k, **more):
        return [f"{query} {k} {more}"]

    with context(rm=rm):
        assert Retrieve(k=7)("q").passages == ["q 7 {}"]
        assert Retrieve()(query="q", k=2, by="date").passages == ["q 2 {'by': 'date'}"]


def test_coroutine_functions_and_an_index():
    async def rm(query, k):
        await asyncio.sleep(0)
        return [query] * k

    with context(rm=rm):
        assert Retrieve(k=2)("q").passages == ["q", "q"]
        assert asyncio.run(Retrieve(k=1).acall("q")).passages == ["q"]
    index = Embeddings(["aa", "bb"], lambda texts: [[t.count("a"), t.count("b")] for t in texts])
    with context(rm=index):
        assert Retrieve(k=1)("b").passages == ["bb"]


def test_without_a_retriever_it_says_so():
    with pytest.raises(AssertionError, match="No RM is loaded"):
        Retrieve()("?")


def test_what_is_no_passage_is_refused():
    with context(rm=lambda query, k: [1]), pytest.raises(TypeError, match="this is int"):
        Retrieve()("?")


def test_fields():
    assert Retrieve().required_names() == ("query",)
    assert Retrieve().output_names() == ("passages",)
    assert Retrieve(k=4).k == 4
