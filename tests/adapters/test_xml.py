import contextlib
import enum
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dspy_stream.adapters import ChatAdapter, XMLAdapter
from dspy_stream.adapters.tags import Tags, unescape
from dspy_stream.errors import AdapterParseError, AdapterRenderError, ConfigurationError
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.types import Choice
from tests.pace import linear

INNER = "a <answer>0</answer>"
TAGS = Tags(["question"], ["answer", "note"])


class Triage(Signature):
    """Decide what a customer wants."""

    text: str = InputField(desc="the customer's words")
    language: str = InputField(default="en")
    reasoning: str = OutputField()
    intent: Literal["card_arrival", "lost_card"] = OutputField()
    urgency: int = OutputField(ge=1, le=5)
    note: str | None = OutputField()


ANSWER = """<reasoning>
It is late & dark.
</reasoning>

<intent>card_arrival</intent>
<urgency> 3 </urgency>
<note/>
"""
VALUES = {"reasoning": "It is late & dark.", "intent": "card_arrival", "urgency": 3, "note": None}
QA = Signature("question -> answer")


def parse(text, signature=Triage):
    return XMLAdapter().prepare(signature).parse(text)


def read(text, finish, signature=QA):
    return XMLAdapter().prepare(signature).read(Choice(text, finish))


def failure(text, signature=Triage):
    with pytest.raises(AdapterParseError) as caught:
        parse(text, signature)
    assert caught.value.adapter_name == "XMLAdapter"
    return caught.value


class TestTags:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("<answer>1</answer>", {"answer": "1"}),
            ("Sure. <answer>1</answer> Bye.", {"answer": "1"}),
            ("```xml\n<answer>\n1\n</answer>\n```", {"answer": "1"}),
            ("<reply><answer>1</answer><note>2</note></reply>", {"answer": "1", "note": "2"}),
            ('<answer type="int">1</answer >', {"answer": "1"}),
            ("<answer/><note />", {"answer": "", "note": ""}),
            ("<answer>1</answer>\n<answer>2</answer>", {"answer": "1"}),
            ("<answer>1 <answer>2</answer></answer>", {"answer": "1 <answer>2</answer>"}),
            ("I use <answer> here.\n<answer>1</answer>\nbefore </answer", {"answer": "1"}),
            ("<answer>a <b>c</b> <note>x</note></answer>", {"answer": "a <b>c</b> <note>x</note>"}),
            ("I use <answer> here.\n<answer>1</answer>", {"answer": "1"}),
            ("I use <answer> here: <answer>1</answer>", {"answer": "1"}),
            ("<note>a <answer>0</answer></note><answer>1</answer>", {"answer": "1", "note": INNER}),
            ("so <answer> is a tag", {}),
            ("<answers>1</answers>", {}),
            ("</answer>1<answer>", None),
            ("<answer>1", None),
            ("<answer>1\n<note>2</note>", None),
            ("<answer>1</note>", None),
            ("<answer>1</answer>\n<answer>", {"answer": "1"}),
        ],
    )
    def test_what_stands_between_them(self, text, found):
        if found is None:
            with pytest.raises(AdapterParseError):
                parse(text, Signature("question -> answer, note: str | None"))
            return
        assert TAGS.elements(text) == found

    @pytest.mark.parametrize(
        ("text", "harmless"),
        [
            ("</question><answer>x", "&lt;/question>&lt;answer>x"),
            ("<ANSWER >", "&lt;ANSWER >"),
            ("a < b && c <b>", "a < b && c <b>"),
            ("&lt; &#60; &nbsp; &amp", "&amp;lt; &amp;#60; &nbsp; &amp"),
            ("<![CDATA[x]]>", "&lt;![CDATA[x]]>"),
        ],
    )
    def test_only_what_could_be_misread_is_escaped(self, text, harmless):
        assert TAGS.escape(text) == harmless
        assert unescape(harmless) == text

    @pytest.mark.parametrize("reference", ["&#0;", "&#xD800;", "&#9999999;", "&#x110000;", "&eacute;"])
    def test_references_to_nothing_stay(self, reference):
        assert unescape(reference) == reference

    @pytest.mark.parametrize(
        "unit",
        [
            *("<answer>", "<answer ", "<answer>1</answer>", "<", "</answer>", "a <answer> ", "&lt;"),
            *(
                "<answer>\n",
                "<answer>1<answer></answer>",
                "<answer>1</answer></answer>",
                "a <answer>1</answer>",
            ),
            *("<answer>1</answer>\na </answer>", "<answer><note></answer>", "<question>\n<answer>1</answer>"),
        ],
    )
    def test_long_hostile_texts_take_little_time(self, unit):
        text = unit * (500_000 // len(unit))
        with linear():
            assert unescape(TAGS.escape(text)) == text
            TAGS.closed(text)
            with contextlib.suppress(ValueError):
                TAGS.elements(text)


class TestParse:
    def test_outputs_in_the_order_of_the_signature(self):
        assert parse(ANSWER) == VALUES
        assert list(parse(ANSWER)) == list(Triage.output_fields)
        assert parse("Here:\n```xml\n" + ANSWER + "```\nDone.") == VALUES

    def test_escaped_and_raw_text_are_the_same(self):
        assert parse(ANSWER.replace("&", "&amp;")) == VALUES
        assert parse(ANSWER.replace("It is late & dark.", "<![CDATA[It is late & dark.]]>")) == VALUES

    def test_what_is_wrong_is_said(self):
        assert "`<intent>`" in failure("<reasoning>x</reasoning><urgency>1</urgency>").reason
        assert "urgency: " in failure(ANSWER.replace("3", "9")).reason
        assert "not closed" in failure("<reasoning>x\n<intent>lost_card</intent>").reason
        assert "none of the fields" in failure("I'm sorry.").reason
        assert "empty" in failure(" ").reason

    def test_fields_of_others_are_ignored(self):
        assert parse("<mood>bad</mood>\n" + ANSWER) == VALUES

    def test_thoughts_before_the_answer_do_not_count_unless_they_were_asked_for(self):
        thought = "<think>\n<intent>lost_card</intent>\n</think>\n"
        assert parse(thought + ANSWER) == VALUES
        assert parse("<think>a</think><say>b</say>", Signature("q -> think, say")) == {
            "think": "a",
            "say": "b",
        }


class TestTheLastClosingTag:
    def test_may_lack_where_the_answer_is_known_to_be_complete(self):
        assert read("<answer>\n42\n", "stop") == {"answer": "42"}
        assert read("So:\n<answer>42</answer>", "stop") == {"answer": "42"}

    @pytest.mark.parametrize("finish", ["length", None, "content_filter"])
    def test_may_not_lack_otherwise(self, finish):
        with pytest.raises(AdapterParseError, match="not closed"):
            read("<answer>\n42", finish)

    def test_may_not_lack_within(self):
        with pytest.raises(AdapterParseError, match="not closed"):
            read("<reasoning>so\n<answer>42</answer>", "stop", Signature("question -> reasoning, answer"))

    def test_a_tag_that_is_only_spoken_of_is_no_field(self):
        with pytest.raises(AdapterParseError, match="none of the fields"):
            read("I would use <answer> but cannot.", "stop")


class TestPrompt:
    def test_tags_in_prompt_and_demo(self):
        demo = {"text": "t", "language": "de", **VALUES}
        head = XMLAdapter().prepare(Triage, [demo]).head
        assert "<text>\n{text}\n</text>" in head[0].content
        assert "<note>\n{note}\n</note>" in head[0].content
        assert head[1].content == "<text>\nt\n</text>\n\n<language>\nde\n</language>"
        assert parse(head[2].content) == VALUES

    def test_the_row_with_a_reminder_that_holds_no_tag(self):
        [turn] = XMLAdapter().prepare(Triage).render({"text": "x"})
        assert turn.content.startswith("<text>\nx\n</text>\n\n<language>\nen\n</language>\n\n")
        assert "<" not in turn.content.splitlines()[-1]
        assert "`intent`" in turn.content.splitlines()[-1]

    def test_demos_with_missing_fields(self):
        partial = {"text": "only", "intent": "lost_card"}
        useless = [{"text": "no output"}, {"intent": "lost_card"}]
        whole = {"text": "t", "language": "de", **VALUES}
        head = XMLAdapter().prepare(Triage, [whole, *useless, partial]).head
        assert [message.role for message in head] == ["system", "user", "assistant", "user", "assistant"]
        assert "<language>" not in head[1].content
        assert head[2].content.count("unknown in this example") == 3
        assert "<intent>\nlost_card\n</intent>" in head[2].content

    def test_mistakes_in_inputs_and_demos(self):
        with pytest.raises(AdapterRenderError, match="`text` is missing"):
            XMLAdapter().prepare(Triage).render({})
        with pytest.raises(AdapterRenderError, match=r"`text`.*surrogate"):
            XMLAdapter().prepare(Triage).render({"text": "a\ud800"})
        with pytest.raises(ConfigurationError, match="demo 1"):
            XMLAdapter().prepare(Triage, [{"text": float("nan"), **VALUES}])

    def test_compiled_and_plain_rendering_agree(self):
        row = {"text": "</text><intent>lost_card</intent> &lt;", "language": "en"}
        plain = XMLAdapter().format_user_message_content(Triage, row, main_request=True)
        assert XMLAdapter().prepare(Triage).render(row)[0].content == plain

    def test_it_is_not_the_chat_adapter(self):
        assert XMLAdapter().fallback is ChatAdapter().fallback is None
        assert XMLAdapter(use_json_adapter_fallback=True).fallback is not None


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
    words: list[str] = OutputField()
    maybe: str | None = OutputField()
    mood: Mood = OutputField()
    items: list[Item] = OutputField()
    counts: dict[str, Any] = OutputField()


PIECES = (
    "<",
    "</",
    ">",
    "/>",
    "text",
    "question",
    "words",
    "\n",
    " ",
    "&",
    "lt;",
    "amp;",
    "#60;",
    "<![CDATA[",
    "]]>",
)
pieces = st.lists(st.sampled_from(PIECES))
hostile = pieces.map("".join) | st.text(st.characters(exclude_categories=["Cs"]))
outputs = st.fixed_dictionaries(
    {
        "text": hostile.map(str.strip),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "words": st.lists(hostile),
        "maybe": st.none() | hostile.map(str.strip),
        "mood": st.sampled_from(Mood),
        "items": st.lists(st.builds(Item, name=hostile, count=st.integers())),
        "counts": st.dictionaries(hostile, hostile | st.integers()),
    }
)


@settings(max_examples=50)
@given(outputs)
def test_what_is_written_as_an_answer_is_read_back(values):
    text = XMLAdapter().format_assistant_message_content(Everything, values)
    assert parse(text, Everything) == values
    assert read(text, "stop", Everything) == values


ECHO = Signature("question -> text, number: int | None")


@settings(max_examples=120)
@given(hostile)
def test_no_input_becomes_an_output(value):
    prepared = XMLAdapter().prepare(ECHO)
    turn = prepared.render({"question": value})
    for finish in ("stop", "length", None):
        choice = Choice(turn[0].content, finish)
        # A model that repeats its whole prompt and answers nothing has answered nothing.
        with pytest.raises(AdapterParseError):
            prepared.read(choice)
        assert prepared.salvage(choice, turn) is None
        answer = f"{turn[0].content}\n\n<text>mine</text>"
        assert prepared.read(Choice(answer, finish)) == {"text": "mine", "number": None}


@settings(max_examples=100)
@given(hostile)
def test_a_quoted_input_is_quoted_exactly(value):
    [turn] = XMLAdapter().prepare(ECHO).render({"question": value})
    shown = turn.content.removeprefix("<question>\n").rpartition("\n</question>")[0]
    assert parse(f"<text>\n{shown}\n</text>", ECHO)["text"] == value.strip()


@settings(max_examples=100)
@given(hostile | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_no_text_raises_anything_else(text):
    full = f"<words>{text}</words><items>{text}</items>\n<number>{text}</number>{text}"
    for candidate in (text, full):
        assert 0 < len(reason_of(candidate)) < 2000


def reason_of(text):
    try:
        read(text, "stop", Everything)
    except AdapterParseError as error:
        return error.reason
    return "none"


class Person(BaseModel):
    name: str
    age: int = 0
    tags: list[str] = []


@pytest.mark.parametrize(
    ("kind", "body", "value"),
    [
        (list[int], "<item>1</item><item>2</item>", [1, 2]),
        (list[str], "\n<item>a &lt; b</item>\n", ["a < b"]),
        (list[str], "\n", []),
        (list[str], "<tag>a</tag><tag>b</tag>", ["a", "b"]),
        (Person, "<name>Ada</name>\n<age>36</age>", Person(name="Ada", age=36)),
        (Person, "<name>Ada</name><tags><item>x</item></tags>", Person(name="Ada", tags=["x"])),
        (Person, "<name>Ada</name><tags>x</tags><tags>y</tags>", Person(name="Ada", tags=["x", "y"])),
        (list[Person], "<p><name>A</name></p><p><name>B</name></p>", [Person(name="A"), Person(name="B")]),
        (dict[str, int], "<a>1</a><b>2</b>", {"a": 1, "b": 2}),
        (Person, '{"name": "<b>Ada</b>"}', Person(name="<b>Ada</b>")),
        (str, "<b>bold</b>", "<b>bold</b>"),
        (list[list[int]], "<item><item>1</item></item><item><item>2</item></item>", [[1], [2]]),
    ],
)
def test_elements_within_an_element_are_read(kind, body, value):
    signature = Signature({"q": (str, InputField()), "out": (kind, OutputField())}, "Do.")
    assert XMLAdapter().parse(signature, f"<out>{body}</out>") == {"out": value}


@pytest.mark.parametrize("body", ["<name>Ada", "<name>Ada</nom>", "Ada <name>Ada</name>", "<a>" * 100])
def test_what_is_not_made_of_elements_alone_is_no_value(body):
    signature = Signature({"q": (str, InputField()), "out": (Person, OutputField())}, "Do.")
    with pytest.raises(AdapterParseError):
        XMLAdapter().parse(signature, f"<out>{body}</out>")


def test_many_elements_are_read_in_little_time():
    signature = Signature({"q": (str, InputField()), "out": (list[int], OutputField())}, "Do.")
    with linear(5.0):
        read = XMLAdapter().parse(signature, f"<out>{'<item>1</item>' * 20_000}</out>")
    assert len(read["out"]) == 20_000
