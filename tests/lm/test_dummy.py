"""DummyLM: DSPy's model for tests, its call shapes."""

from __future__ import annotations

import asyncio

import pytest

import dspy_stream as ds


def test_a_list_is_used_up_and_then_there_is_nothing() -> None:
    lm = ds.DummyLM([{"answer": "red"}, {"answer": "blue"}])
    predict = ds.Predict("question -> answer")
    with ds.context(lm=lm):
        assert [predict(question="q").answer for _ in range(3)] == ["red", "blue", "No more responses"]


def test_a_dict_goes_by_the_last_message() -> None:
    lm = ds.DummyLM({"sky": {"answer": "blue"}, "sun": {"answer": "red"}})
    assert lm("the sun") == ["[[ ## answer ## ]]\nred"]
    assert lm("the sea") == ["No more responses"]
    assert asyncio.run(lm.acall(messages=[{"role": "user", "content": "sky"}])) == [
        "[[ ## answer ## ]]\nblue"
    ]


def test_examples_are_followed() -> None:
    predict = ds.Predict("question -> answer: int")
    predict.demos = [{"question": "2+2", "answer": 4}, {"question": "3+3", "answer": 6}]
    with ds.context(lm=ds.DummyLM([], follow_examples=True)):
        assert predict(question="2+2").answer == 4


def test_n_takes_an_answer_for_each_completion() -> None:
    with ds.context(lm=ds.DummyLM([{"answer": "a"}, {"answer": "b"}])):
        made = ds.Predict("question -> answer")(question="q", config={"n": 2})
    assert made.completions.answer == ["a", "b"]


@pytest.mark.parametrize("adapter", [ds.ChatAdapter(), ds.JSONAdapter(), ds.XMLAdapter()])
def test_fields_are_written_as_the_adapter_does(adapter: ds.Adapter) -> None:
    lm = ds.DummyLM([{"tags": ["a", "b"], "ok": True}], adapter=adapter)
    with ds.context(lm=lm, adapter=adapter):
        made = ds.Predict("text -> tags: list[str], ok: bool")(text="t")
    assert (made.tags, made.ok) == (["a", "b"], True)


def test_the_conversation_can_be_looked_at() -> None:
    lm = ds.DummyLM([{"answer": "a"}], reasoning=True)
    assert lm(messages=[{"role": "user", "content": "q"}])[0]["reasoning_content"] == "Some reasoning"
    messages, outputs = lm.get_convo(0)
    assert messages == [{"role": "user", "content": "q"}]
    assert outputs[0]["text"] == "[[ ## answer ## ]]\na"


def test_a_copy_goes_on_with_the_same_answers() -> None:
    lm = ds.DummyLM([{"answer": "a"}, {"answer": "b"}])
    lm("q")
    assert lm.copy(temperature=1.0)("q") == ["[[ ## answer ## ]]\nb"]
