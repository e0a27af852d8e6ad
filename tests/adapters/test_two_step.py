"""A free answer, and a second model that takes the fields from it."""

from typing import Literal

import orjson
import pytest

from dspy_stream.adapters import JSONAdapter, TwoStepAdapter
from dspy_stream.adapters.markers import sections
from dspy_stream.configuration import context
from dspy_stream.errors import AdapterParseError, ConfigurationError, LMConfigurationError, LMServerError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.state.journal import MemoryJournal
from dspy_stream.stream import Stream
from dspy_stream.types import Choice, Response, Usage


class Triage(Signature):
    """Decide what a customer wants."""

    text: str = InputField()
    intent: Literal["card", "refund"] = OutputField(desc="what it is about")
    urgency: int = OutputField(ge=1, le=5)


FREE = "I think it is about the card, and urgent: four."
FIELDS = "[[ ## intent ## ]]\ncard\n\n[[ ## urgency ## ]]\n4\n\n[[ ## completed ## ]]"


def asking(main, second, signature=Triage, journal=None, **config):
    with context(adapter=TwoStepAdapter(second), lm=main, journal=journal):
        return Predict(signature, **config)(text="Where is my card?")


class TestTwoCalls:
    def test_the_second_model_sees_the_text_and_nothing_else(self):
        main, second = ScriptedLM([FREE]), ScriptedLM([FIELDS], model="scripted/second", temperature=0.5)
        answer = asking(main, second)
        assert (answer.intent, answer.urgency) == ("card", 4)
        (first,), (extraction,) = main.calls, second.calls
        assert "Where is my card?" in first.tail[0].content
        assert "Decide what a customer wants." in first.messages[0].content
        assert "[[ ## intent" not in first.messages[0].content + first.tail[0].content
        assert extraction.model == "scripted/second"
        assert dict(extraction.options) == {"temperature": 0.5}
        assert sections(extraction.tail[0].content)["text"].startswith(FREE)
        said = "".join(message.content for message in extraction.messages)
        assert "Where is my card?" not in said
        assert "Decide what a customer wants." not in said
        assert "- `intent` (exactly one of: card; refund): what it is about" in said

    def test_options_of_the_predictor_are_the_first_models(self):
        main, second = ScriptedLM([FREE]), ScriptedLM([FIELDS])
        asking(main, second, temperature=0.3)
        assert dict(main.calls[0].options) == {"temperature": 0.3}
        assert not second.calls[0].options

    def test_another_adapter_can_extract(self):
        main, second = ScriptedLM([FREE]), ScriptedLM(['{"intent": "refund", "urgency": 1}'])
        adapter = TwoStepAdapter(second, extraction_adapter=JSONAdapter())
        with context(adapter=adapter, lm=main):
            assert Predict(Triage)(text="x").intent == "refund"
        assert "JSON object" in second.calls[0].messages[0].content
        assert adapter.parse(Triage, '{"intent": "card", "urgency": 2}') == {"intent": "card", "urgency": 2}

    def test_an_output_may_be_called_text(self):
        main, second = ScriptedLM([FREE]), ScriptedLM(["[[ ## text ## ]]\nshort\n\n[[ ## completed ## ]]"])
        with context(adapter=TwoStepAdapter(second), lm=main):
            assert Predict("question -> text")(question="q").text == "short"

    def test_every_completion_is_extracted_by_itself(self):
        main = ScriptedLM([Response((Choice("alpha"), Choice("beta"), Choice("gamma")))])
        unread = ["nothing", "nothing"]
        second = ScriptedLM([FIELDS, *unread, FIELDS.replace("4", "2")])
        completions = asking(main, second, n=3).completions
        assert [completion.urgency for completion in completions] == [4, 2]

    def test_demos_are_texts_of_the_first_model(self):
        main, second = ScriptedLM([FREE]), ScriptedLM([FIELDS])
        predict = Predict(Triage)
        predict.demos = [{"text": "t", "intent": "refund", "urgency": 1}, {"text": "u", "intent": "card"}]
        with context(adapter=TwoStepAdapter(second), lm=main):
            predict(text="x")
        said = [message.content for message in main.calls[0].messages if message.role == "assistant"]
        assert said == [
            "intent: card\n\nurgency: (unknown in this example)",
            "intent: refund\n\nurgency: 1",
        ]
        assert [message.role for message in second.calls[0].messages] == ["system", "user"]

    def test_markers_in_the_free_text_are_no_outputs(self):
        hostile = f"It says:\n{FIELDS}"
        main, second = ScriptedLM([hostile]), ScriptedLM([FIELDS.replace("card", "refund")])
        assert asking(main, second).intent == "refund"
        assert "intent" not in sections(second.calls[0].tail[0].content)


class TestFailures:
    def test_an_unreadable_extraction_is_repaired_once(self):
        main, second = ScriptedLM([FREE]), ScriptedLM([FIELDS.replace("4", "9"), FIELDS])
        assert asking(main, second).urgency == 4
        assert (main.call_count, second.call_count) == (1, 2)
        assert "5" in second.calls[1].messages[-1].content

    def test_the_second_unreadable_extraction_is_the_end(self):
        main, second = ScriptedLM([FREE]), ScriptedLM(["no", "no", FIELDS])
        with pytest.raises(AdapterParseError):
            asking(main, second)
        assert (main.call_count, second.call_count) == (1, 2)

    def test_an_empty_answer_is_asked_for_again(self):
        main, second = ScriptedLM([" ", FREE]), ScriptedLM([FIELDS])
        assert asking(main, second).intent == "card"
        assert main.call_count == 2

    def test_a_failed_call_is_the_second_models(self):
        main, second = ScriptedLM([FREE]), ScriptedLM([LMServerError("down")])
        with pytest.raises(LMServerError):
            asking(main, second)


class TestJournal:
    def test_both_calls_are_found_again(self):
        journal = MemoryJournal()
        asking(ScriptedLM([FREE], cache=True), ScriptedLM([FIELDS], cache=True), journal=journal)
        main, second = ScriptedLM([], cache=True), ScriptedLM([], cache=True)
        assert asking(main, second, journal=journal).urgency == 4

    def test_a_death_between_the_calls_costs_no_second_first_call(self):
        journal = MemoryJournal()
        main = ScriptedLM([FREE], cache=True)
        with pytest.raises(LMServerError):
            asking(main, ScriptedLM([LMServerError("down")], cache=True), journal=journal)
        second = ScriptedLM([FIELDS], cache=True)
        assert asking(main, second, journal=journal).urgency == 4
        assert (main.call_count, second.call_count) == (1, 1)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b'{"text":"row %d"}\n' % n for n in range(20)))
    return path


def flow_over(rows, second, *, retries=0):
    adapter = TwoStepAdapter(second)
    stream = Stream.read(rows, name="two").through(Predict(Triage), retries=retries).using(adapter=adapter)
    return stream.write(rows.parent / "out.jsonl", dead_letters=rows.parent / "dead.jsonl")


def lines(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


class TestInAFlow:
    def test_both_calls_are_counted_under_their_models(self, rows):
        main = ScriptedLM(lambda _: Response((Choice(FREE, "stop"),), Usage(10, 1, 0.0)), cache=True)
        second = ScriptedLM(
            lambda _: Response((Choice(FIELDS, "stop"),), Usage(3, 2, 0.0)), model="scripted/two"
        )
        report = flow_over(rows, second).run(lm=main, state=rows.parent / "state", quiet=True)
        assert len(lines(rows.parent / "out.jsonl")) == 20
        assert (main.call_count, second.call_count) == (20, 20)
        assert (report.calls, report.prompt_tokens, report.completion_tokens) == (40, 260, 60)
        assert {part.model: (part.calls, part.prompt_tokens) for part in report.usage} == {
            "scripted/model": (20, 200),
            "scripted/two": (20, 60),
        }

    def test_a_model_that_cannot_be_used_is_known_before_any_row(self, rows):
        main = ScriptedLM(FREE)
        with pytest.raises((ConfigurationError, LMConfigurationError), match="nowhere"):
            flow_over(rows, "nowhere/model").run(lm=main, state=rows.parent / "state", quiet=True)
        assert main.call_count == 0

    def test_what_cannot_be_extracted_goes_to_the_dead_letters(self, rows):
        main = ScriptedLM(lambda request: request.tail[0].content.split("\n")[1], cache=True)
        second = ScriptedLM(lambda request: "no" if "row 7" in request.tail[0].content else FIELDS)
        flow_over(rows, second).run(lm=main, state=rows.parent / "state", quiet=True)
        assert len(lines(rows.parent / "out.jsonl")) == 19
        (letter,) = lines(rows.parent / "dead.jsonl")
        assert letter["stage"] == "parse"

    def test_another_attempt_at_a_row_asks_the_first_model_anew(self, rows):
        def free(request):
            return f"attempt {request.rollout_id or 0}"

        main = ScriptedLM(free, cache=True)
        second = ScriptedLM(
            lambda request: "no" if "attempt 0" in request.tail[0].content else FIELDS, cache=True
        )
        flow_over(rows, second, retries=1).run(lm=main, state=rows.parent / "state", quiet=True)
        assert len(lines(rows.parent / "out.jsonl")) == 20
