"""Programs of parts as ordinary modules: calls, names, states, options, and what runs at the same time."""

import asyncio
import re
from functools import partial

import pytest

from dspy_stream.configuration import configure, context
from dspy_stream.engine import Ticket
from dspy_stream.errors import (
    ConfigurationError,
    LMAuthError,
    LMNotConfiguredError,
    LMServerError,
    RecordError,
    RowError,
    RowTimeout,
)
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.modules.compose import Pipeline, Program
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.part import Apply, Part, as_part
from dspy_stream.modules.route import Loop, Route
from dspy_stream.modules.scope import TICKET
from dspy_stream.program import Prediction
from dspy_stream.types import Usage


def inputs_of(request):
    return dict(re.findall(r"\[\[ ## (\w+) ## \]\]\n(.*)", request.tail[-1].content))


def echo(together=1):
    """A model that answers every output with its name and the inputs, once so many questions have come."""
    asked = []

    async def met():
        while len(asked) < together:
            await asyncio.sleep(0.001)

    async def answer(request):
        asked.append(request)
        await asyncio.wait_for(met(), 20.0)
        wanted = [
            name
            for name in ("a", "b", "c", "d", "reasoning")
            if f"`[[ ## {name} ## ]]`" in request.tail[-1].content
        ]
        told = "+".join(inputs_of(request).values())
        return {name: f"{name}({told})" for name in wanted}

    return ScriptedLM(answer, cache=True)


async def decides(record):
    return record.a


class Spell(Module):
    """A module of a user's own, with a predictor inside."""

    def __init__(self):
        self.inner = Predict("a -> b")

    def forward(self, a):
        return Prediction(b=self.inner(a=a).b, extra="!")


class Plain(Module):
    """A plain forward that waits in the middle."""

    def __init__(self):
        self.ask = Predict("c -> d")

    def forward(self, c):
        self.ask(c=c, config={"cache": False})
        return Prediction(e=c)


class Later(Module):
    async def aforward(self, a):
        await asyncio.sleep(0)
        return Prediction(c=f"later({a})")


def boom(text):
    raise ZeroDivisionError("no")


class TestPipeline:
    def test_a_part_reads_what_an_earlier_one_made(self):
        configure(lm=echo())
        program = Predict("text -> a") | Predict("a -> b") | Predict("text, b -> c")
        made = program(text="T", unused=1)
        assert made.toDict() == {"a": "a(T)", "b": "b(a(T))", "c": "c(T+b(a(T)))"}

    def test_it_can_be_awaited(self):
        configure(lm=echo())
        program = Predict("text -> a") | Spell() | Later()
        assert asyncio.run(program.acall(text="T")).toDict() == program(text="T").toDict()
        assert program(text="T").c == "later(a(T))"

    def test_it_is_flat_however_it_is_written(self):
        one, two, three = (Predict("a -> b") for _ in range(3))
        left, right = (one | two) | three, one | (two | three)
        assert left.stages == right.stages == [one, two, three]
        assert [name for name, _ in left.named_predictors()] == ["stages[0]", "stages[1]", "stages[2]"]

    def test_functions_are_parts_on_both_sides(self):
        program = (
            (lambda text: {"a": text * 2}) | Apply(lambda a: {"b": a + "!"}) | (lambda b: {"c": b[::-1]})
        )
        assert program(text="xy").toDict() == {"a": "xyxy", "b": "xyxy!", "c": "!yxyx"}

    def test_a_coroutine_function_is_a_part(self):
        async def fetch(text):
            await asyncio.sleep(0)
            return {"a": text}

        assert (Apply(fetch) | (lambda a: {"b": a}))(text="t").b == "t"
        assert asyncio.run((Apply(fetch) | (lambda a: {"b": a})).acall(text="t")).b == "t"

    def test_options_leave_the_names_alone(self):
        plain = Predict("a -> b") | Predict("b -> c")
        governed = Predict("a -> b").using(retries=1, timeout=3) | Predict("b -> c").using(capacity=4)
        assert [n for n, _ in plain.named_predictors()] == [n for n, _ in governed.named_predictors()]

    def test_a_missing_field_is_named_with_the_part(self):
        program = Predict("text -> a") | Predict("nothing -> b")
        with (
            context(lm=echo()),
            pytest.raises(RecordError, match=r"part 1 \(Predict\) needs .*'nothing'.*text, a"),
        ):
            program(text="T")

    def test_it_takes_no_positions(self):
        with pytest.raises(ValueError, match="by name"):
            (Predict("a -> b") | Predict("b -> c"))("x")

    def test_what_it_needs_and_makes(self):
        program = Predict("text -> a") | ChainOfThought("a, k -> b")
        assert program.required_names() == ("text", "k")
        assert program.output_names() == ("a", "reasoning", "b")
        assert (Spell() | Predict("z -> b")).required_names() == ("a",)
        assert (Spell() | Predict("z -> b")).output_names() is None

    @pytest.mark.parametrize("part", [5, "text -> a", Predict, None])
    def test_what_is_no_part_is_refused(self, part):
        with pytest.raises(ConfigurationError, match="a part of a program is a module"):
            Predict("a -> b") | part

    def test_a_module_that_returns_something_else_is_named(self):
        class Odd(Module):
            def forward(self, a):
                return 5

        with pytest.raises(TypeError, match=r"part 0 \(Odd\) returned int"):
            Pipeline(Odd())(a=1)


class TestAsAModule:
    def test_set_lm_reaches_every_part_and_fallback(self):
        program = Program(
            one=Predict("text -> a").using(fallback=Predict("text -> a")),
            two=Fork(x=Predict("a -> b"), y=Route("a", {"1": Predict("a -> c")}, default=Predict("a -> c"))),
            three=Loop(Predict("c -> d"), "d"),
        )
        names = [name for name, _ in program.named_predictors()]
        assert names == [
            *("fallbacks['one']", "one", "two.x", "two.y.routes['1']", "two.y.default", "three.body"),
        ]
        lm = echo()
        program.set_lm(lm)
        assert program.get_lm() is lm

    def test_state_round_trips_through_a_file(self, tmp_path):
        def build():
            return Program(
                ask=Predict("text -> a"), check=Fork(x=Predict("a -> b"), y=ChainOfThought("a -> c"))
            )

        program = build()
        program.ask.demos = [{"text": "t", "a": "A"}]
        program.check.y.predict.signature = program.check.y.predict.signature.with_instructions("Sing.")
        program.save(tmp_path / "p.json")
        other = build()
        other.load(tmp_path / "p.json")
        assert other.ask.demos == [{"text": "t", "a": "A"}]
        assert other.check.y.predict.signature.instructions == "Sing."
        assert other.dump_state() == program.dump_state()

    def test_a_copy_has_parts_and_fallbacks_of_its_own(self):
        program = Program(a=Predict("text -> a").using(fallback=Predict("text -> a"), retries=2))
        copy = program.deepcopy()
        assert copy.a is not program.a
        ((_, module, options),) = copy.parts()
        assert module is copy.a
        assert options.fallback is copy.fallbacks["a"] is not program.fallbacks["a"]
        assert options.retries == 2
        copy.a.demos.append({"text": "x", "a": "y"})
        assert program.a.demos == []

    def test_predictors_can_be_replaced(self):
        program = Pipeline(Predict("text -> a"), Fork(x=Predict("a -> b"), y=Predict("a -> c")))
        program.map_named_predictors(lambda old: Predict(old.signature.with_instructions("New.")))
        assert {p.signature.instructions for p in program.predictors()} == {"New."}
        with context(lm=echo()):
            assert program(text="T").c == "c(a(T))"


class TestProgram:
    def test_parts_are_attributes_in_order(self):
        configure(lm=echo())
        program = Program(retriever=lambda text: {"a": f"found {text}"}, answer=Predict("text, a -> b"))
        assert program(text="T").toDict() == {"a": "found T", "b": "b(T+found T)"}
        assert program.strategy == "one_for_one"
        assert isinstance(program.retriever, Apply)

    def test_options_may_be_given_apart(self):
        program = Program(a=Predict("text -> a"), options={"a": {"retries": 3, "capacity": 8}})
        assert (program.parts()[0].options.retries, program.parts()[0].options.capacity) == (3, 8)

    @pytest.mark.parametrize(
        ("build", "words"),
        [
            (lambda: Program(), "at least one part"),
            (lambda: Program(forward=Predict("a -> b")), "cannot be named 'forward'"),
            (lambda: Program(strategy="all", a=Predict("a -> b")), "one_for_one, rest_for_one"),
            (lambda: Program(a=Predict("a -> b"), options={"b": {}}), "options for 'b'"),
            (lambda: Program(a=Predict("a -> b"), options={"a": {"retrys": 1}}), "did you mean 'retries'"),
            (lambda: Predict("a -> b").using(capacity=0), "capacity=0"),
            (lambda: Predict("a -> b").using(timeout=0), "timeout=0"),
            (lambda: Predict("a -> b").using(timeout=float("nan")), "timeout=nan: must be more than 0"),
            (lambda: Predict("a -> b").using(timeout="5"), "timeout='5': must be more than 0 seconds, as a"),
            (lambda: Predict("a -> b").using(retries=1.5), r"retries=1\.5: must be a whole number"),
            (lambda: Predict("a -> b").using(capacity="3"), "capacity='3': must be a whole number"),
            (lambda: Predict("a -> b").using(workers=True), "workers=True: must be a whole number"),
            (lambda: Predict("a -> b").using(on_error="ignore"), "on_error='ignore'"),
            (lambda: Predict("a -> b").using(fallback=5), "a fallback is a module"),
            (lambda: Predict("a -> b").using(outputs={"b": "x", "c": "x"}), "two outputs get one name"),
            (lambda: Pipeline(), "at least one part"),
            (lambda: Fork(x=Predict("a -> b")), "at least two parts"),
            (lambda: Fork(x=Predict("a -> b"), y=Predict("a -> b")), "x and y both have the output 'b'"),
            (lambda: Route("a", {}), "a mapping from values"),
            (lambda: Route(Predict("a -> b"), {1: Predict("a -> b")}), "not Predict"),
            (lambda: Loop(Predict("a -> b"), "b", 0), "at least once"),
            (lambda: Loop(Predict("a -> b"), "b", "3"), "max_iterations='3'"),
            (lambda: Loop(Predict("a -> b"), 5), "not int"),
            (lambda: Route(decides, {1: Predict("a -> b")}), r"on= is .* decides\(record\) is a coroutine"),
            (lambda: Loop(Predict("a -> b"), decides), r"until= is .* decides\(record\) is a coroutine"),
            (lambda: Loop(Predict("a -> b"), partial(decides)), "until= is .* is a coroutine"),
        ],
    )
    def test_mistakes_are_found_at_construction(self, build, words):
        with pytest.raises(ConfigurationError, match=words):
            build()


class TestRoute:
    route = Route(
        "text",
        {"a": Predict("text -> a"), 2: lambda text: {"two": text}},
        default=lambda text: {"other": text},
    )

    @pytest.mark.parametrize(
        ("value", "made"),
        [("a", {"a": "a(a)"}), (2, {"two": 2}), ("z", {"other": "z"}), ([1], {"other": [1]})],
    )
    def test_the_value_decides(self, value, made):
        with context(lm=echo()):
            assert self.route(text=value).toDict() == made

    def test_a_function_reads_the_record(self):
        route = Route(lambda record: len(record.text) > 3, {True: lambda: {"a": 1}, False: lambda: {"a": 0}})
        assert (route(text="long").a, route(text="x").a) == (1, 0)

    def test_a_value_without_a_route_is_told(self):
        route = Route("text", {"a": Predict("text -> a")})
        with pytest.raises(RowError, match=r"no route for text='b'; routes: 'a'; give default="):
            route(text="b")
        with pytest.raises(RecordError, match="no field 'text'"):
            route(other="b")


class TestLoop:
    def test_ends_when_it_is_enough(self):
        seen = []

        def grow(n):
            seen.append(n)
            return {"n": n + 1, "good": n >= 2}

        assert Loop(grow, "good", 10)(n=0).toDict() == {"n": 3, "good": True}
        assert seen == [0, 1, 2]

    def test_ends_at_the_bound(self):
        assert Loop(lambda n: {"n": n + 1}, lambda record: False, max_iterations=4)(n=0).n == 4


class TestFork:
    def fork(self):
        return Fork(
            x=Predict("text -> a"), y=Predict("text -> b"), z=Spell() | (lambda b, extra: {"c": b + extra})
        )

    def test_joins_what_all_parts_make(self):
        configure(lm=echo())
        fork = Fork(x=Predict("text -> a"), y=Predict("text -> b"), z=lambda text: {"c": text})
        assert fork(text="T", other=1).toDict() == {"a": "a(T)", "b": "b(T)", "c": "T"}
        assert asyncio.run(fork.acall(text="T")).toDict() == fork(text="T").toDict()

    @pytest.mark.parametrize("how", ["sync", "async", "inside a forward", "inside a coroutine"])
    def test_asks_for_all_parts_at_the_same_time(self, how):
        class Program_(Module):
            def __init__(self, fork):
                self.fork = fork

            def forward(self, text):
                return self.fork(text=text)

        configure(lm=echo(together=3), journal=DictJournal())
        fork = Fork(x=Predict("text -> a"), y=Predict("text -> b"), z=ChainOfThought("text -> c") | Plain())
        if how == "async":
            made = asyncio.run(fork.acall(text="T"))
        elif how == "inside a coroutine":  # as in a notebook

            async def cell():
                return fork(text="T")

            made = asyncio.run(cell())
        else:
            made = (fork if how == "sync" else Program_(fork))(text="T")
        assert (made.c, made.e) == ("c(T)", "c(T)")

    def test_a_clash_that_no_signature_tells_is_found_at_run_time(self):
        fork = Fork(x=lambda text: {"a": 1}, y=lambda text: {"a": 2})
        with pytest.raises(RowError, match="x and y both have the output 'a'"):
            fork(text="T")

    def test_another_name_mends_a_clash(self):
        with pytest.raises(ConfigurationError, match="'reasoning'"):
            Fork(x=ChainOfThought("text -> a"), y=ChainOfThought("text -> b"))
        configure(lm=echo())
        fork = Fork(
            x=ChainOfThought("text -> a"),
            y=ChainOfThought("text -> b").using(outputs={"b": "b", "reasoning": "why_b"}),
        )
        assert fork(text="T").toDict() == {
            "reasoning": "reasoning(T)",
            "a": "a(T)",
            "b": "b(T)",
            "why_b": "reasoning(T)",
        }
        assert fork.output_names() == ("reasoning", "a", "b", "why_b")

    def test_the_first_failure_is_raised_when_all_have_ended(self):
        ended = []

        async def slow(text):
            await asyncio.sleep(0.02)
            ended.append(text)
            return {"a": 1}

        async def fails(text):
            await asyncio.sleep(0)
            raise KeyError("y")

        async def fails_too(text):
            raise ValueError("z")

        with pytest.raises(KeyError, match="y"):
            Fork(x=slow, y=fails, z=fails_too)(text="T")
        assert ended == ["T"]

    def test_cancelling_the_call_cancels_all_parts(self):
        state = []

        async def forever(text):
            state.append("in")
            try:
                await asyncio.sleep(60)
            finally:
                state.append("out")
            return {}

        async def main():
            task = asyncio.create_task(Fork(x=forever, y=forever).acall(text="T"))
            while len(state) < 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert state == ["in", "in", "out", "out"]

    def test_calls_of_parts_are_numbered_apart(self):
        """A private answer is found again whichever part asked first."""
        keys = []

        class Asks(Module):
            def __init__(self, name, out):
                self.name, self.out = name, out

            async def aforward(self, text):
                ticket = TICKET.get()
                await asyncio.sleep(0)
                keys.append((self.name, ticket.path))
                ticket.calls += 1
                ticket.usage = {"m": Usage(1, 1)}
                ticket.paid = {"m": 1}
                return {self.out: text}

        ticket = Ticket("run", "step", "row")
        token = TICKET.set(ticket)
        try:
            Fork(x=Asks("x", "a"), y=Asks("y", "b") | Fork(u=Asks("u", "c"), v=Asks("v", "d")))(text="T")
        finally:
            TICKET.reset(token)
        assert sorted(keys) == [("u", "/y/u"), ("v", "/y/v"), ("x", "/x"), ("y", "/y")]
        assert (ticket.calls, ticket.usage["m"].prompt_tokens, ticket.paid) == (4, 4, {"m": 4})


class TestOptions:
    """What holds wherever the part runs."""

    def test_a_fallback_answers_for_a_part_that_failed(self):
        program = Program(a=Apply(boom).using(fallback=lambda text: {"a": f"instead of {text}"}))
        assert program(text="T").a == "instead of T"

    def test_retries_come_first(self):
        tries = []

        def flaky(text):
            tries.append(text)
            if len(tries) < 3:
                raise ZeroDivisionError
            return {"a": text}

        assert Program(a=Apply(flaky).using(retries=2, fallback=boom))(text="T").a == "T"
        assert len(tries) == 3
        tries.clear()
        with pytest.raises(ZeroDivisionError):
            Program(a=Apply(flaky).using(retries=1))(text="T")

    def test_an_unreadable_answer_is_asked_for_anew(self):
        lm = ScriptedLM(["rubbish", "rubbish", "[[ ## a ## ]]\ngood\n\n[[ ## completed ## ]]"], cache=True)
        ticket = Ticket("run", "step", "row")
        token = TICKET.set(ticket)
        try:
            with context(lm=lm):
                made = Program(a=Predict("text -> a").using(retries=1))(text="T")
        finally:
            TICKET.reset(token)
        assert made.a == "good"
        assert (lm.call_count, ticket.calls) == (3, 3)

    def test_a_model_that_does_not_answer_goes_to_the_fallback_at_once(self):
        lm = ScriptedLM([LMServerError("down")])
        with context(lm=lm):
            program = Program(a=Predict("text -> a").using(retries=5, fallback=lambda text: {"a": "-"}))
            assert program(text="T").a == "-"

    def test_an_error_of_the_whole_program_is_nobody_s_to_mend(self):
        with context(lm=ScriptedLM([LMAuthError("no key")])), pytest.raises(LMAuthError):
            Program(a=Predict("text -> a").using(retries=5, fallback=lambda text: {"a": "-"}))(text="T")

    def test_a_time_limit(self):
        async def slow(text):
            await asyncio.sleep(60)
            return {}

        with pytest.raises(RowTimeout, match=r"limit of 0\.05 s"):
            Program(a=Apply(slow).using(timeout=0.05))(text="T")
        assert Program(a=Apply(slow).using(timeout=0.05, fallback=lambda text: {"a": 1}))(text="T").a == 1

    def test_outputs_may_be_chosen_and_renamed(self):
        part = Apply(lambda text: {"a": 1, "b": 2})
        assert Program(p=part.using(outputs=["b"]))(text="T").toDict() == {"b": 2}
        assert Program(p=part.using(outputs={"a": "z"}))(text="T").toDict() == {"z": 1}
        with pytest.raises(TypeError, match="p made no output 'q', but: a, b"):
            Program(p=part.using(outputs=["q"]))(text="T")

    def test_options_add_up(self):
        part = Predict("a -> b").using(retries=2).using(timeout=3)
        assert isinstance(part, Part)
        assert (part.options.retries, part.options.timeout) == (2, 3)
        assert as_part(part) is part


@pytest.mark.parametrize(
    "program",
    [
        Predict("a -> b") | Predict("c -> d"),
        Program(first=Predict("a -> b"), second=Predict("c -> d")),
    ],
)
def test_what_a_later_part_lacks_is_found_before_the_first_call(program):
    lm = echo()
    with context(lm=lm), pytest.raises(RecordError, match="needs the field 'c'; the record has: a, b"):
        program(a="x")
    assert lm.call_count == 0


def test_a_program_s_model_is_named_by_its_context_as_the_error_says():
    pipe = Predict("question -> answer") | Predict("answer -> summary")
    lm = ScriptedLM([{"answer": "a"}, {"summary": "s"}])
    with pytest.raises(LMNotConfiguredError, match=r"context\(lm=\.\.\.\).*to the predictor"):
        pipe(question="x", lm=lm)  # a field of that name
    with context(lm=lm):
        assert pipe(question="x").summary == "s"
