"""Saved states and programs: both forms, DSPy's of three versions, and what does not fit."""

import json
import logging
import os
from enum import Enum
from pathlib import Path
from typing import Literal

import pydantic
import pytest

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm import LM
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules.blueprint import construct, describe
from dspy_stream.modules.compose import Pipeline, Program
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.format import Format
from dspy_stream.modules.multi_chain_comparison import MultiChainComparison
from dspy_stream.modules.recorded import Recorded
from dspy_stream.modules.retrieve import Retrieve
from dspy_stream.modules.route import Loop, Route
from dspy_stream.modules.saving import load as load_program
from dspy_stream.modules.supervisor import Intensity

GOLDEN = Path(__file__).parent / "golden"


class Triage(ds.Signature):
    """Decide what a customer wants and how urgent it is."""

    text: str = ds.InputField()
    history: list[str] = ds.InputField(desc="earlier messages")
    intent: Literal["card", "refund"] = ds.OutputField()
    urgency: int = ds.OutputField(desc="1 to 5")


class Support(ds.Module):
    """The program of which DSPy made the golden states."""

    def __init__(self, signature=Triage, reply="text, intent -> reply"):
        super().__init__()
        self.triage = ds.ChainOfThought(signature)
        self.replies = {"card": ds.Predict(reply), "refund": ds.Predict(reply)}

    def forward(self, text, history):
        made = self.triage(text=text, history=history)
        return self.replies[made.intent](text=text, intent=made.intent)


def lm():
    return ScriptedLM(
        lambda request: (
            {"reply": "Soon."}
            if "`reply`" in request.messages[0].content
            else {"reasoning": "r", "intent": "card", "urgency": 3}
        )
    )


def learned():
    program = Support()
    triage = program.triage.predict
    triage.signature = triage.signature.with_instructions("Be brief.").with_updated_fields(
        "urgency", desc="how soon"
    )
    triage.demos = [
        {"text": "a", "history": ["b"], "intent": "card", "urgency": 1, "reasoning": "r", "augmented": True}
    ]
    triage.config = {"temperature": 0.5}
    program.replies["card"].lm = LM("openai/gpt-4o-mini", temperature=0.3, num_retries=1)
    return program


@pytest.mark.parametrize("version", ["2_6", "3_4"])
class TestOptimizedByDSPy:
    def loaded(self, version):
        program = Support()
        program.load(GOLDEN / f"dspy_{version}_optimized.json")
        return program

    def test_what_was_learned_is_there(self, version):
        program = self.loaded(version)
        triage = program.triage.predict
        assert triage.signature.instructions == "Name the intent {and} the urgency.\nBe brief."
        assert triage.signature.output_fields["urgency"].json_schema_extra["prefix"] == "How urgent:"
        assert triage.signature.output_fields["urgency"].json_schema_extra["desc"] == "1 to 5"
        assert [demo.get("augmented") for demo in triage.demos] == [True, True, None]
        assert triage.demos[0]["history"] == ["hello"]
        model = program.replies["refund"].lm
        assert (model.model, model.num_retries) == ("openai/gpt-4o-mini", 3)
        assert dict(model.options) == {"temperature": 0.3, "max_tokens": 100}

    def test_it_answers_with_it(self, version):
        program, model = self.loaded(version), lm()
        program.set_lm(model)
        assert program(text="Where is it?", history=["hello"]).reply == "Soon."
        prompt = "\n".join(message.content for message in model.calls[0].messages)
        assert "Name the intent {and} the urgency." in prompt
        assert "It is about a card." in prompt

    def test_it_round_trips(self, version, tmp_path):
        program = self.loaded(version)
        program.save(tmp_path / "p.json")
        before = json.loads((GOLDEN / f"dspy_{version}_optimized.json").read_text())
        after = json.loads((tmp_path / "p.json").read_text())
        assert list(after) == list(before)
        for name in set(before) - {"metadata"}:
            assert {**after[name], "lm": None} == {**before[name], "lm": None}
        again = Support()
        again.load(tmp_path / "p.json")
        assert again.dump_state() == program.dump_state()
        program.save(tmp_path / "own.json", format="dspy_stream")
        own = Support()
        own.load(tmp_path / "own.json")
        assert own.dump_state() == program.dump_state()

    def test_other_names_or_another_order_are_refused(self, version):
        state = json.loads((GOLDEN / f"dspy_{version}_optimized.json").read_text())
        other = Triage.delete("history").insert(
            0, "history", ds.InputField(desc="earlier messages"), list[str]
        )
        with pytest.raises(ConfigurationError, match=r"triage\.predict.*field 1 was `text`.*for `history`"):
            Support(other).load_state(state)
        with pytest.raises(ConfigurationError, match=r"saved field 3 was `reply`.*for `answer`"):
            Support(reply="text, intent -> answer").load_state(state)
        renamed = Triage.delete("urgency").append("speed", ds.OutputField(desc="1 to 5"), int)
        with pytest.raises(ConfigurationError, match=r"demo 1 has the field 'urgency'.*has 'speed'"):
            Support(renamed).load_state(state)
        with pytest.raises(ConfigurationError, match=r"3 fields, but .* has 2"):
            Support(reply="text -> reply").load_state(state)


class Item(pydantic.BaseModel):
    name: str
    n: int = 1


class Order(ds.Signature):
    """Read an order."""

    text: str = ds.InputField(desc="what was written")
    photo: ds.Image | None = ds.InputField()
    kind: Literal["new", "change"] = ds.OutputField(desc="what it is")
    items: list[Item] = ds.OutputField()


class Desk(ds.Module):
    """The program of which DSPy made the golden state with pictures, models and parts in collections."""

    def __init__(self):
        self.read = ds.ChainOfThought(Order)
        self.steps = [ds.Predict("text -> count: int"), ds.ChainOfThought("text, count -> reply")]
        self.by_name = {"it's": (ds.Predict("text -> reply"),)}
        self.last = ds.Predict("text -> reply")
        self.again = self.last


class TestProgramsOfThought:
    @pytest.mark.parametrize("make", [lambda code: code, lambda code: Codes(code)])
    def test_the_name_that_dspy_2_6_gave_a_part(self, make):
        program, learned = (make(ds.ProgramOfThought("question -> answer")) for _ in range(2))
        for predictor in learned.predictors():
            predictor.demos = [{"question": "1?", "answer": predictor.signature.signature}]
        state = learned.dump_state()
        older = {name.replace("generate_output", "generate_answer"): part for name, part in state.items()}
        assert set(older) != set(state)
        program.load_state(older)
        assert program.dump_state() == state
        with pytest.raises(ConfigurationError, match=r"no predictor '.*generate_answer"):
            program.load_state({**state, **older})


class Codes(ds.Module):
    def __init__(self, code):
        self.codes = [code]


class TestDSPysTypesAndCollections:
    @pytest.fixture
    def desk(self):
        made = Desk()
        made.load(GOLDEN / "dspy_3_4_types.json")
        return made

    def test_every_part_is_found_under_dspys_name(self, desk):
        state = json.loads((GOLDEN / "dspy_3_4_types.json").read_text())
        assert [name for name, _ in desk.named_parameters()] == [name for name in state if name != "metadata"]
        assert desk.steps[0].signature.fields["count"].json_schema_extra["prefix"] == "How many:"
        assert (desk.steps[0].lm.model, desk.steps[0].lm.cache) == ("openai/gpt-4o-mini", False)
        assert desk.last.demos == [{"text": "hello", "reply": "Good day."}]

    def test_pictures_and_models_in_demos_are_shown(self, desk):
        model = ScriptedLM({"": {"reasoning": "r", "kind": "new", "items": []}})
        desk.read.predict.lm = model
        assert desk.read(text="one pen", photo="https://example.org/pen.png").kind == "new"
        urls = [
            block["image_url"]["url"]
            for message in model.calls[0].messages
            if not isinstance(message.content, str)
            for block in message.content
            if block["type"] == "image_url"
        ]
        assert urls == ["https://example.org/pens.png", "https://example.org/pen.png"]
        answers = [message.content for message in model.calls[0].messages if message.role == "assistant"]
        assert any('"name": "pen"' in answer or '"name":"pen"' in answer for answer in answers)

    def test_it_round_trips(self, desk, tmp_path):
        desk.save(tmp_path / "desk.json")
        before = json.loads((GOLDEN / "dspy_3_4_types.json").read_text())
        after = json.loads((tmp_path / "desk.json").read_text())
        for name in set(before) - {"metadata"}:
            assert {**after[name], "lm": None} == {**before[name], "lm": None}


class TestByName:
    def test_a_round_trip(self, tmp_path):
        program, other = learned(), Support()
        program.save(tmp_path / "p.json", format="dspy_stream")
        other.load(tmp_path / "p.json")
        assert other.dump_state() == program.dump_state()
        assert other.triage.predict.config == {"temperature": 0.5}
        assert other.replies["card"].lm == LM("openai/gpt-4o-mini", temperature=0.3, num_retries=1)
        other.save(tmp_path / "again.json", format="dspy_stream")
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "p.json").read_bytes()

    def test_the_order_of_fields_does_not_matter(self, tmp_path):
        learned().save(tmp_path / "p.json", format="dspy_stream")
        other = Triage.delete("history").insert(0, "history", ds.InputField(), list[str])
        program = Support(other)
        program.load(tmp_path / "p.json")
        fields = program.triage.predict.signature.fields
        assert list(fields)[:2] == ["history", "text"]
        assert fields["urgency"].json_schema_extra["desc"] == "how soon"
        assert fields["history"].json_schema_extra["desc"] == "earlier messages"

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Support(Triage.delete("urgency")), r"triage\.predict.*no field `urgency` any more"),
            (
                lambda: Support(Triage.append("x", ds.OutputField(), str)),
                r"triage\.predict.*lacks the field `x`",
            ),
            (
                lambda: Support(Triage.delete("urgency").append("urgency", ds.InputField(), int)),
                "field `urgency` was an output",
            ),
            (lambda: ds.Predict("text -> reply"), "no predictor 'self'"),
        ],
    )
    def test_other_fields_are_refused_and_nothing_is_changed(self, tmp_path, make, words):
        learned().save(tmp_path / "p.json", format="dspy_stream")
        program = make()
        before = program.dump_state()
        with pytest.raises(ConfigurationError, match=words):
            program.load(tmp_path / "p.json")
        assert program.dump_state() == before

    def test_another_type_is_warned_of(self, tmp_path, caplog):
        learned().save(tmp_path / "p.json", format="dspy_stream")
        with caplog.at_level(logging.WARNING, "dspy_stream"):
            Support(Triage.with_updated_fields("urgency", float)).load(tmp_path / "p.json")
        assert "field `urgency` had another type" in caplog.text

    def test_a_model_of_an_own_server_is_kept_but_not_asked(self, tmp_path):
        predict = ds.Predict("a -> b")
        predict.lm = LM("openai/x", api_base="http://127.0.0.1:9/v1", api_key="sk-very-secret-indeed")
        predict.save(tmp_path / "p.json", format="dspy_stream")
        text = (tmp_path / "p.json").read_text()
        assert "127.0.0.1" not in text
        assert "secret" not in text
        predict.load(tmp_path / "p.json")
        with pytest.raises(ds.LMError, match="servers are not taken from files"):
            predict(a="x")

    def test_a_model_that_dspy_saved_can_be_saved_again(self, tmp_path):
        state = ds.Predict("a -> b").dump_state()
        state["lm"] = {
            "_dspy_lm_class": "dspy.clients.lm.LM",
            **{"model": "openai/x", "model_type": "chat", "cache": True, "num_retries": 3},
            **{"temperature": 0.3, "max_tokens": None, "api_base": "http://127.0.0.1:9/v1"},
            **{"finetuning_model": "y", "launch_kwargs": {"a": 1}, "train_kwargs": {}, "engine": "auto"},
        }
        theirs, ours = ds.Predict("a -> b"), ds.Predict("a -> b")
        theirs.load_state(state)
        theirs.save(tmp_path / "p.json", format="dspy_stream")
        ours.load(tmp_path / "p.json")
        assert (ours.lm.model, dict(ours.lm.options)) == ("openai/x", {"temperature": 0.3})
        with pytest.raises(ds.LMError, match="servers are not taken from files"):
            ours(a="x")

    def test_a_model_of_another_class_is_kept_but_not_asked(self, tmp_path):
        predict = ds.Predict("a -> b")
        predict.lm = ds.DummyLM([{"b": "1"}])
        for name in ("p.json", "q.json"):
            predict.save(tmp_path / name, format="dspy_stream")
            predict.load(tmp_path / name)
            with pytest.raises(ds.LMError, match=r"DummyLM, and classes are not taken from files"):
                predict(a="x")

    def test_fallbacks_go_along(self, tmp_path):
        predict = ds.Predict("a -> b")
        predict.lm = LM("openai/x", fallbacks=["openai/y", LM("anthropic/z", temperature=0.1)])
        predict.save(tmp_path / "p.json", format="dspy_stream")
        other = ds.Predict("a -> b")
        other.load(tmp_path / "p.json")
        assert [model.model for model in other.lm.fallbacks] == ["openai/y", "anthropic/z"]
        assert dict(other.lm.fallbacks[1].options) == {"temperature": 0.1}

    def test_a_secret_is_not_written(self, tmp_path):
        predict = ds.Predict("a -> b", password="x")
        with pytest.raises(ConfigurationError, match="secrets do not belong"):
            predict.save(tmp_path / "p.json", format="dspy_stream")
        assert list(tmp_path.iterdir()) == []

    def test_there_are_two_forms(self, tmp_path):
        with pytest.raises(ConfigurationError, match="dspy and dspy_stream"):
            Support().save(tmp_path / "p.json", format="yaml")


class Level(str, Enum):
    LOW = "low"


def frozen():
    part = ds.ChainOfThought("a -> b")
    part._compiled = True
    return Program(a=part)


def nested():
    program = Program(a=Format("x"))
    for _ in range(16):
        program = Program(a=program)
    return program


def programs():
    constrained = ds.Signature("text -> label: Literal['a', 'b'] = 'a', note: str | None").append(
        "score", ds.OutputField(ge=0, le=5), int
    )
    inner = ds.Predict("text -> label") | Format("{label}!", output="loud")
    return {
        "predict": ds.Predict(constrained, temperature=0.5),
        "images": ds.Predict("picture: Image, past: History -> code: Code['python']"),
        "thought": ds.ChainOfThought("text -> label", rationale_field_type=list[str]),
        "comparison": MultiChainComparison("text -> label", M=2),
        "pipeline": ds.ChainOfThought("text -> label").using(retries=2, outputs={"label": "kind"})
        | Format("{kind}"),
        "program": Program(
            retriever=Retrieve(k=2),
            answer=ds.Predict("passages: list[str], text -> label").using(
                timeout=3.0, fallback=ds.Predict("text -> label")
            ),
            strategy="rest_for_one",
        ),
        "fork": Fork(x=ds.Predict("text -> x"), y=ds.Predict("text -> y")),
        "route": Route(
            "text", {"a": ds.Predict("text -> label"), 3: inner, None: Format("-")}, default=Format("?")
        ),
        "loop": Loop(ds.Predict("text -> text_: str, done: bool"), until="done", max_iterations=3),
        "recorded": Recorded(inner, "how"),
        "ensemble": ds.Ensemble(reduce_fn=ds.majority, size=1, deterministic=True).compile(
            [ds.Predict("text -> label"), ds.ChainOfThought("text -> label")]
        ),
        "list": ds.Ensemble().compile([ds.Predict("text -> label")]),
        "rlm": ds.RLM("text -> label: int", max_iters=3, max_llm_calls=4, max_output_chars=500),
        "code": ds.ProgramOfThought("text -> label: int", max_iters=2),
    }


class TestWholePrograms:
    @pytest.mark.parametrize("name", list(programs()))
    def test_a_round_trip(self, tmp_path, name):
        program = programs()[name]
        for number, predictor in enumerate(program.predictors()):
            predictor.signature = predictor.signature.with_instructions(f"Number {number}.")
            predictor.demos = [{"text": f"demo {number}"}]
        program.save(tmp_path / "p", save_program=True)
        made = load_program(tmp_path / "p")
        assert type(made) is type(program)
        assert made.dump_state() == program.dump_state()
        assert made.input_names() == program.input_names()
        assert made.output_names() == program.output_names()
        for (_, one), (_, other) in zip(made.named_predictors(), program.named_predictors(), strict=True):
            assert one.signature.equals(other.signature)
            assert one.signature.digest() == other.signature.digest()
            assert one.config == other.config
        if hasattr(program, "composition"):
            assert made.composition() == program.composition()
        made.save(tmp_path / "again.json", save_program=True)
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "p" / "program.json").read_bytes()

    def test_it_answers_as_before(self, tmp_path):
        program = programs()["recorded"]
        program.save(tmp_path / "p.json", save_program=True)
        model = ScriptedLM({"hello": {"label": "greeting"}})
        with ds.context(lm=model):
            assert load_program(tmp_path / "p.json")(text="hello").loud == "greeting!"

    def test_how_often_parts_are_started_again_is_kept(self, tmp_path):
        program = Program(a=Format("{text}"), strategy="one_for_all", intensity=Intensity(7, 60.0))
        program.save(tmp_path / "p.json", save_program=True)
        made = load_program(tmp_path / "p.json")
        assert isinstance(made, Program)
        assert (made._tree.strategy, made._tree.intensity) == ("one_for_all", Intensity(7, 60.0))
        made.save(tmp_path / "again.json", save_program=True)
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "p.json").read_bytes()
        usual = describe(Program(a=Format("{text}")))
        assert "intensity" not in usual  # so a program saved before there was one is written as it was

    @pytest.mark.parametrize(
        "intensity",
        [
            None,
            3,
            {},
            {"restarts": 1},
            {"restarts": -1, "seconds": 1.0},
            {"restarts": "3", "seconds": 1.0},
            {"restarts": 1, "seconds": None},
            {"restarts": 1, "seconds": 1.0, "strategy": "x"},
        ],
    )
    def test_an_intensity_that_is_none_is_refused(self, intensity):
        blueprint = {**describe(Program(a=Format("{text}"))), "intensity": intensity}
        with pytest.raises(ConfigurationError, match=r"intensity|Intensity"):
            construct(blueprint)

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("ensemble", {"size": 3}),
            ("ensemble", {"size": True}),
            ("ensemble", {"programs": []}),
            ("ensemble", {"reduce": "os.system"}),
            ("ensemble", {"deterministic": 1}),
            ("rlm", {"max_iters": "3"}),
            ("rlm", {"interpreter_factory": "dspy_stream.PythonInterpreter"}),
            ("code", {"max_iters": -1}),
        ],
    )
    def test_wrong_values_are_refused(self, name, wrong):
        with pytest.raises(ConfigurationError):
            construct({**describe(programs()[name]), **wrong})

    def test_learned_in_one_and_loaded_into_the_other(self, tmp_path):
        program = programs()["fork"]
        program.x.demos = [{"text": "t", "x": "x"}]
        program.save(tmp_path / "p.json", save_program=True)
        other = programs()["fork"]
        other.load(tmp_path / "p.json")
        assert other.x.demos == program.x.demos

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (Support, "Support is not one of the parts"),
            (
                lambda: ds.Ensemble(reduce_fn=len).compile([Format("x")]),
                r"where its reduce_fn is dspy_stream\.majority",
            ),
            (lambda: ds.RLM("a -> b", tools=[ds.Tool(lambda x: x, name="same")]), "RLM has tools of its own"),
            (
                lambda: ds.ProgramOfThought("a -> b", interpreter_factory=ds.PythonInterpreter),
                "ProgramOfThought has an interpreter of its own",
            ),
            (lambda: Pipeline(lambda text: {"x": 1}), "Apply is not one of the parts"),
            (lambda: Route(lambda record: 1, {1: Format("x")}), "a function as on= cannot be saved"),
            (lambda: Route("x", {(1, 2): Format("x")}), "no JSON form"),
            (lambda: Loop(Format("x"), until=lambda record: True), "a function as until="),
            (lambda: ds.Predict(Own), "Color is a type of your own"),
            (lambda: ds.Predict(Made), "default that is made by a function"),
            (lambda: type("Mine", (ds.Predict,), {})("a -> b"), "Mine is not one of the parts"),
            (
                lambda: Route("x", {Level.LOW: ds.Predict("a -> b")}),
                "Level.LOW cannot be saved.* the key 'low'",
            ),
            (
                lambda: Route("x", {1: ds.Predict("a -> b"), "1": ds.Predict("a -> b")}),
                "have the name routes",
            ),
            (lambda: Pipeline(*[ds.Predict("a -> b")] * 2), r"predictor stages\[1\] is also another part"),
            (frozen, "a.predict is also another part of the program, or is frozen"),
            (nested, "deeper than 16 parts"),
        ],
    )
    def test_what_cannot_be_saved_says_so_and_leaves_no_file(self, tmp_path, make, words):
        with pytest.raises(ConfigurationError, match=words):
            make().save(tmp_path / "p", save_program=True)
        assert not (tmp_path / "p").exists()

    def test_a_class_of_the_same_name_as_one_of_ours(self, tmp_path):
        class Image(pydantic.BaseModel):
            x: int

        with pytest.raises(ConfigurationError, match="type of your own"):
            ds.Predict(
                "a: Image -> b",
            ).save(tmp_path / "ok.json", save_program=True) or ds.Predict(
                ds.Signature({"a": (Image, ds.InputField()), "b": (str, ds.OutputField())})
            ).save(tmp_path / "p.json", save_program=True)

    def test_places_that_do_not_fit(self, tmp_path):
        with pytest.raises(ConfigurationError, match="saved as JSON, in a file"):
            programs()["fork"].save(tmp_path / "p.pkl", save_program=True)
        with pytest.raises(ConfigurationError, match="pickles"):
            programs()["fork"].save(tmp_path / "p", save_program=True, modules_to_serialize=[json])
        with pytest.raises(ConfigurationError, match="cannot read"):
            load_program(tmp_path / "nothing.json")
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "program.pkl").write_bytes(b"\x80\x04N.")
        with pytest.raises(ConfigurationError, match="pickle, which is never read"):
            load_program(tmp_path / "d")
        Support().save(tmp_path / "state.json", format="dspy_stream")
        with pytest.raises(ConfigurationError, match="a state without its program"):
            load_program(tmp_path / "state.json")


class Color:
    pass


class Own(ds.Signature):
    a: Color = ds.InputField()
    b: str = ds.OutputField()


class Made(ds.Signature):
    a: list[str] = ds.InputField(default_factory=list)
    b: str = ds.OutputField()


class TestTheFile:
    def test_it_is_replaced_whole_and_nothing_else_is_left(self, tmp_path):
        learned().save(tmp_path / "p.json")
        learned().save(tmp_path / "p.json", format="dspy_stream")
        assert [path.name for path in tmp_path.iterdir()] == ["p.json"]

    @pytest.mark.parametrize("form", ["dspy", "dspy_stream"])
    @pytest.mark.parametrize(
        "demo", [{"text": "x" * (9 << 20)}, {"text": json.loads("[" * 80 + "]" * 80)}], ids=["large", "deep"]
    )
    def test_what_could_not_be_read_again_is_not_written(self, tmp_path, form, demo):
        asks = ds.Predict("text -> b")
        asks.save(tmp_path / "p.json", format=form)
        before = (tmp_path / "p.json").read_bytes()
        asks.demos = [demo]
        with pytest.raises(ConfigurationError, match=r"are read again|nests deeper"):
            asks.save(tmp_path / "p.json", format=form)
        assert (tmp_path / "p.json").read_bytes() == before

    @pytest.mark.parametrize("form", ["dspy", "dspy_stream"])
    def test_two_predictors_of_one_name_are_not_mixed_up(self, tmp_path, form):
        class Keyed(ds.Module):
            def __init__(self, *keys):
                self.asks = {key: ds.Predict("text -> b") for key in keys}

        with pytest.raises(ConfigurationError, match=r"two predictors have the name asks\['1'\]"):
            Keyed(1, "1").save(tmp_path / "p.json", format=form)
        Keyed(1).save(tmp_path / "p.json", format=form)
        with pytest.raises(ConfigurationError, match=r"two predictors have the name asks\['1'\]"):
            Keyed(1, "1").load(tmp_path / "p.json")

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigurationError, match="cannot write"):
            learned().save(tmp_path / "nowhere" / "p.json")

    def test_a_link_is_replaced_and_not_followed(self, tmp_path):
        (tmp_path / "other.json").write_text("kept")
        os.symlink(tmp_path / "other.json", tmp_path / "p.json")
        learned().save(tmp_path / "p.json")
        assert (tmp_path / "other.json").read_text() == "kept"
        assert not (tmp_path / "p.json").is_symlink()
