"""Fields that an answer gives more than once: when that is one answer, and when it is two."""

import pytest

from dspy_stream.adapters import BAMLAdapter, ChatAdapter, JSONAdapter, XMLAdapter
from dspy_stream.configuration import context
from dspy_stream.errors import AdapterParseError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.program import Signature
from dspy_stream.types import Choice

NUMBER = Signature("question -> a: int")
TEXT = Signature("question -> a")
BOTH = Signature("question -> reasoning, a: int")
CHAT, JSON, XML = ChatAdapter(), JSONAdapter(), XMLAdapter()

TWO = [
    (CHAT, "[[ ## a ## ]]\n5\n[[ ## a ## ]]\n6", "[[ ## a ## ]]\n6"),
    (CHAT, "[[ ## a ## ]]\n5\n\n[[ ##a## ]] 6\n[[ ## completed ## ]]", "[[ ## a ## ]]\n6"),
    (JSON, '{"a":5}\n\nActually:\n{"a":6}', '{"a": 6}'),
    (JSON, '```json\n{"a":5}\n```\nNo:\n```json\n{"a":6}\n```', '{"a": 6}'),
    (JSON, '[{"a":5},{"a":6}]', '{"a": 6}'),
    (BAMLAdapter(), '{"a":5} {"a":6}', '{"a": 6}'),
    (XML, "<a>5</a> wait <a>6</a>", "<a>6</a>"),
    (XML, "<a>5</a>\n<a>6</a>", "<a>6</a>"),
    (XML, "So <a>5</a> or <a>6</a>?", "<a>6</a>"),
]


@pytest.mark.parametrize(("adapter", "text", "right"), TWO)
def test_two_answers_are_none(adapter, text, right):
    with pytest.raises(AdapterParseError, match=r"`.*a.*` is given twice, as '5' and as '6'"):
        adapter.reader(NUMBER)(text)
    assert adapter.parse(NUMBER, text) == {"a": 5}, "on its own, where nobody can be asked again"
    lm = ScriptedLM([text, right])
    with context(adapter=adapter, lm=lm):
        assert Predict(NUMBER)(question="q").a == 6
    assert "is given twice, as '5' and as '6'; give it once" in lm.calls[1].messages[-1].content
    with context(adapter=adapter, lm=ScriptedLM([text, text])), pytest.raises(AdapterParseError):
        Predict(NUMBER)(question="q")


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        # The same again, in whatever spelling.
        (CHAT, "[[ ## a ## ]]\n5\n[[ ## a ## ]]\n5"),
        (CHAT, "[[ ## a ## ]]\n5\n[[ ## a ## ]]\n**5**"),
        (JSON, '{"a":5}\n{"a":"5"}'),
        (XML, "<a>5</a> wait <a> 5 </a>"),
        # What is no value of the type.
        (CHAT, "[[ ## a ## ]]\n5\n[[ ## a ## ]]\nis the number that was asked for."),
        (JSON, '{"a":5} as the form {"a":"..."} wants it'),
        (XML, "<a>5</a> is between <a> and </a>"),
        # What cannot be read, or is broken off.
        (JSON, '{"a":5} or {"a":6'),
        (JSON, '{"a":5} or {"a":6,"a":7}'),
        (XML, "<a>5</a>\n<a>6"),
        # After the end, or in the next question.
        (CHAT, "[[ ## a ## ]]\n5\n[[ ## completed ## ]]\n\n[[ ## a ## ]]\n6"),
        (CHAT, "[[ ## question ## ]]\nq\n[[ ## a ## ]]\n5\n[[ ## question ## ]]\nr\n[[ ## a ## ]]\n6"),
        (JSON, '{"a":5}\n\n[[ ## question ## ]]\nr\n\n{"a":6}'),
        (XML, "<a>5</a>\n\n<question>\nr\n</question>\n<a>6</a>"),
        # What comes before the answer, within a line.
        (XML, "I shall write <a>6</a> below.\n<a>5</a>"),
    ],
)
def test_what_is_no_second_answer(adapter, text):
    assert adapter.reader(NUMBER)(text) == {"a": 5}


@pytest.mark.parametrize(
    ("adapter", "text", "value"),
    [
        (CHAT, "[[ ## a ## ]]\nbegin with `[[ ## a ## ]]`", "begin with `[[ ## a ## ]]`"),
        (CHAT, "[[ ## a ## ]]\nx\n[[ \\## a ## ]]\ny", "x\n[[ ## a ## ]]\ny"),
        (JSON, '{"a": "write {\\"a\\": 1}, or {\\"a\\": 2}"}', 'write {"a": 1}, or {"a": 2}'),
        (XML, "<a>use <a> here</a>", "use <a> here"),
        (XML, "<a>a &lt;a>b&lt;/a> c</a>", "a <a>b</a> c"),
    ],
)
def test_what_a_text_quotes_belongs_to_it(adapter, text, value):
    assert adapter.parse(TEXT, text) == {"a": value}


def test_only_the_field_that_differs_is_named_beside_all_else_that_is_wrong():
    with pytest.raises(AdapterParseError) as caught:
        CHAT.reader(BOTH)(
            "[[ ## reasoning ## ]]\nx\n[[ ## a ## ]]\ny\n[[ ## reasoning ## ]]\nz\n[[ ## a ## ]]\ny"
        )
    assert "a: 'y' is not a whole number" in caught.value.reason
    assert caught.value.reason.count("given twice") == 1


def test_a_marked_answer_with_two_values_is_not_taken_for_one_in_json():
    assert JSON.other_reader(NUMBER)(Choice("[[ ## a ## ]]\n5"), []) == {"a": 5}
    assert JSON.other_reader(NUMBER)(Choice("[[ ## a ## ]]\n5\n[[ ## a ## ]]\n6"), []) is None


class TestTagsWithinTheirOwn:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("<a>one <a>two</a> three</a>", "one <a>two</a> three"),
            ("<a>1 <a>2 <a>3</a></a> <a>4</a> 5</a>", "1 <a>2 <a>3</a></a> <a>4</a> 5"),
            ("<a>\n<a>two</a>\n</a>", "<a>two</a>"),
            ("<a>the tag <a> opens</a>", "the tag <a> opens"),
            ("<a>one</a>\n</a>", "one"),
        ],
    )
    def test_come_in_pairs(self, text, value):
        assert XML.parse(TEXT, text) == {"a": value}

    @pytest.mark.parametrize("text", ["<a>one</a> two</a>", "Well, <a>one <a>two</a> three</a>."])
    def test_where_the_end_is_not_certain_the_model_is_asked(self, text):
        with pytest.raises(AdapterParseError, match="end is not certain"):
            XML.parse(TEXT, text)
