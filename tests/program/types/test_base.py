"""Type, for the user's own types; History, Document and Citations; names in signature strings."""

import dataclasses
import json
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from dspy_stream.errors import SignatureError
from dspy_stream.program import Example, InputField, OutputField, Parameters, PredictorParameters, Signature
from dspy_stream.program import types as kinds
from dspy_stream.program.grammar import parse_type
from dspy_stream.program.types import (
    Citations,
    Code,
    Document,
    History,
    Image,
    Reasoning,
    Tool,
    ToolCalls,
    Type,
)
from dspy_stream.program.types.base import saved_form


class Event(Type):
    name: str
    at: int = 0

    def format(self) -> list[dict[str, Any]]:
        return [{"type": "text", "text": f"{self.name} at {self.at}"}]


class Money(Type):
    cents: int

    def format(self) -> str:
        return f"{self.cents / 100:.2f} EUR"

    @classmethod
    def description(cls) -> str:
        return "an amount, such as 1.50 EUR"

    @classmethod
    def parse(cls, text: str) -> "Money | dict[str, int]":
        if not text.endswith(" EUR"):
            raise ValueError("an amount ends in EUR")
        return {"cents": round(float(text[:-4]) * 100)}


class TestOwnTypes:
    def test_without_parse_it_is_its_fields_in_json(self):
        adapter = TypeAdapter(Event)
        assert adapter.dump_python(Event(name="e"), mode="json") == {"name": "e", "at": 0}
        assert adapter.json_schema()["properties"]["name"]["type"] == "string"
        with pytest.raises(ValidationError):
            adapter.validate_python("e")

    def test_with_parse_it_is_text_in_json(self):
        adapter = TypeAdapter(dict[str, list[Money]])
        value = {"a": [Money(cents=150)]}
        assert adapter.dump_json(value) == b'{"a":["1.50 EUR"]}'
        assert adapter.validate_json(b'{"a":["1.50 EUR"]}') == value
        schema = TypeAdapter(Money).json_schema()
        assert schema == {"type": "string", "description": "an amount, such as 1.50 EUR"}
        with pytest.raises(ValidationError, match="ends in EUR"):
            adapter.validate_python({"a": ["1.50"]})

    def test_values_are_immutable(self):
        with pytest.raises(ValidationError):
            Event(name="e").name = "f"
        assert len({Event(name="e"), Event(name="e")}) == 1

    def test_types_within_an_annotation(self):
        annotation = dict[str, list[Event | None] | tuple[Money, Event]]
        assert Type.extract_custom_type_from_annotation(annotation) == [Event, Money]
        assert Event.extract_custom_type_from_annotation(annotation) == [Event]
        assert Type.extract_custom_type_from_annotation(Event) == [Event]
        assert Type.extract_custom_type_from_annotation(int) == []

    def test_format_must_be_defined(self):
        class Mute(Type):
            x: int

        with pytest.raises(NotImplementedError, match="Mute"):
            Mute(x=1).format()


class TestHistory:
    def test_a_list_of_turns(self):
        turns = [{"q": "a", "image": Image("https://x/a")}]
        assert (
            History(messages=turns)
            == History.model_validate(turns)
            == History.model_validate({"messages": turns})
        )
        assert History().messages == []

    @pytest.mark.parametrize("bad", ["text", [1], {"messages": {}}, {"turns": []}, 3])
    def test_anything_else_is_refused(self, bad):
        with pytest.raises(ValidationError):
            History.model_validate(bad)


class TestDocuments:
    def test_the_block(self):
        block = Document("text", title="T").format()[0]
        assert block == {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "text"},
            "citations": {"enabled": True},
            "title": "T",
        }
        assert Document.model_validate(block) == Document("text", title="T")
        assert Document.model_validate("text") == Document(data="text")

    def test_citations_of_a_provider(self):
        given = [
            {
                "type": "char_location",
                "cited_text": "a",
                "document_index": 0,
                "document_title": "T",
                "start_char_index": 0,
                "end_char_index": 1,
                "supported_text": "so",
                "file_id": None,
            }
        ]
        made = Citations.from_dict_list(given)
        assert (made[0].cited_text, made[0].end_char_index, len(made)) == ("a", 1, 1)
        assert Citations.model_validate(made.model_dump(mode="json")) == made
        assert [*Citations.model_validate(["q", {"text": "r"}])][1].cited_text == "r"
        assert Citations.Citation(cited_text="q").format() == {"cited_text": "q", "type": "char_location"}


class TestStrings:
    @pytest.mark.parametrize("home", ["", "dspy.", "ds.", "dspy_stream.", "dspy.experimental."])
    @pytest.mark.parametrize("name", sorted(kinds.NAMED))
    def test_names_are_known_without_an_import(self, home, name):
        assert parse_type(home + name) is kinds.NAMED[name]

    def test_in_a_signature(self):
        signature = Signature(
            "image: Image, more: list[dspy.Image] | None, history: dspy.History -> answer, r: Reasoning"
        )
        assert [field.annotation for field in signature.fields.values()] == [
            Image,
            list[Image] | None,
            History,
            str,
            Reasoning,
        ]

    def test_types_of_the_users_own_go_first(self):
        assert parse_type("Image", {"Image": Event}) is Event

    @pytest.mark.parametrize(
        "text", ["os.Image", "dspy.os", "dspy.adapters.Image", "Code[java]", "Code['a','b']", "Code[1]"]
    )
    def test_other_names_are_refused(self, text):
        with pytest.raises(SignatureError):
            parse_type(text)

    def test_a_near_miss_is_named(self):
        with pytest.raises(SignatureError, match="'Reasoning'"):
            parse_type("Reasonin")


@dataclasses.dataclass
class Page:
    picture: Image


class Look(Signature):
    """Look."""

    image: Image = InputField()
    page: Page = InputField()
    answer: str = OutputField()


class TestSaved:
    def test_parameters_hold_them_as_json(self):
        demo = {
            "image": Image("https://x/a"),
            "code": Code("x"),
            "cost": Money(cents=1),
            "e": Event(name="n"),
        }
        made = PredictorParameters.of(demos=[Example(demo)])
        expected = {
            "image": {"url": "https://x/a"},
            "code": "x",
            "cost": "0.01 EUR",
            "e": {"name": "n", "at": 0},
        }
        assert made.to_json()["demos"] == [expected]
        assert json.loads(json.dumps(made.to_json())) == made.to_json()
        assert (
            Parameters({"p": made}).digest()
            == Parameters({"p": PredictorParameters.of(demos=[expected])}).digest()
        )

    def test_example_to_dict(self):
        assert Example(image=Image("https://x/a"), m=Money(cents=1)).toDict() == {
            "image": {"url": "https://x/a"},
            "m": "0.01 EUR",
        }

    def test_blocks_are_saved_as_dspy_saves_them(self):
        saved = saved_form({"a": [Image("https://x/a")], "b": Money(cents=1), "c": 3, "d": ToolCalls()})
        start, end = "<<CUSTOM-TYPE-START-IDENTIFIER>>", "<<CUSTOM-TYPE-END-IDENTIFIER>>"
        block = '[{"type": "image_url", "image_url": {"url": "https://x/a"}}]'
        assert saved == {"a": [start + block + end], "b": Money(cents=1), "c": 3, "d": ToolCalls()}
        assert TypeAdapter(list[Image]).validate_python(saved["a"]) == [Image("https://x/a")]

    def test_the_digest_of_a_signature_tells_them_apart(self):
        digests = {
            Signature(f"x: {kind} -> y").digest()
            for kind in (
                "str",
                "Image",
                "Audio",
                "File",
                "Code",
                "Code['sql']",
                "Reasoning",
                "Document",
                "Tool",
            )
        }
        assert len(digests) == 9


class Nested(BaseModel):
    tools: list[Tool]


def test_our_documentation_is_not_for_models():
    for kind in (Image, kinds.Audio, kinds.File, Document, Tool, ToolCalls):
        assert TypeAdapter(kind).json_schema().get("description") == kind.description()
    assert "Raises" not in json.dumps(TypeAdapter(Nested).json_schema())
    inner = TypeAdapter(kinds.Citations).json_schema()["$defs"]["Citation"]
    assert "description" not in inner
