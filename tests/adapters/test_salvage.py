"""Answers in another form than the one asked for, the fallback to JSON, and answers cut short."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.adapters import BAMLAdapter, ChatAdapter, JSONAdapter, XMLAdapter
from dspy_stream.configuration import context
from dspy_stream.errors import AdapterParseError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.program import Signature
from dspy_stream.types import Capabilities, Choice

SIGNATURE = Signature("question -> answer, number: int, note: str | None")
VALUES = {"answer": "a", "number": 3, "note": None}
OBJECT = json.dumps({"answer": "a", "number": 3})
MARKED = "[[ ## answer ## ]]\na\n\n[[ ## number ## ]]\n3\n\n[[ ## completed ## ]]"
TAGGED = "<answer>a</answer><number>3</number>"


def asking(adapter, lines, question="q", model=ScriptedLM):
    lm = model(lines)
    with context(adapter=adapter, lm=lm):
        return dict(Predict(SIGNATURE)(question=question).items()), lm


class TestAnotherForm:
    @pytest.mark.parametrize(
        ("adapter", "text"),
        [
            (ChatAdapter(), OBJECT),
            (ChatAdapter(), f"```json\n{OBJECT}\n```"),
            (ChatAdapter(), f"\n```\n{json.dumps({**VALUES}, indent=1)}\n```\n"),
            (ChatAdapter(), "{'answer': 'a', 'number': '3', 'note': None,}"),
            (XMLAdapter(), OBJECT),
            (JSONAdapter(), MARKED),
            (JSONAdapter(), f"Sure.\n{MARKED}"),
            (BAMLAdapter(), MARKED),
        ],
    )
    def test_is_read_without_another_call(self, adapter, text):
        found, lm = asking(adapter, [text])
        assert found == VALUES
        assert lm.call_count == 1

    @pytest.mark.parametrize(
        ("adapter", "text"),
        [
            (ChatAdapter(), f"Here you are: {OBJECT}"),
            (ChatAdapter(), OBJECT + OBJECT),
            (ChatAdapter(), f"[{OBJECT}]"),
            (ChatAdapter(), '{"answer": "a"}'),
            (ChatAdapter(), '{"answer": "a", "number": "x"}'),
            (ChatAdapter(), '{"answer": null, "number": 3}'),
            (ChatAdapter(), '{"answer": "a", "number": 3, "question": "q"}'),
            (ChatAdapter(), '{"answer": "a", "answer": "b", "number": 3}'),
            (ChatAdapter(), TAGGED),
            (JSONAdapter(), "[[ ## answer ## ]]\na"),
            (JSONAdapter(), f"[[ ## question ## ]]\nq\n\n{MARKED}"),
            (JSONAdapter(), TAGGED),
            (XMLAdapter(), MARKED),
        ],
    )
    def test_is_not_guessed(self, adapter, text):
        good = adapter.format_assistant_message_content(SIGNATURE, VALUES)
        found, lm = asking(adapter, [text, good])
        assert found == VALUES
        assert lm.call_count == 2

    @pytest.mark.parametrize("adapter", [ChatAdapter(), XMLAdapter(), JSONAdapter(), BAMLAdapter()])
    def test_is_not_taken_from_a_cut_answer(self, adapter):
        prepared = adapter.prepare(SIGNATURE)
        asked = prepared.render({"question": "q"})
        other = MARKED if isinstance(adapter, JSONAdapter) else OBJECT
        assert prepared.salvage(Choice(other, "stop"), asked) == VALUES
        assert prepared.salvage(Choice(other, "length"), asked) is None

    def test_markers_in_a_quotation_are_given_back_as_they_were(self):
        text = json.dumps({"answer": "[[ \\## answer ## ]]", "number": 3})
        assert asking(ChatAdapter(), [text])[0]["answer"] == "[[ ## answer ## ]]"


objects = st.fixed_dictionaries(
    {"answer": st.text(st.characters(exclude_categories=["Cs"]), max_size=8), "number": st.integers(0, 9)},
    optional={"note": st.none() | st.text("ab ", max_size=3)},
)
around = st.sampled_from(["", " ", "\n", "x ", "```json\n", "```\n", '"'])


@settings(max_examples=150)
@given(objects, around, around, st.sampled_from([None, 1]), st.sampled_from(["stop", None]))
def test_no_input_becomes_an_output_by_being_repeated(value, before, after, indent, finish):
    """Neither the whole turn, nor the input in it, nor the object in that, in whatever spacing."""
    written = json.dumps(value, indent=indent, ensure_ascii=False)
    question = before + written + after
    for adapter in (ChatAdapter(), XMLAdapter()):
        prepared = adapter.prepare(SIGNATURE)
        asked = prepared.render({"question": question})
        shown = adapter.layout(SIGNATURE).escape(written)
        for echo in (asked[0].content, question, written, shown, json.dumps(value, ensure_ascii=False)):
            choice = Choice(echo, finish)
            with pytest.raises(AdapterParseError):
                prepared.read(choice)
            assert prepared.salvage(choice, asked) is None


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([MARKED, "\n", "[[ ## answer ## ]]", "\na\n", "\\", "[[", " ## ]]"])).map(
        "".join
    )
)
def test_no_marked_input_becomes_an_output_by_being_repeated(question):
    for adapter in (JSONAdapter(), BAMLAdapter()):
        prepared = adapter.prepare(SIGNATURE)
        asked = prepared.render({"question": question})
        assert prepared.salvage(Choice(asked[0].content, "stop"), asked) is None
        shown = asked[0].content.partition("\n")[2].rpartition("\n\n")[0]
        assert prepared.salvage(Choice(shown, "stop"), asked) is None


class Able(ScriptedLM):
    @property
    def capabilities(self):
        return Capabilities(json_mode=True)


class TestFallback:
    @pytest.mark.parametrize("kind", [ChatAdapter, XMLAdapter])
    def test_a_bad_row_costs_two_calls_without_it_and_three_with_it(self, kind):
        for adapter, calls in ((kind(), 2), (kind(use_json_adapter_fallback=True), 3)):
            lm = ScriptedLM(["no"] * 9)
            with context(adapter=adapter, lm=lm), pytest.raises(AdapterParseError) as caught:
                Predict(SIGNATURE)(question="q")
            assert lm.call_count == calls
            assert caught.value.adapter_name == ("JSONAdapter" if calls == 3 else kind.__name__)

    def test_the_third_call_is_one_for_json(self):
        found, lm = asking(
            ChatAdapter(use_json_adapter_fallback=True), ["no", "no", f"So: {OBJECT}"], model=Able
        )
        assert found == VALUES
        assert [request.options.get("response_format") for request in lm.calls] == [
            None,
            None,
            {"type": "json_object"},
        ]
        last = lm.calls[2]
        assert [message.role for message in last.messages] == ["system", "user"]
        assert "JSON object" in last.messages[0].content

    def test_a_good_row_costs_one_call_and_a_repaired_one_two(self):
        adapter = ChatAdapter(use_json_adapter_fallback=True)
        assert asking(adapter, [MARKED])[1].call_count == 1
        assert asking(adapter, ["no", MARKED])[1].call_count == 2


class TestAnswersCutShort:
    def test_a_last_field_that_may_go_on_is_no_field(self):
        prepared = ChatAdapter().prepare(SIGNATURE)
        cut = MARKED.partition("\n\n[[ ## completed")[0]
        assert prepared.read(Choice(cut, "stop")) == prepared.read(Choice(cut)) == VALUES
        with pytest.raises(AdapterParseError, match="cut off at the limit of tokens"):
            prepared.read(Choice(cut, "length"))
        assert prepared.read(Choice(MARKED, "length")) == VALUES

    def test_it_is_repaired_once(self):
        found, lm = asking(ChatAdapter(), [Choice(MARKED.partition("3")[0] + "3", "length"), MARKED])
        assert found == VALUES
        assert "cut off" in lm.calls[1].messages[-1].content
