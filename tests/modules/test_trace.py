"""Tracing a plain forward: the graph it finds, what stops it and where, and what the graph answers."""

import asyncio
import inspect
import re

import pytest

import dspy_stream as ds
from dspy_stream.configuration import configure, context
from dspy_stream.engine import Ticket
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.modules.compose import Pipeline
from dspy_stream.modules.part import Apply
from dspy_stream.modules.retrieve import Retrieve
from dspy_stream.modules.scope import TICKET
from dspy_stream.modules.trace import Untraceable, trace
from dspy_stream.program import Prediction


def echo(together=1):
    """A model that answers every output with its name and the inputs, once so many questions have come."""
    asked = []

    async def met():
        while len(asked) < together:
            await asyncio.sleep(0.001)

    async def answer(request):
        asked.append(request)
        await asyncio.wait_for(met(), 20.0)
        text = request.tail[-1].content
        given = dict(re.findall(r"\[\[ ## (\w+) ## \]\]\n(.*)", text))
        wanted = re.findall(r"\[\[ ## (\w+) ## \]\]", text.rsplit("Respond", 1)[-1])
        return {name: f"{name}({'+'.join(given.values())})" for name in wanted if name != "completed"}

    return ScriptedLM(answer, cache=True)


class Three(Module):
    """Two calls that need only the input, and one that needs both."""

    def __init__(self):
        self.pro = Predict("text -> argument")
        self.con = Predict("text -> argument")
        self.judge = ChainOfThought("text, pro, con, tone -> verdict")

    def forward(self, text, tone="dry"):
        pro = self.pro(text=text)
        con = self.con(text=text).argument
        ruling = self.judge(text=text, pro=pro.argument, con=con, tone=tone)
        return Prediction(verdict=ruling["verdict"], sides=[pro.argument, con], kind="trial")


class Inner(Module):
    def __init__(self):
        self.ask = Predict("text -> a")

    def forward(self, text):
        return Prediction(b=self.ask(text=text).a, c="constant")


class Outer(Module):
    def __init__(self):
        self.hops = [Inner() for _ in range(2)]
        self.named = {"last": Predict("b, c -> d")}

    def forward(self, text):
        for hop in self.hops:
            made = self.one(hop, text)
            text = made.b
        return self.named["last"](b=made.b, c=made.c)

    def one(self, hop, text):
        return hop(text=text)


def names(traced):
    return [[call.name for call in level] for level in traced.levels()]


class TestGraph:
    def test_finds_which_output_feeds_which_input(self):
        traced = trace(Three())
        assert names(traced) == [["pro", "con"], ["judge"]]
        assert [call.needs() for call in traced.calls] == [[], [], [0, 1]]
        assert (traced.required_names(), traced.input_names()) == (("text",), ("text", "tone"))
        assert traced.output_names() == ("verdict", "sides", "kind")

    def test_goes_into_a_user_s_own_modules_lists_and_helpers(self):
        traced = trace(Outer())
        assert names(traced) == [["hops[0].ask"], ["hops[1].ask"], ["named['last']"]]
        assert traced.calls[2].arguments["c"] == "constant"
        assert traced.output_names() == ("d",)

    def test_one_predictor_called_twice_is_two_calls(self):
        class Twice(Module):
            def __init__(self):
                self.ask = Predict("text, kind -> a")

            def forward(self, text):
                return {kind: self.ask(text=text, kind=kind).a for kind in ("x", "y")}

        traced = trace(Twice())
        assert names(traced) == [["ask", "ask_2"]]
        assert [call.arguments["kind"] for call in traced.calls] == ["x", "y"]

    def test_no_model_is_asked_and_none_is_needed(self):
        lm = ScriptedLM([])
        with context(lm=lm):
            trace(Three())
        assert lm.call_count == 0
        configure(lm=None)
        assert len(trace(Outer()).calls) == 3

    def test_library_modules_are_one_call(self):
        class Uses(Module):
            def __init__(self):
                self.both = Pipeline(Predict("text -> a"), Predict("a -> b"))

            def forward(self, text):
                return self.both(text=text)

        assert names(trace(Uses())) == [["both"]]

    def test_arguments_by_position_get_the_names_of_the_part_s_forward(self):
        class Rag(Module):
            def __init__(self):
                self.retrieve = Retrieve(k=2)
                self.answer = ChainOfThought("context, question -> answer")

            def forward(self, question):
                passages = self.retrieve(question).passages
                return self.answer(context=passages, question=question)

        traced = trace(Rag())
        assert names(traced) == [["retrieve"], ["answer"]]
        assert list(traced.calls[0].arguments) == ["query"]

        def search(query, k):
            return [f"{query} {n}" for n in range(k)]

        for program in (Rag(), traced):
            with context(lm=echo(), rm=search):
                assert "q 0" in program(question="q").answer

    def test_the_module_is_left_as_it_was(self):
        module = Three()
        before = dict(module.__dict__)
        trace(module)
        assert module.__dict__ == before


class TestAnswers:
    def test_are_those_of_the_module(self):
        configure(lm=echo())
        for module, inputs in (
            (Three(), {"text": "T"}),
            (Three(), {"text": "T", "tone": "wry"}),
            (Outer(), {"text": "T"}),
        ):
            plain = module(**inputs)
            traced = trace(module)
            assert traced(**inputs).toDict() == plain.toDict()
            assert asyncio.run(traced.acall(**inputs)).toDict() == plain.toDict()

    def test_takes_what_the_module_takes_and_nothing_else(self):
        configure(lm=echo())
        module = Three()
        for made in (module, trace(module)):
            assert made("T", tone="wry").toDict() == module(text="T", tone="wry").toDict()
            with pytest.raises(
                TypeError, match=r"Three\.forward\(\) got an unexpected keyword argument 'zone'"
            ):
                made(text="T", zone="wry")
            with pytest.raises(
                TypeError, match=r"Three\.forward\(\) missing a? ?.*required.* argument: 'text'"
            ):
                made(tone="wry")
            with pytest.raises(TypeError, match="unexpected keyword"):
                asyncio.run(made.acall(text="T", zone="wry"))

    def test_independent_calls_are_made_at_the_same_time(self):
        class Fan(Module):
            def __init__(self):
                self.parts = [Predict(f"text -> o{number}") for number in range(3)]

            def forward(self, text):
                a, b, c = (part(text=text) for part in self.parts)
                return Prediction(a=a.o0, b=b.o1, c=c.o2)

        configure(lm=echo(together=3), journal=DictJournal())
        traced = trace(Fan())
        assert traced(text="T").b == "o1(T)"
        assert traced(text="T").b == "o1(T)"  # from the journal

    def test_a_call_waits_only_for_what_it_needs(self):
        order = []

        def step(name, after=()):
            async def work(text):
                async def met():
                    while not set(after) <= set(order):
                        await asyncio.sleep(0.001)

                await asyncio.wait_for(met(), 20.0)
                order.append(name)
                return {"out": name}

            return Apply(work)

        class Program(Module):
            def __init__(self):
                self.slow, self.fast, self.after = step("slow", {"after"}), step("fast"), step("after")

            def forward(self, text):
                slow, fast = self.slow(text=text), self.fast(text=text)
                return Prediction(a=slow.out, b=self.after(text=fast.out).out)

        assert trace(Program())(text="T").toDict() == {"a": "slow", "b": "after"}
        assert order == ["fast", "after", "slow"]

    def test_a_failure_is_the_first_in_the_order_of_the_program(self):
        def answer(request):
            if "[[ ## pro ## ]]" in request.tail[-1].content:
                raise AssertionError("the judge must not be asked")
            return {"argument": "fine"} if request.model == "scripted/good" else ValueError("no")

        module = Three()
        module.pro.lm = ScriptedLM(answer, model="scripted/good")
        module.con.lm = module.judge.lm = ScriptedLM(answer, model="scripted/bad")
        with pytest.raises(ValueError, match="no"):
            trace(module)(text="T")

    def test_calls_are_numbered_by_their_place(self):
        ticket = Ticket("run", "step", "row")
        token = TICKET.set(ticket)
        try:
            with context(lm=echo()):
                trace(Three())(text="T")
        finally:
            TICKET.reset(token)
        assert (ticket.calls, ticket.hits) == (3, 1)  # both sides ask the same


class TestParameters:
    def test_are_the_module_s_own(self, tmp_path):
        module = Three()
        traced = trace(module)
        assert [n for n, _ in traced.named_predictors()] == [n for n, _ in module.named_predictors()]
        traced.set_lm(lm := echo())
        assert module.get_lm() is lm
        module.pro.demos = [{"text": "t", "argument": "a"}]
        traced.save(tmp_path / "t.json")
        other = Three()
        other.load(tmp_path / "t.json")
        assert other.pro.demos == module.pro.demos

    def test_replacing_predictors_and_copying(self):
        traced = trace(Three())
        copied = traced.deepcopy()
        assert copied.module is not traced.module
        assert copied.calls[0].module is copied.module.pro
        traced.map_named_predictors(lambda old: Predict(old.signature.with_instructions("New.")))
        assert traced.calls[0].module is traced.module.pro
        assert traced.calls[0].module.signature.instructions == "New."


def program(**parts):
    """A module whose forward is given as a function of itself and its inputs."""

    def make(forward):
        def init(self):
            self.ask = Predict("text -> a, score: int")
            self.other = Predict("a -> b")
            self.find = Retrieve()
            self.__dict__.update(parts)

        return type("Program", (Module,), {"__init__": init, "forward": forward})()

    return make


def branches(self, text):
    if self.ask(text=text).score:
        return self.other(a="x")
    return self.ask(text=text)


def formats(self, text):
    return self.other(a=f"{text}!")


def concatenates(self, text):
    return self.other(a="hello " + text)


def computes(self, text):
    return {"x": self.ask(text=text).score + 1}


def compares(self, text):
    return {"x": self.ask(text=text).a == "yes"}


def indexes(self, text):
    return {"x": self.ask(text=text).a[0]}


def loops(self, text):
    return {"x": [self.other(a=word).b for word in self.ask(text=text).a]}


def strips(self, text):
    return self.other(a=text.strip())


def asks_what_it_is(self, text):
    return self.other(a="none" if text is None else text)


def catches(self, text):
    try:
        return self.other(a=text)
    except ValueError:
        return {"b": ""}


def under_a_setting(self, text):
    with context(lm=None):
        return self.other(a=text)


def keeps_count(self, text):
    self.seen = text
    return self.other(a=text)


def takes_notes(self, text):
    made = self.other(a=text)
    self.notes["seen"].append(text)
    return made


def overwrites_a_note(self, text):
    self.notes["last"] = self.ask(text=text).a
    return self.other(a=text)


def counts_in_a_list(self, text):
    self.notes["seen"].append(1)
    return self.other(a=text)


def takes_notes_and_fails(self, text):
    self.notes["seen"].append(text)
    return self.other(a=text + "!")


def adds_a_demo(self, text):
    self.other.demos.append({"a": text})
    return self.other(a=text)


def types(self, text):
    return self.other(a="s" if type(text) is str else "o")


def passes_a_whole_prediction(self, text):
    return self.other(a=self.ask(text=text))


def overrides(self, text):
    return self.ask(text=text, config={"temperature": 1.0})


def by_position(self, text):
    return self.other(text)


def by_too_many_positions(self, text):
    return {"x": self.find(text, 3, text).passages}


def unknown_field(self, text):
    return {"x": self.ask(text=text).answer}


def method_of_a_prediction(self, text):
    return {"x": self.ask(text=text).toDict()}


def returns_a_value(self, text):
    return self.ask(text=text).a


def returns_predictions(self, text):
    made = self.ask(text=text)
    return {"all": [made]}


def returns_nothing(self, text):
    self.ask(text=text)


def takes_any_field(self, **fields):
    return self.ask(**fields)


def matches(self, text):
    return {"x": re.match("a", text)}


def makes_a_set(self, text):
    return {"x": {text}}


LOOSE = Predict("text -> a")


def asks_a_loose_predictor(self, text):
    return LOOSE(text="constant")


def asks_a_model(self, text):
    return {"x": ScriptedLM(["never"])("constant")}


def helper(text):
    return "x" if isinstance(text, str) else "y"


def asks_a_helper(self, text):
    return self.other(a=helper(text))


def changes_a_part(self, text):
    self.ask.demos = []
    return self.ask(text=text)


class TestWhatStopsIt:
    @pytest.mark.parametrize(
        ("forward", "words", "line"),
        [
            (branches, "decides by the output 'score'", 1),
            (formats, "makes text of the input 'text'", 1),
            (concatenates, "computes with the input 'text'", 1),
            (computes, "computes with the output 'score'", 1),
            (compares, "compares the output 'a'", 1),
            (indexes, "takes an item of the output 'a'", 1),
            (loops, "goes through the output 'a'", 1),
            (strips, "reads the attribute 'strip' of the input 'text'", 1),
            (asks_what_it_is, "asks what a value `is`", 1),
            (catches, "a `try` or a `with`", None),
            (under_a_setting, "a `try` or a `with`", None),
            (keeps_count, "changes self.seen", 1),
            (types, r"uses type\(\)", 1),
            (passes_a_whole_prediction, "passes on the whole", 1),
            (overrides, "gives ask config=, which is no input", 1),
            (by_position, "by position", 1),
            (by_too_many_positions, "too many positional arguments", 1),
            (unknown_field, "reads the field 'answer', which is not among a, score", 1),
            (method_of_a_prediction, "uses 'toDict'", 1),
            (returns_a_value, "returns a value", 1),
            (returns_predictions, "passes on the whole", 2),
            (returns_nothing, "returns NoneType", 1),
            (takes_any_field, r"takes \*\*fields", 0),
            (matches, "raises TypeError", 1),
            (makes_a_set, "uses as a key the input 'text'", 1),
            (asks_a_loose_predictor, "not a part of the module", 1),
            (asks_a_model, "asks a model", 1),
            (changes_a_part, "changes ask.demos", 1),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_data_dependent_python_is_named_with_its_line(self, forward, words, line):
        with context(lm=ScriptedLM([])), pytest.raises(Untraceable, match=words) as raised:
            trace(program()(forward))
        if line is not None:
            first = inspect.getsourcelines(forward)[1]
            assert f"test_trace.py:{first + line}: " in str(raised.value)

    @pytest.mark.parametrize(
        ("forward", "words", "line"),
        [
            (takes_notes, r"changes self\.notes\['seen'\]", 2),
            (overwrites_a_note, r"changes self\.notes$", 1),
            (counts_in_a_list, r"changes self\.notes\['seen'\]", 1),
            (takes_notes_and_fails, "computes with the input 'text'", 2),
            (adds_a_demo, r"changes self\.other\.demos", 1),
        ],
    )
    def test_what_the_module_holds_is_given_back(self, forward, words, line):
        notes = {"last": "b", "seen": ["a"], "more": (1, {2})}
        module = program(notes=notes)(forward)
        with pytest.raises(Untraceable, match=words) as raised:
            trace(module)
        first = inspect.getsourcelines(forward)[1]
        assert f"test_trace.py:{first + line}: " in str(raised.value)
        assert module.notes is notes
        assert notes == {"last": "b", "seen": ["a"], "more": (1, {2})}
        assert list(notes) == ["last", "seen", "more"]
        assert module.other.demos == []

    def test_notes_of_a_part_are_given_back_too(self):
        class Notes(Inner):
            def __init__(self):
                super().__init__()
                self._seen = []

            def forward(self, text):
                self._seen.append(text)
                return super().forward(text)

        module = Outer()
        module.hops[1] = Notes()
        with pytest.raises(Untraceable, match=r"changes self\.hops\[1\]\._seen"):
            trace(module)
        assert module.hops[1]._seen == []

    def test_a_helper_is_looked_at_too(self):
        with pytest.raises(Untraceable, match="'__class__'"):
            trace(program()(asks_a_helper))

    def test_a_coroutine_is_not_traced(self):
        class Later(Module):
            async def aforward(self, text):
                return {}

        with pytest.raises(Untraceable):
            trace(Later())

    def test_inputs_without_names_are_not_traced(self):
        with pytest.raises(Untraceable, match=r"takes \*\*fields"):
            trace(program()(lambda self, **fields: {}))

    def test_a_predictor_is_one_part_already(self):
        with pytest.raises(Untraceable, match="one part already"):
            trace(Predict("a -> b"))

    def test_it_is_a_configuration_error(self):
        assert issubclass(Untraceable, ds.ConfigurationError)
