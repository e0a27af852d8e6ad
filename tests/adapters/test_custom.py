"""Adapters that users write: subclasses that replace format, parse, the history, or all of it."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

import dspy_stream as ds
from dspy_stream.adapters import Adapter, BAMLAdapter, ChatAdapter, JSONAdapter, TwoStepAdapter, XMLAdapter
from dspy_stream.errors import AdapterParseError, AdapterRenderError, ConfigurationError
from dspy_stream.lm import ScriptedLM
from dspy_stream.program import Signature
from dspy_stream.program.types import History
from dspy_stream.stream.sinks import MemorySink
from dspy_stream.types import Capabilities

ALL = [ChatAdapter, JSONAdapter, XMLAdapter, BAMLAdapter]
QA = Signature("question -> answer: int")
TALK = Signature("question, history: History -> answer", custom_types={"History": History})
PAST = History(messages=[{"question": "q1", "answer": "a1"}])


def test_format_and_parse_are_all_that_an_adapter_needs() -> None:
    class Plain(Adapter):
        def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
            return [{"role": "user", "content": f"{signature.instructions} {len(demos)} {dict(inputs)}"}]

        def parse(self, signature: Any, completion: str) -> dict[str, Any]:
            return dict.fromkeys(list(signature.output_fields)[:1], completion.upper())

    prepared = Plain().prepare(Signature("a, b: int = 3 -> c, d", "Do."), [{"a": "x"}])
    (message,) = prepared.render({"a": "y"})
    assert (prepared.head, message.role, message.content) == ((), "user", "Do. 1 {'a': 'y', 'b': 3}")
    assert prepared.parse("hi") == {"c": "HI", "d": None}, "what is not given is None"


def test_a_format_may_change_what_the_base_class_writes() -> None:
    class Short(ChatAdapter):
        def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
            messages = super().format(signature, demos, inputs)
            return [{"role": "system", "content": "SYSTEM"}, *messages[1:]]

    messages = (
        Short().prepare(TALK, [{"question": "d", "answer": "e"}]).render({"question": "now", "history": PAST})
    )
    assert [message.role for message in messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert messages[0].content == "SYSTEM"
    assert "a1" in str(messages[4].content)
    assert Short().prepare(QA).parse("[[ ## answer ## ]]\n4") == {"answer": 4}


def test_a_format_of_a_json_adapter_still_asks_for_json() -> None:
    class Own(JSONAdapter):
        def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
            return [{"role": "user", "content": "q"}]

    options = Own().prepare(QA, capabilities=Capabilities(json_mode=True)).options
    assert options == {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    "bad", [[{"content": "x"}], ["x"], [{"role": "user", "content": 7}], [{"role": "user"}]]
)
def test_what_is_no_message_is_named(bad: Any) -> None:
    class Bad(Adapter):
        def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
            return bad

        def parse(self, signature: Any, completion: str) -> Any:
            return None

    prepared = Bad().prepare(QA)
    with pytest.raises(AdapterRenderError, match="Bad: message 1"):
        prepared.render({"question": "q"})
    with pytest.raises(TypeError, match=r"Bad\.parse returned NoneType"):
        prepared.parse("x")


def test_the_history_may_be_written_otherwise() -> None:
    class Told(ChatAdapter):
        def format_conversation_history(
            self, signature: Any, history_field_name: str, inputs: dict[str, Any]
        ) -> list[dict[str, Any]]:
            history = inputs.pop(history_field_name)
            return [{"role": "user", "content": f"{len(history.messages)} turns"}]

    messages = Told().prepare(TALK).render({"question": "now", "history": PAST})
    assert messages[0].content == "1 turns"
    assert "now" in str(messages[1].content)


@pytest.mark.parametrize("kind", ALL)
def test_the_history_is_taken_out_of_the_inputs(kind: type[Adapter]) -> None:
    inputs = {"question": "now", "history": PAST}
    turns = kind().format_conversation_history(TALK, "history", inputs)
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert list(inputs) == ["question"]


@pytest.mark.parametrize("kind", ALL)
def test_they_are_made_as_in_dspy(kind: type[Adapter]) -> None:
    made = kind([], True, native_response_types=[], parallel_tool_calls=True)
    assert (made.use_native_function_calling, made.native_response_types, made.parallel_tool_calls) == (
        True,
        [],
        True,
    )
    assert kind(callbacks=[print]).callbacks == [print]  # type: ignore[attr-defined]


def test_init_may_leave_out_the_base_class() -> None:
    class Bare(ChatAdapter):
        def __init__(self) -> None:
            self.mine = 1

    assert Bare().format(QA, [], {"question": "q"})[0]["role"] == "system"


@pytest.mark.parametrize("kind", ALL)
def test_a_conversation_to_train_on_ends_with_the_answer(kind: type[Adapter]) -> None:
    made = kind().format_finetune_data(QA, [], {"question": "q"}, {"answer": 4})
    assert [turn["role"] for turn in made["messages"]] == ["system", "user", "assistant"]
    assert "4" in made["messages"][-1]["content"]


# ------------------------------------------------------------------------------ called directly


@pytest.mark.parametrize("kind", ALL)
def test_an_adapter_asks_a_model_when_it_is_called(kind: type[Adapter]) -> None:
    written = kind().format_assistant_message_content(QA, {"answer": 4})
    lm = ScriptedLM([written, written])
    assert kind()(lm, {"temperature": 0.5}, QA, [], {"question": "q"}) == [{"answer": 4}]
    assert lm.calls[0].options["temperature"] == 0.5
    assert asyncio.run(kind().acall(lm, {}, QA, [], {"question": "q"})) == [{"answer": 4}]


def test_its_fallback_asks_once_more() -> None:
    lm = ScriptedLM(["no", '{"answer": 4}', "no"])
    assert ChatAdapter(use_json_adapter_fallback=True)(lm, {}, QA, [], {"question": "q"}) == [{"answer": 4}]
    with pytest.raises(AdapterParseError):
        ChatAdapter()(lm, {}, QA, [], {"question": "q"})


def test_two_steps_take_two_models() -> None:
    first, second = ScriptedLM("it is four"), ScriptedLM("[[ ## answer ## ]]\n4")
    assert TwoStepAdapter(second)(first, {}, QA, [], {"question": "q"}) == [{"answer": 4}]
    with pytest.raises(ConfigurationError, match="only a name"):
        TwoStepAdapter("local/nearest")(first, {}, QA, [], {"question": "q"})
    with pytest.raises(ValueError, match="extraction_model must be"):
        TwoStepAdapter(42)


# -------------------------------------------------------------------------------- in predictors


class Around(ChatAdapter):
    def __call__(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> list[dict[str, Any]]:
        made = super().__call__(lm, lm_kwargs, signature, demos, inputs)
        return [{**each, "answer": each["answer"] + 1} for each in made]


def test_a_predictor_calls_an_adapter_that_asks_by_itself() -> None:
    lm = ScriptedLM("[[ ## answer ## ]]\n4", cache=True, model="scripted/around")
    predict = ds.Predict(QA, temperature=0.3)
    with ds.context(lm=lm, adapter=Around(), track_usage=True):
        made = [predict(question="q") for _ in range(2)]
    assert [each.answer for each in made] == [5, 5]
    assert lm.call_count == 1, "its calls are in the journal, too"
    assert lm.calls[0].options["temperature"] == 0.3


def test_one_that_asks_by_itself_is_called_with_keywords() -> None:
    class Passing(ChatAdapter):
        def __call__(self, lm: Any, **given: Any) -> list[dict[str, Any]]:
            return super().__call__(lm, **given)

    with ds.context(lm=ScriptedLM("[[ ## answer ## ]]\n4"), adapter=Passing()):
        assert ds.Predict(QA)(question="q").answer == 4


def test_acall_alone_may_be_replaced() -> None:
    class Later(ChatAdapter):
        async def acall(
            self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
        ) -> list[dict[str, Any]]:
            made = await super().acall(lm, lm_kwargs, signature, demos, inputs)
            return [{**each, "answer": each["answer"] + 1} for each in made]

    with ds.context(lm=ScriptedLM(["[[ ## answer ## ]]\n4"] * 2), adapter=Later()):
        predict = ds.Predict(QA)
        assert asyncio.run(predict.acall(question="q")).answer == 5
        assert predict(question="q").answer == 5


def test_the_parts_of_demos_are_asked_for_by_keyword() -> None:
    class Passing(ChatAdapter):
        def format_user_message_content(self, signature: Any, inputs: Any, **how: Any) -> Any:
            return super().format_user_message_content(signature, inputs, **how)

        def format_assistant_message_content(self, signature: Any, outputs: Any, **how: Any) -> str:
            return super().format_assistant_message_content(signature, outputs, **how)

    demos = [{"question": "q", "answer": 1}]
    assert Passing().format(QA, demos, {"question": "r"}) == ChatAdapter().format(
        QA, demos, {"question": "r"}
    )


def test_an_output_that_its_parse_leaves_out_is_its_default_or_none() -> None:
    class Curt(ChatAdapter):
        def parse(self, signature: Any, completion: str) -> dict[str, Any]:
            return {}

    signature = ds.Signature("question -> answer: int").append("more", ds.OutputField(default=7), int)
    with ds.context(lm=ScriptedLM("x"), adapter=Curt()):
        made = ds.Predict(signature)(question="q")
    assert (made.answer, made.more) == (None, 7)


def test_it_may_be_all_there_is() -> None:
    class Direct(Adapter):
        def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
            return [{"answer": lm(inputs["question"])[0]}]

    with ds.context(lm=ScriptedLM(lambda request: request.messages[-1].content + "!"), adapter=Direct()):
        assert ds.Predict("question -> answer")(question="q").answer == "q!"


def test_it_works_in_a_flow() -> None:
    lm = ScriptedLM(lambda request: "[[ ## answer ## ]]\n4")
    sink = MemorySink()
    flow = ds.Stream.read([{"question": str(number)} for number in range(5)]).through(ds.Predict(QA))
    with ds.context(adapter=Around()):
        report = flow.write(sink).run(lm=lm, state=None, quiet=True)
    assert (report.rows_out, report.calls) == (5, 5)
    assert [row["answer"] for row in sink.rows] == [5] * 5


class Copying(ChatAdapter):
    """Asks a copy of the model, as adapters do that want another temperature."""

    def __call__(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> list[dict[str, Any]]:
        return super().__call__(copy.copy(lm).copy(temperature=0.7), lm_kwargs, signature, demos, inputs)


class Counting(ds.BaseLM):
    """A model of one's own, which is equal to itself alone."""

    def __init__(self) -> None:
        super().__init__("mine/counting")
        self.asked: list[Any] = []
        self.made: list[Any] = []

    def copy(self, **changes: Any) -> ds.BaseLM:
        self.made.append(changes)
        return super().copy(**changes)

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        self.asked.append({**self.kwargs, **kwargs})
        return "[[ ## answer ## ]]\n4"


def test_a_copy_of_the_model_goes_through_journal_and_report_too() -> None:
    lm = Counting()
    sink = MemorySink()
    flow = ds.Stream.read([{"question": str(number)} for number in range(5)]).through(ds.Predict(QA))
    with ds.context(adapter=Copying()):
        report = flow.write(sink).run(lm=lm, state=None, quiet=True)
    assert (report.rows_out, report.calls) == (5, 5)
    assert lm.asked == [{"temperature": 0.7}] * 5
    assert lm.made == [{"temperature": 0.7}], "one for all rows: each has layers of its own"


def test_a_copy_of_the_model_keeps_to_the_budget() -> None:
    lm = Counting()
    flow = ds.Stream.read([{"question": str(number)} for number in range(5)]).through(ds.Predict(QA))
    with ds.context(adapter=Copying()), pytest.raises(ds.BudgetExceeded):
        flow.write(MemorySink()).run(lm=lm, state=None, quiet=True, max_calls=2)
    assert len(lm.asked) == 2


def test_a_callback_of_the_adapter_hears_its_formatting_and_parsing() -> None:
    heard: list[str] = []

    class Ear(ds.BaseCallback):
        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            heard.append("format")

        def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            heard.append(str(outputs))

    with ds.context(lm=ScriptedLM("[[ ## answer ## ]]\n4"), adapter=ChatAdapter(callbacks=[Ear()])):
        ds.Predict(QA)(question="q")
    assert heard == ["format", "{'answer': 4}"]


def test_the_error_is_made_and_worded_as_programs_know_it() -> None:
    error = AdapterParseError(
        adapter_name="X", signature=QA, lm_response="text", message="why", parsed_result={}
    )
    assert (error.adapter_name, error.lm_response, error.reason, error.parsed_result) == (
        "X",
        "text",
        "why",
        {},
    )
    assert "Adapter X failed to parse the LM response" in str(error)
    assert "Expected to find output fields in the LM response: [answer]" in str(error)
    assert AdapterParseError("X", QA, "text").parsed_result is None
