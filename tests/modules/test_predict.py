"""Predict: calling it, overriding a call, and what makes it plan anew."""

import asyncio
import threading
from typing import Literal

import pytest

from dspy_stream.adapters import ChatAdapter, JSONAdapter
from dspy_stream.configuration import configure, context
from dspy_stream.errors import (
    AdapterParseError,
    AdapterRenderError,
    ConfigurationError,
    LMConfigurationError,
    LMNotConfiguredError,
    LMServerError,
)
from dspy_stream.lm import LM, LocalLM
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Predict
from dspy_stream.program import Example, InputField, OutputField, Signature
from dspy_stream.types import Choice, Response, Usage


@pytest.fixture
def lm():
    """Answers everything, always the same; nothing is shared between tests by a journal."""
    return ScriptedLM({"": {"answer": "yes"}}, cache=False)


def system(request):
    return request.messages[0].content


class TestOddCalls:
    """Logged and not refused, where a program's own code makes the call."""

    def warned(self, caplog, signature, **given):
        with caplog.at_level("WARNING", "dspy_stream"):
            assert Predict(signature)(**given, lm=ScriptedLM({"": {"answer": "yes"}})).answer == "yes"
        return [record.getMessage() for record in caplog.records]

    def test_an_input_of_another_name(self, caplog):
        [told] = self.warned(caplog, "question -> answer", question="q", qestion="q")
        assert told.startswith("Input contains fields not in signature")
        assert "['qestion']. Expected fields: ['question']" in told

    @pytest.mark.parametrize(
        ("signature", "value", "told"),
        [
            ("x: int -> answer", "many", "expected int, but the value is str"),
            ("x: str -> answer", 3, "expected str, but the value is int"),
            ("x: list[int] -> answer", ["a"], "expected list[int], but the value is list"),
            ("x: Literal['a', 'b'] -> answer", "c", "expected Literal['a', 'b'], but"),
            ("x: int | None -> answer", None, None),
            ("x: int -> answer", 3, None),
            ("x: int -> answer", "3", None),
            ("x: float -> answer", 3, None),
            ("x: str -> answer", ["several", "texts"], None),
            ("x: dspy.Image -> answer", "https://example.org/a.png", None),
            ("x -> answer", 3, None),
        ],
    )
    def test_a_value_that_does_not_fit_its_type(self, caplog, signature, value, told):
        found = self.warned(caplog, signature, x=value)
        assert len(found) == (told is not None)
        assert told is None or ("Type mismatch for field 'x'" in found[0] and told in found[0])

    def test_the_value_is_not_in_the_log_and_the_setting_turns_it_off(self, caplog):
        assert "secret" not in self.warned(caplog, "x: int -> answer", x="secret")[0]
        caplog.clear()
        with context(warn_on_type_mismatch=False):
            assert self.warned(caplog, "x: int -> answer", x="secret") == []

    def test_a_flows_row_brings_what_it_has(self, caplog):
        from dspy_stream import Stream

        rows = [{"question": "q", "other": 1}]
        with caplog.at_level("WARNING", "dspy_stream"):
            made = (
                Stream.from_iterable(rows)
                .through(Predict("question -> answer"))
                .to_list(lm=ScriptedLM({"": {"answer": "yes"}}))
            )
        assert len(made) == 1
        assert not [record for record in caplog.records if "not in signature" in record.getMessage()]

    def test_predicted_outputs_are_an_option(self):
        predicted = {"type": "content", "content": "maybe this"}
        lm = ScriptedLM({"": {"answer": "yes"}})
        Predict("question -> answer")(question="q", prediction=predicted, lm=lm)
        assert lm.calls[0].options["prediction"] == predicted
        Predict("prediction: dict -> answer")(prediction=predicted, lm=lm)
        assert "prediction" not in lm.calls[1].options
        assert "maybe this" in lm.calls[1].messages[-1].content


class TestCalling:
    def test_an_answer_is_its_own_completion(self, lm):
        made = Predict("question -> answer")(question="q", lm=lm)
        assert (len(made.completions), made.completions.answer) == (1, ["yes"])
        assert made.completions[0] == made

    def test_fills_the_outputs(self, lm):
        made = Predict("question -> answer")(question="q", lm=lm)
        assert made.answer == "yes"
        assert list(made.keys()) == ["answer"]

    def test_outputs_are_typed(self):
        class Sort(Signature):
            """Sort."""

            text: str = InputField()
            kind: Literal["a", "b"] = OutputField()
            scores: list[int] = OutputField()

        lm = ScriptedLM([{"kind": "b", "scores": [1, 2]}])
        made = Predict(Sort)(text="t", lm=lm)
        assert (made.kind, made.scores) == ("b", [1, 2])

    def test_acall_gives_the_same_on_a_foreign_loop(self, lm):
        assert asyncio.run(Predict("question -> answer").acall(question="q", lm=lm)).answer == "yes"

    def test_forward_is_the_same_as_calling(self, lm):
        assert Predict("question -> answer").forward(question="q", lm=lm).answer == "yes"

    @pytest.mark.parametrize("how", ["call", "acall", "forward"])
    def test_positional_arguments_are_refused_with_the_names(self, how, lm):
        predict = Predict("question, context -> answer")
        with pytest.raises(ValueError, match=r"'question, context', as in predict\(question=\.\.\., c"):  # noqa: PT012
            if how == "acall":
                asyncio.run(predict.acall("q", lm=lm))
            else:
                (predict if how == "call" else predict.forward)("q", lm=lm)
        assert lm.call_count == 0

    def test_of_a_chain_they_are_a_type_error_too(self, lm):
        for error in (TypeError, ValueError):
            with pytest.raises(error, match="Positional arguments are not allowed"):
                ChainOfThought("question -> answer")("q", lm=lm)

    def test_a_missing_input_is_named_before_any_call(self, lm):
        with pytest.raises(ValueError, match="context"):
            Predict("question, context -> answer")(question="q", lm=lm)
        with pytest.raises(AdapterRenderError):
            Predict("question, context -> answer")(question="q", lm=lm)
        assert lm.call_count == 0

    def test_an_input_with_a_default_may_be_left_out(self, lm):
        class Default(Signature):
            """Answer."""

            question: str = InputField()
            style: str = InputField(default="brief")
            answer: str = OutputField()

        predict = Predict(Default)
        assert predict.required_names() == ("question",)
        assert predict.input_names() == ("question", "style")
        assert predict(question="q", lm=lm).answer == "yes"

    def test_without_a_model_the_error_says_how_to_name_one(self):
        with pytest.raises(LMNotConfiguredError, match="local/nearest needs no key"):
            Predict("question -> answer")(question="q")

    def test_an_error_of_the_model_is_raised_as_it_is(self):
        with pytest.raises(LMServerError, match="down"):
            Predict("question -> answer")(question="q", lm=ScriptedLM([LMServerError("down")]))

    def test_an_unreadable_answer_is_raised_after_one_repair(self):
        lm = ScriptedLM(["a", "b", "c"])
        with pytest.raises(AdapterParseError):
            Predict("question -> number: int, answer: str")(question="q", lm=lm)
        assert lm.call_count == 2

    def test_many_threads_share_one_predictor(self):
        lm = ScriptedLM(lambda request: {"answer": request.tail[0].content.split("\n")[1]})
        predict = Predict("question -> answer")
        answers = {}

        def work(number):
            answers[number] = predict(question=f"q{number}", lm=lm).answer

        threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {n: f"q{n}" for n in range(20)}


class TestOverrides:
    def test_the_model(self, lm):
        other = ScriptedLM({"": {"answer": "other"}})
        predict = Predict("question -> answer")
        predict.lm = lm
        assert predict(question="q", lm=other).answer == "other"
        assert predict(question="q").answer == "yes"
        assert predict.lm is lm

    def test_a_model_by_name(self):
        predict = Predict("question -> answer")
        predict.demos = [{"question": "a b c", "answer": "1"}]
        assert predict(question="a b", lm="local/nearest").answer == "1"

    def test_demos(self, lm):
        predict = Predict("question -> answer")
        predict.demos = [{"question": "own demo", "answer": "1"}]
        predict(question="q", lm=lm, demos=[{"question": "other demo", "answer": "2"}])
        predict(question="q", lm=lm)
        shown = ["".join(message.content for message in request.messages) for request in lm.calls]
        assert ["own demo" in text for text in shown] == [False, True]
        assert ["other demo" in text for text in shown] == [True, False]

    def test_no_demos_at_all(self, lm):
        predict = Predict("question -> answer")
        predict.demos = [{"question": "own demo", "answer": "1"}]
        predict(question="q", lm=lm, demos=[])
        assert len(lm.calls[0].messages) == 2

    def test_config_is_merged(self, lm):
        predict = Predict("question -> answer", temperature=0.5, top_p=0.9)
        predict(question="q", lm=lm, config={"temperature": 1.0})
        predict(question="q", lm=lm)
        assert dict(lm.calls[0].options) == {"temperature": 1.0, "top_p": 0.9}
        assert dict(lm.calls[1].options) == {"temperature": 0.5, "top_p": 0.9}

    def test_the_signature(self, lm):
        predict = Predict("question -> answer")
        made = predict(question="q", lm=ScriptedLM([{"number": 3}]), signature="question -> number: int")
        assert made.number == 3
        predict(question="q", lm=lm, signature=predict.signature.with_instructions("Sing."))
        assert "Sing." in system(lm.calls[0])
        assert "Sing." not in predict.signature.instructions

    def test_an_input_of_that_name_is_an_input(self, lm):
        predict = Predict("question, config -> answer")
        predict(question="q", config="of the machine", lm=lm)
        assert "of the machine" in lm.calls[0].tail[0].content


class TestOptions:
    def test_from_the_model_then_the_adapter_then_the_predictor_then_the_call(self):
        lm = ScriptedLM('{"answer": "x"}', temperature=0.1, top_p=0.1, seed=1, stop="s")
        predict = Predict("question -> answer", top_p=0.2, seed=2)
        with context(adapter=JSONAdapter()):
            predict(question="q", lm=lm, config={"seed": 3, "stop": None})
        options = dict(lm.calls[0].options)
        assert "response_format" not in options  # nobody knows what a scripted model can do
        assert options == {"temperature": 0.1, "top_p": 0.2, "seed": 3}

    @pytest.mark.parametrize(
        ("given", "asked"),
        [
            ({"n": 3}, {"n": 3, "temperature": 0.7}),
            ({"n": 3, "temperature": 0.0}, {"n": 3, "temperature": 0.7}),
            ({"n": 3, "temperature": 0.15}, {"n": 3, "temperature": 0.7}),
            ({"n": 3, "temperature": 0.16}, {"n": 3, "temperature": 0.16}),
            ({"n": 3, "temperature": None}, {"n": 3, "temperature": 0.7}),
            ({"n": 1, "temperature": 0.0}, {"temperature": 0.0}),
            ({"n": None}, {}),
        ],
    )
    def test_several_completions_are_not_asked_of_a_greedy_model(self, given, asked, lm):
        Predict("question -> answer", **given)(question="q", lm=lm)
        assert dict(lm.calls[0].options) == asked

    def test_several_completions_come_back_together(self):
        text = "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]".format
        lm = ScriptedLM([Response(tuple(Choice(text(name)) for name in "abc"))])
        made = Predict("question -> answer")(question="q", lm=lm, config={"n": 3})
        assert made.answer == "a"
        assert made.completions.answer == ["a", "b", "c"]

    def test_rollout_id_asks_for_another_answer_and_is_not_sent(self):
        lm = ScriptedLM([{"answer": "1"}, {"answer": "2"}], cache=True)
        predict = Predict("question -> answer")
        with context(journal=DictJournal()):
            first = predict(question="q", lm=lm)
            second = predict(question="q", lm=lm, config={"rollout_id": 1})
            third = predict(question="q", lm=lm, config={"rollout_id": 1})
        assert [made.answer for made in (first, second, third)] == ["1", "2", "2"]
        assert [request.rollout_id for request in lm.calls] == [None, 1]
        assert all("rollout_id" not in request.options for request in lm.calls)

    def test_a_models_own_rollout_counts(self):
        lm = ScriptedLM([{"answer": "1"}], rollout_id=5)
        Predict("question -> answer")(question="q", lm=lm)
        assert lm.calls[0].rollout_id == 5

    @pytest.mark.parametrize("rollout", ["1", 1.5, [1]])
    def test_a_rollout_is_a_whole_number(self, rollout, lm):
        with pytest.raises(ConfigurationError, match="rollout_id"):
            Predict("question -> answer", rollout_id=rollout)(question="q", lm=lm)

    def test_cache_false_shares_nothing(self):
        lm = ScriptedLM([{"answer": "1"}, {"answer": "2"}])
        predict = Predict("question -> answer", cache=False)
        with context(journal=DictJournal()):
            assert predict(question="q", lm=lm).answer != predict(question="q", lm=lm).answer
        assert "cache" not in lm.calls[0].options

    def test_usage_is_on_the_prediction_where_it_is_tracked(self):
        reply = Response((Choice("[[ ## answer ## ]]\nx"),), Usage(10, 2), "m")
        with context(track_usage=True, journal=DictJournal()):
            made = Predict("question -> answer")(question="q", lm=ScriptedLM([reply]))
        assert made.get_lm_usage() == {
            "scripted/model": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        }


class TestSettings:
    def test_the_model_of_the_process_and_of_a_context(self, lm):
        other = ScriptedLM({"": {"answer": "other"}})
        predict = Predict("question -> answer")
        configure(lm=lm)
        try:
            assert predict(question="q").answer == "yes"
            with context(lm=other):
                assert predict(question="q").answer == "other"
            assert predict(question="q").answer == "yes"
        finally:
            configure(lm=None)

    def test_its_own_model_goes_before_the_settings(self, lm):
        predict = Predict("question -> answer")
        predict.lm = ScriptedLM({"": {"answer": "own"}})
        with context(lm=lm):
            assert predict(question="q").answer == "own"

    def test_the_adapter(self):
        lm = ScriptedLM({"": {"answer": "x"}}, answers_as="json")
        with context(adapter=JSONAdapter()):
            assert Predict("question -> answer")(question="q", lm=lm).answer == "x"

    def test_the_journal(self):
        lm = ScriptedLM([{"answer": "1"}, {"answer": "2"}], cache=True)
        predict = Predict("question -> answer")
        one, two = DictJournal(), DictJournal()
        with context(journal=one):
            predict(question="q", lm=lm)
            predict(question="q", lm=lm)
        with context(journal=two):
            assert predict(question="q", lm=lm).answer == "2"
        assert (len(one.entries), len(two.entries)) == (1, 1)


class TestPlanning:
    """The plan is made once and again after every change of what it was made from."""

    @pytest.fixture
    def prepared(self, monkeypatch):
        made = []
        original = ChatAdapter.prepare

        def prepare(self, signature, demos=(), **known):
            made.append(list(demos))
            return original(self, signature, demos, **known)

        monkeypatch.setattr(ChatAdapter, "prepare", prepare)
        return made

    def test_once_for_many_calls(self, lm, prepared):
        predict = Predict("question -> answer")
        predict.lm = lm
        for number in range(5):
            predict(question=str(number))
        assert len(prepared) == 1
        assert len({id(request.head) for request in lm.calls}) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda predict: setattr(predict, "demos", [{"question": "d", "answer": "e"}]),
            lambda predict: predict.demos.append({"question": "d", "answer": "e"}),
            lambda predict: predict.config.update(temperature=0.3),
            lambda predict: predict.update_config(temperature=0.3),
            lambda predict: setattr(predict, "signature", predict.signature.with_instructions("Sing.")),
            lambda predict: setattr(predict, "lm", ScriptedLM({"": {"answer": "z"}}, model="scripted/other")),
        ],
        ids=["demos", "append", "config", "update_config", "signature", "lm"],
    )
    def test_anew_after_a_change(self, change, lm, prepared):
        predict = Predict("question -> answer")
        predict.lm = lm
        predict(question="q")
        change(predict)
        predict(question="q")
        predict(question="q")
        assert len(prepared) == 2
        before, *after = [*lm.calls, *getattr(predict.lm, "calls", ())]
        assert any(request.head is not before.head for request in after)

    def test_a_demo_that_is_replaced_is_seen(self, lm, prepared):
        predict = Predict("question -> answer")
        predict.lm = lm
        predict.demos = [{"question": "d", "answer": "e"}]
        predict(question="q")
        predict.demos[0] = {"question": "f", "answer": "g"}
        predict(question="q")
        assert [demos[0]["question"] for demos in prepared] == ["d", "f"]

    def test_an_override_does_not_disturb_the_predictors_own(self, lm, prepared):
        predict = Predict("question -> answer")
        predict.lm = lm
        predict(question="q")
        predict(question="q", config={"temperature": 0.5})
        predict(question="q")
        assert len(prepared) == 2

    def test_equal_models_share_a_plan(self, prepared):
        predict = Predict("question -> answer")
        predict.demos = [{"question": "d", "answer": "e"}]
        predict.lm = LocalLM()
        predict(question="d")
        predict.lm = LocalLM()
        predict(question="d")
        assert len(prepared) == 1


class TestState:
    def test_demos_are_saved_as_plain_data(self):
        predict = Predict("question -> answer")
        predict.demos = [Example(question="q", answer="a").with_inputs("question")]
        assert predict.dump_state()["demos"] == [{"question": "q", "answer": "a"}]

    def test_the_layout_is_dspys(self):
        assert list(Predict("a -> b").dump_state()) == ["traces", "train", "demos", "signature", "lm"]

    def test_parameters_as_a_value(self):
        predict = Predict("a -> b", temperature=0.5)
        predict.demos = [{"a": "1", "b": "2"}]
        made = predict.current_parameters()
        assert (made.instructions, made.demos, made.config) == (
            predict.signature.instructions,
            ({"a": "1", "b": "2"},),
            {"temperature": 0.5},
        )

    def test_a_key_never_is(self):
        predict = Predict("a -> b")
        predict.lm = LM("openai/gpt-4o-mini", api_key="sk-very-secret")
        assert "secret" not in repr(predict.dump_state()) + repr(predict) + repr(predict.lm)

    def test_config_is_a_copy(self):
        predict = Predict("a -> b", n=2)
        predict.get_config()["n"] = 3
        assert predict.config == {"n": 2}


class TestChainOfThought:
    def test_reasoning_comes_first(self):
        lm = ScriptedLM([{"reasoning": "because", "answer": "yes"}])
        made = ChainOfThought("question -> answer")(question="q", lm=lm)
        assert (made.reasoning, made.answer) == ("because", "yes")
        prompt = system(lm.calls[0])
        assert prompt.index("`reasoning`") < prompt.index("`answer`")

    def test_without_reasoning_the_answer_is_not_complete(self):
        lm = ScriptedLM([{"answer": "yes"}, {"answer": "yes"}])
        with pytest.raises(AdapterParseError, match="reasoning"):
            ChainOfThought("question -> answer")(question="q", lm=lm)

    def test_acall_and_forward(self, lm):
        lm = ScriptedLM({"": {"reasoning": "r", "answer": "yes"}})
        program = ChainOfThought("question -> answer")
        assert asyncio.run(program.acall(question="q", lm=lm)).answer == "yes"
        assert program.forward(question="q", lm=lm).answer == "yes"

    def test_inputs_and_names(self):
        program = ChainOfThought("question, context -> answer", temperature=0.5)
        assert program.input_names() == program.required_names() == ("question", "context")
        assert [name for name, _ in program.named_predictors()] == ["predict"]
        assert program.predict.config == {"temperature": 0.5}

    def test_a_reasoning_that_the_signature_has_is_kept_and_comes_first(self):
        class Own(Signature):
            """Answer."""

            question: str = InputField()
            answer: str = OutputField()
            reasoning: list[str] = OutputField(desc="step by step")

        made = ChainOfThought(Own).predict.signature
        assert made.signature == "question -> reasoning, answer"
        assert made.fields["reasoning"].annotation == list[str]
        assert made.fields["reasoning"].json_schema_extra["desc"] == "step by step"
        assert Own.signature == "question -> answer, reasoning"

    def test_a_rationale_field_that_has_a_type(self):
        field = Signature("q -> thoughts: list[str]").fields["thoughts"]
        made = ChainOfThought("question -> answer", rationale_field=field).predict.signature
        assert made.fields["reasoning"].annotation == list[str]

    def test_a_rationale_field_of_ones_own(self):
        program = ChainOfThought("question -> answer", rationale_field=OutputField(desc="in steps"))
        assert program.predict.signature.output_fields["reasoning"].json_schema_extra["desc"] == "in steps"

    def test_a_subclass_with_its_own_forward_is_run_in_a_flow(self):
        class Louder(ChainOfThought):
            def forward(self, **inputs):
                made = self.predict(**inputs)
                made.answer = made.answer.upper()
                return made

        from dspy_stream.runtime import perform

        lm = ScriptedLM({"": {"reasoning": "r", "answer": "yes"}})
        program = Louder("question -> answer")
        program.set_lm(lm)
        assert program(question="q").answer == "YES"
        assert perform(program.steps({"question": "q"})).answer == "YES"


@pytest.mark.parametrize("demos", [3, "text", {"question": "q", "answer": "a"}])
def test_demos_that_are_no_list_are_named(demos):
    predict = Predict("question -> answer")
    predict.demos = demos
    with context(lm=ScriptedLM({"": {"answer": "a"}})), pytest.raises(ConfigurationError, match=r"^demos="):
        predict(question="q")


@pytest.mark.parametrize("name", ["api_key", "headers", "extra_headers"])
def test_a_key_is_no_option_of_a_predictor(name: str) -> None:
    with pytest.raises(LMConfigurationError, match=name):
        Predict("question -> answer", **{name: "sk-CANARY"})
    qa = Predict("question -> answer")
    with pytest.raises(LMConfigurationError, match=name):
        qa.update_config(**{name: "sk-CANARY"})
    with pytest.raises(LMConfigurationError, match=name):
        qa(question="q", lm=ScriptedLM(["x"]), config={name: "sk-CANARY"})
