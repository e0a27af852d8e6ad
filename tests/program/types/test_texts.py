"""Code and Reasoning: text with a meaning."""

import copy
import json
import pickle
import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from dspy_stream.program import Example, Signature
from dspy_stream.program.types import Code, Reasoning


class TestAsDSPysModels:
    @pytest.mark.parametrize(("kind", "field"), [(Code["python"], "code"), (Reasoning, "content")])
    def test_validate_and_dump(self, kind, field):
        made = kind.model_validate("x")
        assert type(made) is kind
        assert getattr(made, field) == made.model_dump() == "x"
        assert kind.model_validate({field: "x"}) == kind(**{field: "x"}) == made
        with pytest.raises(ValueError, match="a text was expected, not int"):
            kind.model_validate(3)


def test_two_thoughts_are_one_thought():
    made = Reasoning("a") + Reasoning("b")
    assert (type(made), made) == (Reasoning, "ab")
    assert type(Reasoning("a") + "b") is str


class TestCode:
    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("x = 1", "x = 1"),
            ("```python\nx = 1\n```", "x = 1"),
            ("```\nx = 1\n```", "x = 1"),
            ("Here:\n\n```py\nif x:\n    y\n```\nDone.", "if x:\n    y"),
            ("```python\nfirst\n```\nor\n```python\nsecond\n```", "first"),
            ("```python\nx = 1", "x = 1"),
            ("````md\n```js\nx\n```\n````", "x"),
            ("~~~python\nx\n~~~", "x"),
            ("    x = 1\n", "    x = 1\n"),
            ('s = "```"', 's = "```"'),
            ("```python\r\nx = 1\r\n```\r\n", "x = 1"),
            ("```c++\nx\n```", "x"),
            ("", ""),
        ],
    )
    def test_the_fence_is_taken_off(self, text, code):
        assert Code(text) == code
        assert TypeAdapter(Code).validate_python(text) == code

    def test_the_language_is_kept(self):
        kind = Code["java"]
        assert kind is Code["java"]
        assert (kind.language, Code.language, kind("x").language) == ("java", "python", "java")
        assert issubclass(kind, Code)
        assert kind.__name__ == "Code[java]"
        assert "java" in kind.description()

    @pytest.mark.parametrize("bad", ["", "a b", "x\n", 1, None, "x" * 50])
    def test_a_name_of_a_language_is_plain(self, bad):
        with pytest.raises(TypeError):
            Code[bad]

    def test_dspys_attribute_and_form(self):
        assert Code(code="x").code == "x"
        assert TypeAdapter(Code).validate_python({"code": "x"}) == "x"

    def test_it_survives_copying_and_pickling_word_for_word(self):
        odd = str.__new__(Code["sql"], "```sql\nx\n```")
        for made in (copy.deepcopy(odd), pickle.loads(pickle.dumps(odd))):
            assert made == odd
            assert type(made) is Code["sql"]
        assert type(copy.copy(Code("x"))) is Code

    def test_in_signature_strings(self):
        signature = Signature("q -> a: Code['c++'], b: dspy.Code, c: list[Code['sql']]")
        assert [field.annotation for field in signature.output_fields.values()] == [
            Code["c++"],
            Code,
            list[Code["sql"]],  # noqa: F821
        ]


@given(st.text(st.sampled_from("`~ab\n\r py"), max_size=60))
def test_reading_code_twice_changes_nothing(text):
    once = Code(text)
    assert Code(once) == once
    assert TypeAdapter(Code).validate_json(TypeAdapter(Code).dump_json(once)) == once


class TestReasoning:
    def test_it_is_a_str_in_every_respect(self):
        thought = Reasoning("think hard")
        assert isinstance(thought, str)
        assert thought.content == "think hard" == thought
        assert thought.split() == ["think", "hard"]
        assert re.search("hard", thought)
        assert json.dumps(thought) == orjson.dumps(thought).decode() == '"think hard"'
        assert f"{thought:>12}" == "  think hard"
        assert type(copy.deepcopy(thought)) is Reasoning

    def test_it_is_validated_from_text_and_from_dspys_form(self):
        adapter = TypeAdapter(Reasoning)
        assert type(adapter.validate_python("a")) is Reasoning
        assert adapter.validate_python({"content": "a"}) == "a"
        assert adapter.dump_python(Reasoning("a"), mode="json") == "a"
        with pytest.raises(ValidationError, match="text was expected"):
            adapter.validate_python(3)

    def test_in_models_and_examples(self):
        class Thought(BaseModel):
            why: Reasoning

        assert type(Thought.model_validate_json('{"why":"a"}').why) is Reasoning
        assert Example(why=Reasoning("a")).toDict() == {"why": "a"}
