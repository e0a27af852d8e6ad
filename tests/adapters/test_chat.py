import enum
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dspy_stream.adapters import ChatAdapter
from dspy_stream.errors import AdapterParseError, AdapterRenderError, ConfigurationError
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.rows import Origin, Row
from dspy_stream.types import Message


class Triage(Signature):
    """Decide what a customer wants."""

    text: str = InputField(desc="the customer's words")
    language: str = InputField(default="en")
    reasoning: str = OutputField()
    intent: Literal["card_arrival", "lost_card"] = OutputField()
    urgency: int = OutputField(ge=1, le=5, desc="how soon")
    note: str | None = OutputField()


ANSWER = """[[ ## reasoning ## ]]
It is late.

[[ ## intent ## ]]
card_arrival

[[ ## urgency ## ]]
3

[[ ## note ## ]]
None

[[ ## completed ## ]]
"""
VALUES = {"reasoning": "It is late.", "intent": "card_arrival", "urgency": 3, "note": None}
DEMO = {"text": "t", "language": "de", **VALUES}


def parse(text, signature=Triage):
    return ChatAdapter().prepare(signature).parse(text)


def failure(text, signature=Triage):
    with pytest.raises(AdapterParseError) as caught:
        parse(text, signature)
    assert caught.value.lm_response == text
    assert caught.value.adapter_name == "ChatAdapter"
    assert caught.value.signature is signature
    return caught.value


class TestPrompt:
    def test_names_every_field_with_type_description_and_constraints(self):
        system = ChatAdapter().format_system_message(Triage)
        for part in (
            "- `text`: the customer's words",
            "- `intent` (exactly one of: card_arrival; lost_card)",
            "- `urgency` (a whole number): how soon [from 1 to 5]",
            "- `note` (text; or null)",
            "Decide what a customer wants.",
            "[[ ## text ## ]]\n{text}",
            "[[ ## note ## ]]\n{note}\n\n[[ ## completed ## ]]",
        ):
            assert part in system

    def test_row_comes_last_with_a_reminder(self):
        [turn] = ChatAdapter().prepare(Triage).render({"text": "Where is it?", "language": "en", "other": 1})
        assert turn.role == "user"
        assert turn.content.startswith("[[ ## text ## ]]\nWhere is it?\n\n[[ ## language ## ]]\nen\n\n")
        reminder = turn.content.splitlines()[-1]
        names = [reminder.index(f"[[ ## {name} ## ]]") for name in (*Triage.output_fields, "completed")]
        assert names == sorted(names)

    def test_missing_input_takes_its_default_or_is_named(self):
        prepared = ChatAdapter().prepare(Triage)
        assert "[[ ## language ## ]]\nen" in prepared.render({"text": "x"})[0].content
        with pytest.raises(AdapterRenderError, match="`text` is missing; given: txt"):
            prepared.render({"txt": "x"})
        with pytest.raises(ValueError):
            prepared.render({})

    def test_a_row_of_a_stream_can_be_rendered(self):
        row = Row("1", {"text": "x", "language": "fr"}, Origin("memory", "0", 0))
        assert "fr" in ChatAdapter().prepare(Triage).render(row.fields)[0].content

    def test_demos_incomplete_first_and_useless_ones_dropped(self):
        partial = {"text": "only", "intent": "lost_card"}
        useless = [{"text": "no output"}, {"intent": "lost_card"}, {}, {"text": None, "intent": "lost_card"}]
        head = ChatAdapter().prepare(Triage, [DEMO, *useless, partial]).head
        assert [message.role for message in head] == ["system", "user", "assistant", "user", "assistant"]
        assert "only" in head[1].content
        assert "language" not in head[1].content
        assert head[1].content.splitlines()[0] != "[[ ## text ## ]]"
        assert "unknown" in head[2].content
        assert head[3].content == "[[ ## text ## ]]\nt\n\n[[ ## language ## ]]\nde"
        assert parse(head[4].content) == VALUES

    def test_demo_that_cannot_be_written_is_the_users_mistake(self):
        with pytest.raises(ConfigurationError, match=r"demo 2.*`text`"):
            ChatAdapter().prepare(Triage, [DEMO, {**DEMO, "text": float("nan")}])
        with pytest.raises(ConfigurationError, match="demo 1 is a int"):
            ChatAdapter().prepare(Triage, [1])

    def test_format_gives_the_whole_list(self):
        messages = ChatAdapter().format(Triage, [DEMO], {"text": "x"})
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
        assert all(isinstance(message["content"], str) for message in messages)

    def test_nothing_in_a_row_changes_the_head(self):
        prepared = ChatAdapter().prepare(Triage, [DEMO])
        before = prepared.head
        prepared.render({"text": "x"})
        assert prepared.head is before
        assert dict(prepared.options) == {}


class TestParse:
    def test_outputs_in_the_order_of_the_signature(self):
        assert list(parse(ANSWER)) == list(Triage.output_fields)
        assert parse(ANSWER) == VALUES
        parts = ANSWER.split("\n\n")
        assert list(parse("\n\n".join([parts[2], *parts[:2], *parts[3:]]))) == list(Triage.output_fields)

    def test_without_the_closing_marker(self):
        assert parse(ANSWER.replace("[[ ## completed ## ]]", "")) == VALUES

    def test_prose_and_thoughts_before_are_ignored(self):
        thought = "<think>\nI write\n[[ ## intent ## ]]\nlost_card\n</think>\n"
        assert parse("Here you are:\n" + ANSWER) == parse(thought + ANSWER) == VALUES
        # A server whose template begins the thought sends no more than its end.
        assert parse(thought.removeprefix("<think>") + ANSWER) == VALUES

    def test_first_answer_wins_when_the_model_runs_on(self):
        assert (
            parse(ANSWER + "\n[[ ## text ## ]]\nnext\n\n" + ANSWER.replace("card_arrival", "lost_card"))
            == VALUES
        )

    def test_fields_nobody_asked_for_are_ignored_and_counted(self):
        prepared = ChatAdapter().prepare(Triage)
        assert prepared.parse("[[ ## mood ## ]]\nbad\n\n" + ANSWER) == VALUES
        assert prepared.ignored == 1

    def test_missing_optional_field_is_none_and_missing_required_one_is_named(self):
        assert parse(ANSWER.replace("[[ ## note ## ]]\nNone\n", "")) == VALUES
        error = failure(ANSWER.replace("[[ ## intent ## ]]\ncard_arrival\n", ""))
        assert "[[ ## intent ## ]]" in error.reason
        assert error.parsed_result == {key: VALUES[key] for key in VALUES if key != "intent"}

    def test_all_that_is_wrong_is_said_at_once(self):
        error = failure(ANSWER.replace("card_arrival", "refund").replace("\n3\n", "\n9\n"))
        assert "intent: 'refund' is not one of card_arrival, lost_card" in error.reason
        assert "urgency: " in error.reason
        assert "5" in error.reason

    @pytest.mark.parametrize(
        "text", ["", "  \n ", "\x00", "I'm sorry, but I can't help with that.", "[[ ## text ## ]]\nx"]
    )
    def test_answers_without_fields(self, text):
        assert failure(text).parsed_result in (None, {})

    def test_free_text_is_refused_even_if_every_field_has_a_default(self):
        signature = Signature("q -> a: str | None")
        assert "none of the fields" in failure("I can't do that.", signature).reason

    def test_half_a_surrogate_pair_is_refused(self):
        assert "surrogate" in failure(ANSWER.replace("late", "\ud800")).reason

    def test_reasons_stay_short(self):
        signature = Signature({"q": InputField(), "a": (list[int], OutputField())})
        assert len(failure("[[ ## a ## ]]\n" + str(["x" * 500] * 999), signature).reason) < 2000


class TestRepair:
    def test_two_turns_the_answer_and_what_is_wrong(self):
        prepared = ChatAdapter().prepare(Triage)
        text = ANSWER.replace("card_arrival", "refund")
        answer, request = prepared.repair(text, failure(text))
        assert answer == Message("assistant", text)
        assert request.role == "user"
        assert "'refund' is not one of" in request.content
        assert "[[ ## completed ## ]]" in request.content

    def test_long_and_empty_answers(self):
        prepared = ChatAdapter().prepare(Triage)
        answer, request = prepared.repair("x" * 10**6, failure("x" * 10**6))
        assert len(answer.content) < 5000
        assert len(request.content) < 3000
        answer, _ = prepared.repair("", failure(""))
        assert answer.content.strip()

    def test_what_cannot_be_sent_is_replaced(self):
        prepared = ChatAdapter().prepare(Triage)
        for message in prepared.repair("\ud800", failure("\ud800")):
            message.content.encode("utf-8")


class TestOverriding:
    def test_each_part_of_the_prompt_can_be_replaced(self):
        class Mine(ChatAdapter):
            def format_task_description(self, signature):
                return "TASK"

            def user_message_output_requirements(self, signature):
                return "REMINDER"

            def format_user_message_content(
                self, signature, inputs, prefix="", suffix="", main_request=False
            ):
                inner = super().format_user_message_content(signature, inputs, prefix, suffix, main_request)
                return f"<<{inner}>>"

            def parse(self, signature, completion):
                return {"seen": completion}

        prepared = Mine().prepare(Triage, [DEMO])
        assert prepared.head[0].content.endswith("TASK")
        assert prepared.head[1].content.startswith("<<[[ ## text")
        rendered = prepared.render({"text": "x"})[0].content
        assert rendered.startswith("<<")
        assert rendered.endswith("REMINDER>>")
        assert prepared.parse("abc")["seen"] == "abc"

    def test_compiled_and_plain_rendering_agree(self):
        adapter = ChatAdapter()
        row = {"text": "[[ ## intent ## ]]\nlost_card", "language": "en"}
        plain = adapter.format_user_message_content(Triage, row, main_request=True)
        assert adapter.prepare(Triage).render(row)[0].content == plain


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "really bad"


class Item(BaseModel):
    name: str
    count: int


class Everything(Signature):
    """Everything at once."""

    question: str = InputField()
    text: str = OutputField()
    number: float = OutputField()
    yes: bool = OutputField()
    words: list[str] = OutputField()
    maybe: str | None = OutputField()
    mood: Mood = OutputField()
    items: list[Item] = OutputField()
    pair: tuple[int, str] = OutputField()
    counts: dict[str, int] = OutputField()


pieces = st.lists(
    st.sampled_from(
        ["[[ ## ", "text", " ## ]]", "\n", "\\", "[[", "##", "completed", "]]", " ", '"', "é", "{"]
    )
)
hostile = pieces.map("".join) | st.text(st.characters(exclude_categories=["Cs"]))
outputs = st.fixed_dictionaries(
    {
        "text": hostile.map(str.strip),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "yes": st.booleans(),
        "words": st.lists(hostile),
        "maybe": st.none() | hostile.map(str.strip),
        "mood": st.sampled_from(Mood),
        "items": st.lists(st.builds(Item, name=hostile, count=st.integers())),
        "pair": st.tuples(st.integers(), hostile),
        "counts": st.dictionaries(hostile, st.integers()),
    }
)


@settings(max_examples=80)
@given(outputs)
def test_what_is_written_as_an_answer_is_read_back(values):
    adapter = ChatAdapter()
    text = adapter.format_assistant_message_content(Everything, values)
    assert adapter.parse(Everything, text) == values


@settings(max_examples=100)
@given(hostile)
def test_no_input_becomes_an_output(value):
    signature = Signature("question -> text, number: int | None")
    [turn] = ChatAdapter().prepare(signature).render({"question": value})
    # A model that repeats its whole prompt and answers nothing has answered nothing.
    with pytest.raises(AdapterParseError):
        ChatAdapter().parse(signature, turn.content)
    answer = f"{turn.content}\n\n[[ ## text ## ]]\nmine\n\n[[ ## completed ## ]]"
    assert ChatAdapter().parse(signature, answer) == {"text": "mine", "number": None}


@settings(max_examples=100)
@given(hostile)
def test_a_quoted_input_is_quoted_exactly(value):
    signature = Signature("question -> text")
    [turn] = ChatAdapter().prepare(signature).render({"question": value})
    shown = turn.content.partition("\n")[2].rpartition("\n\n")[0]
    answer = f"[[ ## text ## ]]\n{shown}\n\n[[ ## completed ## ]]"
    assert ChatAdapter().parse(signature, answer)["text"] == value.strip()


@settings(max_examples=200)
@given(st.text() | hostile | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_no_text_raises_anything_else(text):
    full = f"[[ ## words ## ]]\n{text}\n[[ ## items ## ]]\n{text}\n[[ ## number ## ]] {text}\n{text}"
    for candidate in (text, full):
        assert len(reason_of(candidate)) < 2000


def reason_of(text):
    try:
        ChatAdapter().parse(Everything, text)
    except AdapterParseError as error:
        return error.reason or "x" * 9999
    return ""


DSPY_FORM = """[[ ## text ## ]]
hello
world

[[ ## number ## ]]
2.5

[[ ## yes ## ]]
True

[[ ## words ## ]]
["a", "b"]

[[ ## maybe ## ]]
None

[[ ## mood ## ]]
really bad

[[ ## items ## ]]
[{"name": "n", "count": 3}]

[[ ## pair ## ]]
[1, "a"]

[[ ## counts ## ]]
{"k": 1}

[[ ## completed ## ]]
"""


def test_reads_the_forms_in_which_dspy_writes_values():
    expected: dict[str, Any] = {
        "text": "hello\nworld",
        "number": 2.5,
        "yes": True,
        "words": ["a", "b"],
        "maybe": None,
        "mood": Mood.BAD,
        "items": [Item(name="n", count=3)],
        "pair": (1, "a"),
        "counts": {"k": 1},
    }
    assert ChatAdapter().parse(Everything, DSPY_FORM) == expected
