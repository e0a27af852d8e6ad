import copy
import pickle

import pytest
from pydantic import BaseModel

from dspy_stream.program import Example, Prediction


class Note(BaseModel):
    text: str


def test_fields_by_attribute_and_by_item():
    example = Example(question="2+2?", answer="4")
    assert example.question == example["question"] == "2+2?"
    example.answer = "four"
    example["hint"] = "add"
    assert (example.answer, example.hint) == ("four", "add")
    del example["hint"]
    del example.answer
    assert example.keys() == ["question"]
    with pytest.raises(KeyError):
        example["hint"]
    with pytest.raises(
        AttributeError, match="'Example' object has no attribute 'hint'; its fields: question"
    ):
        _ = example.hint
    with pytest.raises(AttributeError):
        del example.hint


def test_built_on_a_mapping_or_an_example():
    record = {"q": "x", "a": "y"}
    first = Example(record, a="z").with_inputs("q")
    second = Example(base=first, b=1)
    assert first.toDict() == {"q": "x", "a": "z"}
    assert second.toDict() == {"q": "x", "a": "z", "b": 1}
    assert second.inputs().toDict() == {"q": "x"}
    assert record == {"q": "x", "a": "y"}
    second.q = "changed"
    assert first.q == "x"
    with pytest.raises(TypeError, match="not from str"):
        Example("text")


def test_any_name_can_be_a_field():
    example = Example({"base": 1, "self": 2, "items": 3, "class": 4, "_x": 5}, self=6)
    assert (example.base, example["self"], example["items"], example["class"], example._x) == (1, 6, 3, 4, 5)
    assert callable(example.items)
    with pytest.raises(AttributeError, match=r"example\['items'\] = "):
        example.items = 4


def test_inputs_and_labels():
    example = Example(q="x", k=1, a="y")
    marked = example.with_inputs("q", "k", "not there")
    assert marked.inputs().toDict() == {"q": "x", "k": 1}
    assert marked.inputs().inputs().keys() == ["q", "k"]
    assert marked.labels().toDict() == {"a": "y"}
    assert marked.copy(a="z").labels().a == "z"
    assert marked.without("k").inputs().keys() == ["q"]
    for unmarked in (example, marked.labels()):
        with pytest.raises(ValueError, match="with_inputs"):
            unmarked.inputs()
        with pytest.raises(ValueError, match="with_inputs"):
            unmarked.labels()


def test_fields_of_the_engine_are_not_listed():
    example = Example(q="x", dspy_uuid="u", dspy_split="train")
    assert (len(example), example.keys(), example.values(), example.items()) == (
        1,
        ["q"],
        ["x"],
        [("q", "x")],
    )
    assert example.keys(include_dspy=True) == ["q", "dspy_uuid", "dspy_split"]
    assert example.values(True) == ["x", "u", "train"]
    assert list(example) == ["q", "dspy_uuid", "dspy_split"]
    assert example.dspy_uuid == "u"
    assert "dspy_uuid" in example
    assert "dspy_uuid" not in repr(example)


def test_get_in_copy_without():
    example = Example(a=1, b=2)
    assert (example.get("a"), example.get("c"), example.get("c", 3)) == (1, None, 3)
    assert "a" in example
    assert "c" not in example
    assert example.copy(a=9).toDict() == {"a": 9, "b": 2}
    assert example.without("a").toDict() == {"b": 2}
    assert example.toDict() == {"a": 1, "b": 2}
    with pytest.raises(KeyError):
        example.without("c")


def test_equality_and_hash_are_of_the_fields():
    assert Example(a=1, b=2) == Example(b=2, a=1).with_inputs("a")
    assert hash(Example(a=1, b=2)) == hash(Example(b=2, a=1))
    assert Example(a=[1]) == Example(a=[1])
    assert hash(Example(a=[1])) == hash(Example(a=[1]))
    assert Example(a=1) != Example(a=2)
    assert Example(a=1) != {"a": 1}
    assert len({Example(a=1), Example(a=1), Example(a=[1]), Example(a=[1])}) == 2
    assert Prediction(a=1) == Example(a=1)


def test_to_dict_goes_into_examples_models_lists_and_dicts():
    example = Example(
        one=Example(x=1),
        many=[Note(text="t"), {"deep": Prediction(y=[Example(z=2)])}],
        plain=(1, 2),
        none=None,
    )
    assert example.toDict() == {
        "one": {"x": 1},
        "many": [{"text": "t"}, {"deep": {"y": [{"z": 2}]}}],
        "plain": (1, 2),
        "none": None,
    }


def test_repr_is_dspys():
    example = Example(q="it's", n=[1], dspy_uuid="x")
    assert repr(example) == str(example) == """Example({'q': "it's", 'n': [1]}) (input_keys=None)"""
    assert repr(example.with_inputs("q", "n")).endswith(" (input_keys={'n', 'q'})")
    assert repr(Example().with_inputs()) == "Example({}) (input_keys=set())"


def test_a_program_may_keep_something_of_its_own_on_one():
    example = Example(a=1)
    example._seen = True
    assert example._seen
    assert example.toDict() == {"a": 1}
    assert copy.copy(example)._seen


@pytest.mark.parametrize("example", [Example(a=[1]).with_inputs("a"), Example(), Prediction(score=1, x="y")])
def test_copies_and_pickles(example):
    for again in (copy.copy(example), copy.deepcopy(example), pickle.loads(pickle.dumps(example))):
        assert type(again) is type(example)
        assert again == example
        assert again._input_keys == example._input_keys


def test_subclasses_keep_their_kind():
    class Ticket(Example):
        def shout(self):
            return self.text.upper()

    ticket = Ticket(text="help", label="x").with_inputs("text")
    assert type(ticket) is Ticket
    assert ticket.inputs().shout() == "HELP"
