"""Module: walking the parts, copies, saved states."""

import asyncio
import copy
import json
import threading
from pathlib import Path

import pytest

import dspy_stream
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm import LM, LocalLM
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.program import Example, InputField, OutputField, Prediction, Signature

GOLDEN = Path(__file__).parent / "golden"


class QA(Signature):
    """Answer briefly."""

    question: str = InputField()
    context: str = InputField(desc="what is known")
    answer: str = OutputField(desc="a few words")


class Program(Module):
    def __init__(self):
        self.think = ChainOfThought(QA)
        self.parts = [Predict("question -> number: int"), Predict("question -> other")]
        self.named = {"last": Predict("question -> answer")}

    def forward(self, question):
        return self.named["last"](question=question)


class TestCalling:
    def test_neither_forward_nor_aforward_says_so(self):
        class Empty(Module):
            pass

        with pytest.raises(NotImplementedError, match="Empty defines neither forward nor aforward"):
            Empty()()

    def test_forward_takes_what_it_takes(self):
        class Add(Module):
            def forward(self, a, b=1):
                return a + b

        assert Add()(1) == 2
        assert Add()(1, b=3) == 4
        assert asyncio.run(Add().acall(1, b=3)) == 4

    def test_a_module_with_aforward_only_can_be_called(self):
        class Later(Module):
            async def aforward(self, a):
                await asyncio.sleep(0)
                return a + 1

        assert Later()(1) == 2
        assert asyncio.run(Later().acall(1)) == 2

    def test_acall_prefers_aforward_and_a_plain_call_forward(self):
        class Both(Module):
            def forward(self):
                return "sync"

            async def aforward(self):
                return "async"

        assert Both()() == "sync"
        assert asyncio.run(Both().acall()) == "async"

    def test_inputs_are_the_parameters_of_forward(self):
        class Some(Module):
            def forward(self, a, *rest, b=1, **more):
                pass

        class Fixed(Module):
            async def aforward(self, a, b=1):
                pass

        assert Some().input_names() is None
        assert Some().required_names() == ("a",)
        assert Fixed().input_names() == ("a", "b")
        assert Fixed().required_names() == ("a",)


class TestNames:
    def test_of_nested_modules_lists_and_dicts(self):
        names = [name for name, _ in Program().named_parameters()]
        assert names == ["think.predict", "parts[0]", "parts[1]", "named['last']"]

    def test_a_predict_by_itself_is_self(self):
        predict = Predict("a -> b")
        assert predict.named_parameters() == [("self", predict)]

    def test_sub_modules_are_named_from_self_down(self):
        program = Program()
        found = dict(program.named_sub_modules())
        assert list(found) == [
            *("self", "self.think", "self.think.predict"),
            *("self.parts[0]", "self.parts[1]", "self.named[last]"),
        ]
        assert found["self"] is program
        assert [name for name, _ in program.named_sub_modules(ChainOfThought)] == ["self.think"]
        program.think._compiled = True
        assert "self.think.predict" not in dict(program.named_sub_modules(skip_compiled=True))

    def test_a_part_reached_twice_is_named_once(self):
        class Shared(Module):
            def __init__(self):
                self.a = Predict("x -> y")
                self.b = self.a
                self.c = [self.a]

        assert [name for name, _ in Shared().named_parameters()] == ["a"]

    def test_a_cycle_ends(self):
        class Ring(Module):
            def __init__(self):
                self.predict = Predict("x -> y")
                self.me = self

        assert [name for name, _ in Ring().named_parameters()] == ["predict"]
        assert [name for name, _ in Ring().named_sub_modules()] == ["self", "self.predict"]

    def test_frozen_parts_are_left_out_but_not_the_top(self):
        program = Program()
        program.think._compiled = True
        assert "think.predict" not in dict(program.named_parameters())
        program.think._compiled = False
        program._compiled = True
        assert "think.predict" in dict(program.named_parameters())

    def test_names_are_those_of_dspy(self):
        saved = json.loads((GOLDEN / "dspy_program.json").read_text())
        assert [name for name, _ in Program().named_parameters()] == [
            name for name in saved if name != "metadata"
        ]

    def test_a_list_in_a_dict_is_searched(self):
        class Deep(Module):
            def __init__(self):
                self.all = {"k": [Predict("x -> y")], "p": Predict("x -> y")}

        assert [name for name, _ in Deep().named_parameters()] == ["all['k'][0]", "all['p']"]

    def test_keys_of_dicts_are_quoted_as_dspy_does(self):
        class Keyed(Module):
            def __init__(self):
                self.parts = {1: Predict("x -> y"), "it's": Predict("x -> y")}

        assert [name for name, _ in Keyed().named_parameters()] == ["parts['1']", "parts['it's']"]


class TestBatch:
    def test_results_in_order(self):
        qa = Predict("question -> answer: int")
        qa.set_lm(ScriptedLM({f"number {n}": {"answer": n} for n in range(5)}))
        examples = [Example(question=f"number {n}", answer=9).with_inputs("question") for n in range(5)]
        assert [made.answer for made in qa.batch(examples, num_threads=2)] == [0, 1, 2, 3, 4]
        assert qa.batch([]) == []

    def test_examples_whose_inputs_nobody_named_are_refused_before_any_is_run(self):
        lm = ScriptedLM({"": {"answer": 1}})
        qa = Predict("question -> answer: int")
        qa.set_lm(lm)
        with pytest.raises(ValueError, match="Inputs have not been set for this example"):
            qa.batch([Example(question="q").with_inputs("question"), Example(question="r")])
        assert lm.call_count == 0

    def test_failed_examples_come_back_with_their_errors(self):
        qa = Predict("question -> answer: int")
        good = lambda request: "good" in request.messages[1].content  # noqa: E731
        qa.set_lm(ScriptedLM(lambda request: {"answer": 1 if good(request) else "no number"}))
        examples = [Example(question=q).with_inputs("question") for q in ("good", "bad", "good")]
        made, failed, errors = qa.batch(examples, return_failed_examples=True, disable_progress_bar=True)
        assert [row.answer if row is not None else None for row in made] == [1, None, 1]
        assert [example.question for example in failed] == ["bad"]
        assert len(errors) == 1


class TestReplacing:
    def test_every_predictor_in_place(self):
        program = Program()
        old = program.predictors()
        assert program.map_named_predictors(lambda predict: Predict(predict.signature, n=2)) is program
        assert [name for name, _ in program.named_parameters()] == [
            "think.predict",
            "parts[0]",
            "parts[1]",
            "named['last']",
        ]
        assert all(predict.config == {"n": 2} for predict in program.predictors())
        assert not set(map(id, old)) & set(map(id, program.predictors()))

    def test_inside_a_tuple(self):
        class Pair(Module):
            def __init__(self):
                self.pair = (Predict("a -> b"), Predict("a -> c"))

        program = Pair()
        program.map_named_predictors(lambda predict: Predict(predict.signature, n=2))
        assert isinstance(program.pair, tuple)
        assert [predict.config for predict in program.pair] == [{"n": 2}, {"n": 2}]

    def test_a_predictor_cannot_replace_itself(self):
        with pytest.raises(ConfigurationError, match="wrap it in a module"):
            Predict("a -> b").map_named_predictors(lambda predict: Predict("a -> b"))

    def test_a_predictor_that_stays_as_it_is(self):
        predict = Predict("a -> b")
        assert predict.map_named_predictors(lambda same: same) is predict


class TestModels:
    def test_set_lm_reaches_all_parts(self):
        program, lm = Program(), LocalLM()
        program.set_lm(lm)
        assert all(predict.lm is lm for predict in program.predictors())
        assert program.get_lm() is lm
        program.set_lm("local/nearest")
        assert program.get_lm() == LM("local/nearest")
        program.set_lm(None)
        assert program.get_lm() is None

    def test_with_lm_leaves_the_program_as_it_is(self):
        program, lm = Program(), LocalLM()
        made = program.with_lm(lm)
        assert made.get_lm() is lm
        assert program.get_lm() is None

    def test_get_lm_of_none_is_an_error(self):
        class Empty(Module):
            pass

        with pytest.raises(ValueError, match="There's no unique LM to return"):
            Empty().get_lm()

    def test_frozen_parts_keep_theirs(self):
        program, lm = Program(), LocalLM()
        program.think._compiled = True
        program.set_lm(lm)
        assert program.think.predict.lm is None
        assert program.get_lm() is lm

    def test_get_lm_of_several_is_an_error(self):
        program = Program()
        program.set_lm(LocalLM())
        program.parts[0].lm = ScriptedLM([])
        with pytest.raises(ValueError, match="Multiple LMs are being used in the module"):
            program.get_lm()

    def test_a_wrong_name_changes_nothing(self):
        program = Program()
        program.set_lm(LocalLM())
        with pytest.raises(ConfigurationError):
            program.set_lm("nobody/knows-this")
        assert program.get_lm() == LocalLM()


class TestCopies:
    def test_deepcopy_is_independent(self):
        program = Program()
        program.parts[0].demos = [{"question": "q", "number": 1}]
        made = program.deepcopy()
        made.parts[0].demos.append({"question": "r", "number": 2})
        made.named["last"].config["n"] = 3
        made.think.predict.signature = made.think.predict.signature.with_instructions("Other.")
        assert len(program.parts[0].demos) == 1
        assert program.named["last"].config == {}
        assert program.think.predict.signature.instructions == "Answer briefly."
        assert [name for name, _ in made.named_parameters()] == [
            name for name, _ in program.named_parameters()
        ]

    @pytest.mark.parametrize("copied", [lambda module: module.deepcopy(), copy.deepcopy])
    def test_a_part_that_is_reached_twice_is_one_part_in_the_copy(self, copied):
        program, lm = Program(), ScriptedLM([])
        program.again = program.think.predict
        program.also = [program.think]
        program.set_lm(lm)
        demo = Example(question="q", answer="a")
        program.again.demos = [demo]
        made = copied(program)
        assert made.again is made.think.predict
        assert made.also[0] is made.think
        assert [name for name, _ in made.named_parameters()] == [
            name for name, _ in program.named_parameters()
        ]
        assert made.again.lm is lm
        assert made.again.demos == [demo]
        assert made.again.demos[0] is not demo

    def test_demos_that_cannot_be_copied_are_in_a_list_of_their_own(self):
        predict = Predict("a -> b")
        predict.demos = [{"a": threading.Lock(), "b": "x"}]
        made = predict.deepcopy()
        assert made.demos == predict.demos
        assert made.demos is not predict.demos

    def test_the_model_goes_along(self):
        program, lm = Program(), ScriptedLM([])
        program.set_lm(lm)
        assert program.deepcopy().get_lm() is lm

    def test_what_cannot_be_copied_is_shared(self):
        program = Program()
        program.lock = threading.Lock()
        made = program.deepcopy()
        assert made.lock is program.lock
        assert made.parts is not program.parts

    def test_reset_copy_forgets_what_was_learned(self):
        program = Program()
        program.set_lm(LocalLM())
        program.parts[0].demos = [{"question": "q", "number": 1}]
        program.parts[0].config["n"] = 2
        made = program.reset_copy()
        assert made.get_lm() is None
        assert made.parts[0].demos == []
        assert made.parts[0].config == {"n": 2}
        assert program.parts[0].demos
        assert program.get_lm() == LocalLM()

    def test_a_copy_of_a_used_predictor_answers_for_itself(self):
        lm = ScriptedLM({"x": {"b": "y"}}, cache=False)
        predict = Predict("a -> b")
        predict(a="x", lm=lm)
        made = predict.deepcopy()
        made.signature = made.signature.with_instructions("Sing.")
        made(a="x", lm=lm)
        predict(a="x", lm=lm)
        assert ["Sing." in request.messages[0].content for request in lm.calls] == [False, True, False]


class TestWhatDSPysProgramsCatch:
    """Each refusal is, besides, the error that DSPy raises in its place."""

    def test_a_path_that_is_no_json(self, tmp_path):
        for use in (Program().save, Program().load):
            with pytest.raises(ValueError, match=r"`path` must end with `\.json`"):
                use(tmp_path / "p.txt")
        with pytest.raises(ValueError, match="`path` must point to a directory without a suffix"):
            Program().save(tmp_path / "p.zip", save_program=True)

    def test_a_file_that_is_not_there_or_is_no_json(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"cannot read .*gone\.json: there is no such file"):
            Program().load(tmp_path / "gone.json")
        (tmp_path / "torn.json").write_text('{"a": ')
        with pytest.raises(ValueError, match="is not JSON"):
            Program().load(tmp_path / "torn.json")

    def test_a_predictor_that_is_not_in_the_state(self, tmp_path):
        with pytest.raises(KeyError) as caught:
            Program().load_state({})
        assert str(caught.value).startswith("the state has no predictor")
        Predict("a -> b").save(tmp_path / "p.json")
        with pytest.raises(KeyError, match=r"p\.json: the state has no predictor"):
            Program().load(tmp_path / "p.json")

    def test_a_pickle_where_a_program_should_be(self, tmp_path):
        (tmp_path / "program.pkl").write_bytes(b"\x80\x04N.")
        with pytest.raises(ValueError, match="Loading with pickle is not allowed"):
            dspy_stream.load(tmp_path, allow_pickle=True)
        with pytest.raises(ValueError, match=r"Loading \.pkl files can run arbitrary code"):
            Program().load(tmp_path / "program.pkl", allow_pickle=True)


class TestSaving:
    def test_demos_as_they_are(self):
        program, demo = Program(), Example(question=object(), number=1)
        program.parts[0].demos = [demo]
        assert program.dump_state(json_mode=False)["parts[0]"]["demos"][0] is demo

    def learned(self):
        program = Program()
        program.think.predict.signature = program.think.predict.signature.with_instructions("One word.")
        program.parts[0].demos = [
            Example(question="q", number=1).with_inputs("question"),
            {"question": "r", "number": 2},
        ]
        program.parts[1].lm = LM("openai/gpt-4o-mini", api_key="sk-very-secret", temperature=0.3)
        return program

    def test_a_round_trip_keeps_all_and_saves_the_same_again(self, tmp_path):
        program, other = self.learned(), Program()
        program.save(tmp_path / "p.json")
        other.load(tmp_path / "p.json")
        assert other.dump_state() == program.dump_state()
        assert other.think.predict.signature.instructions == "One word."
        assert other.parts[0].demos == [{"question": "q", "number": 1}, {"question": "r", "number": 2}]
        assert other.parts[1].lm.model == "openai/gpt-4o-mini"
        assert other.parts[1].lm.options == {"temperature": 0.3}
        other.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "p.json").read_bytes()

    def test_no_key_is_written_and_no_part_file_is_left(self, tmp_path):
        self.learned().save(tmp_path / "p.json")
        assert b"secret" not in (tmp_path / "p.json").read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["p.json"]

    def test_a_predict_by_itself(self, tmp_path):
        predict, other = Predict("a -> b"), Predict("a -> b")
        predict.demos = [{"a": "1", "b": "2"}]
        predict.save(tmp_path / "p.json")
        other.load(tmp_path / "p.json")
        assert other.demos == predict.demos

    def test_metadata_names_the_versions(self, tmp_path):
        Program().save(tmp_path / "p.json")
        metadata = json.loads((tmp_path / "p.json").read_text())["metadata"]
        # DSPy looks up every one of them among its own.
        assert set(metadata["dependency_versions"]) == {"python"}
        assert metadata["dspy_stream"] == dspy_stream.__version__

    @pytest.mark.parametrize("name", ["p.pkl", "p", "p.json.pkl", "p.txt"])
    def test_other_formats_are_refused_both_ways(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"\x80\x04N.")
        with pytest.raises(ConfigurationError, match="JSON"):
            Program().save(tmp_path / name)
        with pytest.raises(ConfigurationError, match="pickles are never read"):
            Program().load(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"\x80\x04N."

    def test_a_whole_program_is_not_saved(self, tmp_path):
        with pytest.raises(ConfigurationError):
            Program().save(tmp_path / "p.json", save_program=True)

    def test_a_value_without_a_json_form_leaves_the_old_file(self, tmp_path):
        Program().save(tmp_path / "p.json")
        before = (tmp_path / "p.json").read_bytes()
        program = Program()
        program.parts[0].demos = [{"question": object(), "number": 1}]
        with pytest.raises(ConfigurationError):
            program.save(tmp_path / "p.json")
        assert (tmp_path / "p.json").read_bytes() == before


class TestLoading:
    def test_a_program_saved_by_dspy(self):
        program = Program()
        program.load(GOLDEN / "dspy_program.json")
        think = program.think.predict
        assert think.signature.instructions == "Answer in one word."
        assert think.signature.output_fields["answer"].json_schema_extra["desc"] == "a few words"
        assert think.demos[0]["reasoning"] == "Two ones."
        assert think.demos[1] == {"question": "who?", "answer": "me", "augmented": True}
        lm = program.parts[0].lm
        assert (lm.model, dict(lm.options)) == ("openai/gpt-4o-mini", {"temperature": 0.3, "max_tokens": 100})
        assert program.parts[1].lm is None

    def test_and_it_answers(self):
        program = Program()
        program.load(GOLDEN / "dspy_program.json")
        lm = ScriptedLM({"3+3?": {"reasoning": "Two threes.", "answer": "6"}})
        assert program.think(question="3+3?", context="numbers", lm=lm).answer == "6"
        prompt = "\n".join(message.content for message in lm.calls[0].messages)
        assert "Answer in one word." in prompt
        assert "Two ones." in prompt

    def test_a_predict_saved_by_dspy(self):
        predict = Predict(QA)
        predict.load(GOLDEN / "dspy_predict.json")
        assert predict.demos == [{"question": "a", "context": "b", "answer": "c"}]

    def changed(self, change):
        state = json.loads((GOLDEN / "dspy_program.json").read_text())
        change(state)
        return state

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda s: s.pop("parts[1]"), r"no predictor 'parts\[1\]'"),
            (lambda s: s.update(extra={}), "no predictor 'extra'"),
            (lambda s: s.update({"parts[1]": None}), r"predictor 'parts\[1\]'"),
            (lambda s: s["parts[1]"].pop("signature"), r"predictor 'parts\[1\]'"),
            (lambda s: s["parts[1]"]["signature"]["fields"].pop(), r"predictor 'parts\[1\]'"),
            (lambda s: s["parts[1]"].update(demos="x"), "demos"),
            (lambda s: s["parts[1]"].update(demos=[1]), "demos"),
            (lambda s: s["named['last']"].update(lm={"no": "model"}), r"predictor \"?.*last"),
        ],
    )
    def test_all_of_it_or_nothing(self, change, words):
        program = Program()
        program.parts[0].demos = [{"question": "mine", "number": 1}]
        before = program.dump_state()
        with pytest.raises(ConfigurationError, match=words):
            program.load_state(self.changed(change))
        assert program.dump_state() == before

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
    def test_a_file_that_is_no_state(self, tmp_path, data):
        (tmp_path / "p.json").write_bytes(data)
        with pytest.raises(ConfigurationError, match=r"p\.json"):
            Program().load(tmp_path / "p.json")

    @pytest.mark.parametrize(
        "data", [b"{}", b'{"demos": []}', b'{"signature": 3}', b'{"signature": {"instructions": 1}}']
    )
    def test_a_predict_says_so_with_the_packages_own_error(self, tmp_path, data):
        (tmp_path / "p.json").write_bytes(data)
        predict = Predict("a -> b")
        before = predict.dump_state()
        with pytest.raises(ConfigurationError, match="does not fit"):
            predict.load(tmp_path / "p.json")
        assert predict.dump_state() == before

    def test_a_missing_file_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises((ConfigurationError, OSError), match=r"nothing\.json"):
            Program().load(tmp_path / "nothing.json")

    def test_a_saved_server_is_not_asked(self):
        state = self.changed(lambda s: s["parts[0]"]["lm"].update(api_base="http://169.254.169.254/"))
        program = Program()
        program.load_state(state)
        with pytest.raises(ConfigurationError, match="servers are not taken from files"):
            program.parts[0](question="q")

    def test_a_loaded_state_is_used_by_a_predictor_that_was_asked_before(self):
        lm = ScriptedLM({"q": {"answer": "a"}})
        program = Program()
        program.set_lm(lm)
        program(question="q")
        state = self.changed(lambda s: s["named['last']"]["signature"].update(instructions="Sing."))
        program.load_state(state)
        program.set_lm(lm)
        program(question="q")
        assert ["Sing." in request.messages[0].content for request in lm.calls] == [False, True]


def test_repr_lists_the_predictors():
    class Plain(Module):
        def forward(self):
            return Prediction()

    assert repr(Plain()) == "Plain()"
    assert "named['last'] = Predict('question -> answer')" in repr(Program())
