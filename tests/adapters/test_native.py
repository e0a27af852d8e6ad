"""Native response formats: when a strict schema is asked for, what is in it, and what if it is refused."""

import asyncio
import enum
import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model
from typing_extensions import TypedDict

from dspy_stream.adapters import BAMLAdapter, ChatAdapter, JSONAdapter, TwoStepAdapter, XMLAdapter
from dspy_stream.adapters.strict import strict_format
from dspy_stream.configuration import context
from dspy_stream.errors import ContextWindowExceededError, LMInvalidRequestError
from dspy_stream.lm import LM
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.modules.scope import process_clients
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.program.types import Tool, ToolCalls
from dspy_stream.runtime import hop
from dspy_stream.state.journal import MemoryJournal
from dspy_stream.types import Capabilities, Choice
from tests.lm.server import ModelServer, Reply, completion

NOTHING = Capabilities()
STRICT = Capabilities(structured_outputs=True, json_mode=True)
OBJECT = Capabilities(json_mode=True)
CLOSED = Signature("text -> title, score: int | None")
OPEN = Signature("text -> counts: dict[str, int]")
JSON_OBJECT = {"response_format": {"type": "json_object"}}


def of(kind: Any, **options: Any) -> type[Signature]:
    return Signature({"text": InputField(), "answer": (kind, OutputField(**options))})


def schema_of(signature):
    option = strict_format(signature)
    return None if option is None else option["response_format"]["json_schema"]["schema"]


class Item(BaseModel):
    name: str = Field(description="as printed", min_length=1)
    count: int = 1


class Node(BaseModel):
    value: int
    children: list["Node"] = []


class Mood(enum.Enum):
    GOOD = "good"
    ONE = 1
    PAIR = (1, 2)


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]
    toy: Item | None


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Point(TypedDict):
    x: float
    y: float


class TestWhatIsAskedFor:
    @pytest.mark.parametrize("adapter", [JSONAdapter(), BAMLAdapter()])
    @pytest.mark.parametrize(
        ("signature", "known", "kind", "then"),
        [
            (CLOSED, None, "json_object", None),
            (CLOSED, NOTHING, None, None),
            (CLOSED, OBJECT, "json_object", {}),
            (CLOSED, STRICT, "json_schema", JSON_OBJECT),
            (CLOSED, Capabilities(structured_outputs=True), "json_schema", {}),
            (OPEN, STRICT, "json_object", {}),
            (OPEN, Capabilities(structured_outputs=True), None, None),
        ],
    )
    def test_the_most_that_model_and_types_allow(self, adapter, signature, known, kind, then):
        prepared = adapter.prepare(signature, capabilities=known)
        assert prepared.options.get("response_format", {}).get("type") == kind
        assert (None if prepared.plainer is None else dict(prepared.plainer)) == then

    @pytest.mark.parametrize("adapter", [ChatAdapter(), XMLAdapter(), TwoStepAdapter("x/y")])
    def test_text_adapters_ask_for_nothing(self, adapter):
        assert not adapter.prepare(CLOSED, capabilities=STRICT).options

    def test_the_schema_is_made_once(self):
        assert strict_format(CLOSED) is strict_format(CLOSED)
        prompts = [JSONAdapter().prepare(CLOSED, capabilities=STRICT) for _ in range(2)]
        assert prompts[0].options is prompts[1].options

    def test_flags_of_function_calling_are_as_in_dspy(self):
        assert JSONAdapter().use_native_function_calling
        assert BAMLAdapter().use_native_function_calling
        assert not ChatAdapter().use_native_function_calling
        assert ChatAdapter(use_native_function_calling=True).use_native_function_calling


KEYWORDS = {"type", "properties", "required", "additionalProperties", "items", "enum", "anyOf", "$ref"}


def check_strict(schema):
    """The rules of the strict subset, read from its description and not from the code."""
    assert set(schema) <= KEYWORDS
    if "$ref" in schema:
        assert set(schema) == {"$ref"}
    elif "anyOf" in schema:
        assert set(schema) == {"anyOf"}
        assert len(schema["anyOf"]) > 1
        for arm in schema["anyOf"]:
            assert "anyOf" not in arm
            check_strict(arm)
    elif schema["type"] == "object":
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
        for member in schema["properties"].values():
            check_strict(member)
    elif schema["type"] == "array":
        check_strict(schema["items"])
    else:
        assert schema["type"] in ("string", "integer", "number", "boolean", "null")


class TestTheSchema:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            (str, {"type": "string"}),
            (bool, {"type": "boolean"}),
            (float, {"type": "number"}),
            (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
            (
                Literal["a", 1, None],
                {
                    "anyOf": [
                        {"type": "string", "enum": ["a"]},
                        {"type": "integer", "enum": [1]},
                        {"type": "null"},
                    ]
                },
            ),
            (
                Mood,
                {"anyOf": [{"type": "string", "enum": ["good", "[1,2]"]}, {"type": "integer", "enum": [1]}]},
            ),
            (Rights, {"type": "integer"}),
            (Rights | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            (list[str], {"type": "array", "items": {"type": "string"}}),
            (set[int], {"type": "array", "items": {"type": "integer"}}),
            (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
            (bytes, {"type": "string"}),
        ],
    )
    def test_of_simple_types(self, kind, expected):
        assert schema_of(of(kind))["properties"]["answer"] == expected

    @pytest.mark.parametrize(
        "kind",
        [Item, Node, list[Pet], Pet, Point, Item | None, dict[str, Any] | int, list[Item | Node | None]],
    )
    def test_keeps_to_the_strict_subset(self, kind):
        schema = schema_of(of(kind))
        if kind == dict[str, Any] | int:
            assert schema is None
            return
        definitions = schema.pop("$defs", {})
        check_strict(schema)
        for definition in definitions.values():
            check_strict(definition)
        for reference in _references(schema) | _references(definitions):
            assert reference.removeprefix("#/$defs/") in definitions

    @pytest.mark.parametrize(
        "kind",
        [
            dict,
            dict[str, int],
            Any,
            object,
            tuple[int, str],
            list,
            list[Any],
            create_model("Loose", x=(Any, ...)),
        ],
    )
    def test_open_types_have_none(self, kind):
        assert strict_format(of(kind)) is None

    def test_a_model_that_takes_anything_has_none(self):
        assert strict_format(of(create_model("Extra", __config__={"extra": "allow"}, x=(int, 1)))) is None

    def test_constraints_and_prose_are_left_out_and_defaults_become_required(self):
        assert schema_of(of(Item, desc="d"))["properties"]["answer"] == {
            "type": "object",
            "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["name", "count"],
            "additionalProperties": False,
        }
        assert schema_of(of(int, ge=1, le=5))["properties"]["answer"] == {"type": "integer"}

    def test_types_of_one_name_are_told_apart(self):
        other = create_model("Item", price=(float, ...))
        holder = create_model("Holder", item=(other, ...))
        signature = Signature(
            {
                "text": InputField(),
                "a": (list[Item], OutputField()),
                "b": (list[other], OutputField()),
                "c": (list[holder], OutputField()),
                "d": (list[Item], OutputField()),
            }
        )
        schema = schema_of(signature)
        shapes = {
            name: list(schema["$defs"][_only(_references(schema["properties"][name]))]["properties"])
            for name in "abcd"
        }
        assert shapes == {"a": ["name", "count"], "b": ["price"], "c": ["item"], "d": ["name", "count"]}
        inner = _only(_references(schema["$defs"][_only(_references(schema["properties"]["c"]))]))
        assert list(schema["$defs"][inner]["properties"]) == ["price"]

    def test_beyond_the_limits_there_is_none(self):
        deep: Any = int
        for _ in range(12):
            deep = list[deep]
        assert strict_format(of(deep)) is None
        wide = create_model("Wide", **{f"field_{i}": (int, ...) for i in range(5001)})
        assert strict_format(of(wide)) is None
        assert strict_format(of(Literal[tuple(f"choice {i}" for i in range(1001))])) is None
        assert strict_format(of(Literal[tuple(f"choice {i}" for i in range(1000))])) is not None

    def test_an_answer_that_fits_is_read(self):
        adapter = JSONAdapter()
        assert adapter.parse(of(Mood), '{"answer": "[1,2]"}') == {"answer": Mood.PAIR}
        assert adapter.parse(of(list[Pet]), '{"answer": [{"kind": "dog", "toy": null}]}') == {
            "answer": [Dog(kind="dog", toy=None)]
        }


def _references(schema):
    return {part.split('"')[0] for part in json.dumps(schema).split('"$ref": "')[1:]}


def _only(names):
    (name,) = names
    return name.removeprefix("#/$defs/")


class Capable(ScriptedLM):
    """A model that is known to hold to schemas."""

    @property
    def capabilities(self):
        return STRICT


REFUSED = LMInvalidRequestError("400: Invalid schema for response_format 'answer': not permitted", status=400)
GOOD = '{"title": "t", "score": 1}'


def formats(lm):
    return [request.options.get("response_format", {}).get("type") for request in lm.calls]


class TestRefusal:
    def test_is_answered_with_the_next_best_and_remembered(self):
        lm = Capable([REFUSED, GOOD, GOOD])
        predict = Predict(CLOSED)
        with context(adapter=JSONAdapter(), lm=lm):
            assert predict(text="a").score == predict(text="b").score == 1
        assert formats(lm) == ["json_schema", "json_object", "json_object"]
        assert lm.calls[1].head is lm.calls[2].head

    def test_the_second_refusal_is_the_end(self):
        lm = Capable([REFUSED, REFUSED, GOOD])
        with context(adapter=JSONAdapter(), lm=lm), pytest.raises(LMInvalidRequestError):
            Predict(CLOSED)(text="a")
        assert lm.call_count == 2

    @pytest.mark.parametrize(
        "error",
        [
            LMInvalidRequestError("400: the messages are empty", status=400),
            LMInvalidRequestError("400: Invalid schema for function 'search'", status=400),
            ContextWindowExceededError("400: too long for response_format", status=400),
        ],
    )
    def test_other_refusals_are_the_rows_own(self, error):
        lm = Capable([error, GOOD])
        with context(adapter=JSONAdapter(), lm=lm), pytest.raises(LMInvalidRequestError):
            Predict(CLOSED)(text="a")
        assert lm.call_count == 1

    def test_a_format_of_the_users_own_is_never_taken_back(self):
        lm = Capable([REFUSED, GOOD])
        predict = Predict(CLOSED, response_format={"type": "json_schema", "json_schema": {}})
        with context(adapter=JSONAdapter(), lm=lm), pytest.raises(LMInvalidRequestError):
            predict(text="a")
        assert lm.call_count == 1

    def test_without_a_schema_there_is_nothing_to_take_back_twice(self):
        lm = Capable([REFUSED, '{"counts": {}}'])
        with context(adapter=JSONAdapter(), lm=lm):
            assert Predict(OPEN)(text="a").counts == {}
        assert formats(lm) == ["json_object", None]

    def test_a_journal_keeps_what_was_answered_under_the_question_that_was_answered(self):
        journal = MemoryJournal()
        first = Capable([REFUSED, GOOD], cache=True)
        with context(adapter=JSONAdapter(), lm=first, journal=journal):
            Predict(CLOSED)(text="a")
        again = Capable([REFUSED], cache=True)
        with context(adapter=JSONAdapter(), lm=again, journal=journal):
            assert Predict(CLOSED)(text="a").title == "t"
        assert formats(again) == ["json_schema"]  # refused once more, which costs nothing; nothing else asked

    def test_a_repair_asks_in_the_form_that_was_accepted(self):
        lm = Capable([REFUSED, '{"title": "t", "score": "x"}', GOOD])
        with context(adapter=JSONAdapter(), lm=lm):
            assert Predict(CLOSED)(text="a").score == 1
        assert formats(lm) == ["json_schema", "json_object", "json_object"]


class TestOverASocket:
    """What a server sees of it, and what it may say."""

    def ask(self, *replies, adapter=None, rows=2, **able):
        async def run():
            async with ModelServer(*replies) as server:
                lm = LM("hosted_vllm/m", api_base=server.url, capabilities=able, cache=False, num_retries=0)
                predict = Predict(CLOSED)
                try:
                    with context(adapter=adapter or JSONAdapter(), lm=lm):
                        answers = [await predict.acall(text=f"row {n}") for n in range(rows)]
                finally:
                    await hop(process_clients().aclose())
                return answers, [seen.json for seen in server.seen]

        return asyncio.run(run())

    def test_the_schema_is_sent_as_it_is(self):
        answers, bodies = self.ask(*[Reply(completion(GOOD))] * 2, structured_outputs=True, json_mode=True)
        assert [answer.score for answer in answers] == [1, 1]
        assert bodies[0]["response_format"] == dict(strict_format(CLOSED)["response_format"])
        assert bodies[0]["response_format"] == bodies[1]["response_format"]
        assert bodies[0]["messages"][:-1] == bodies[1]["messages"][:-1]

    def test_a_server_that_refuses_it_is_asked_for_an_object(self):
        said = {
            "error": {"message": "response_format: json_schema is not supported", "type": "invalid_request"}
        }
        refusal = Reply(json.dumps(said).encode(), 400)
        answers, bodies = self.ask(
            refusal, *[Reply(completion(GOOD))] * 2, structured_outputs=True, json_mode=True
        )
        assert [answer.title for answer in answers] == ["t", "t"]
        assert [body["response_format"]["type"] for body in bodies] == ["json_schema", *["json_object"] * 2]

    def test_a_server_of_which_nothing_is_known_is_asked_for_nothing(self):
        _, bodies = self.ask(*[Reply(completion(GOOD))] * 2, structured_outputs=False, json_mode=False)
        assert all("response_format" not in body for body in bodies)


def test_calls_that_were_not_asked_for_natively_are_taken_all_the_same():
    signature = Signature(
        "question, tools: list[Tool] -> thought: str | None, calls: ToolCalls",
        custom_types={"Tool": Tool, "ToolCalls": ToolCalls},
    )
    prepared = ChatAdapter().prepare(signature)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    choice = Choice("", "tool_calls", {"tool_calls": [call]})
    made = prepared.salvage(choice, ())
    assert made["thought"] is None
    assert [(each.name, each.args) for each in made["calls"].tool_calls] == [("f", {"x": 1})]
    assert ChatAdapter().prepare(Signature("q -> a")).salvage(choice, ()) is None
