"""The keys of a route: how members of enumerations are found, and which keys are refused."""

from enum import Enum
from typing import Annotated, Literal

import pytest

from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import ChainOfThought, Module, Predict
from dspy_stream.modules.compose import Pipeline, Program
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.possible import values_of
from dspy_stream.modules.route import Loop, Route
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.stream import Stream
from dspy_stream.stream.sinks import MemorySink


class Kind(Enum):
    BILLING = "billing"
    SHIPPING = "shipping"
    OTHER = 3


class Read(Signature):
    """Sort a text."""

    text: str = InputField()
    kind: Kind = OutputField()


READ = Predict(Read)
ANSWER = Predict("text -> answer")


def mark(text):
    return {"answer": "mine"}


def other(text):
    return {"answer": "other"}


class TestMembers:
    @pytest.mark.parametrize("key", [Kind.SHIPPING, "shipping", "SHIPPING"])
    @pytest.mark.parametrize("value", [Kind.SHIPPING, "shipping", "SHIPPING"])
    def test_are_found_by_member_by_value_and_by_name(self, key, value):
        route = Route("kind", {key: mark}, default=other)
        two_texts = isinstance(key, str) and isinstance(value, str) and key != value
        assert route(kind=value, text="a").answer == ("other" if two_texts else "mine")

    def test_what_is_said_exactly_goes_before_a_value_and_a_value_before_a_name(self):
        class Odd(Enum):
            A = "B"
            B = "C"

        assert Route("k", {"A": mark, Odd.A: other})(k=Odd.A, text="").answer == "other"
        assert Route("k", {"A": mark, "B": other})(k=Odd.A, text="").answer == "other"
        assert Route("k", {Odd.B: mark, Odd.A: other})(k="B", text="").answer == "other"

    def test_a_value_that_cannot_be_looked_up_is_nobodys(self):
        assert Route("kind", {Kind.OTHER: mark}, default=other)(kind=[3], text="").answer == "other"

    @pytest.mark.parametrize("key", [Kind.SHIPPING, "shipping", "SHIPPING"])
    @pytest.mark.parametrize("split", [True, False])
    @pytest.mark.parametrize("order", ["ordered", "unordered"])
    def test_are_found_in_a_flow_as_in_a_script(self, key, split, order):
        lm = ScriptedLM("[[ ## kind ## ]]\nshipping")
        program = Program(read=READ, way=Route("kind", {key: mark}, default=other))
        rows = MemorySink()
        stream = Stream.from_iterable([{"text": "a"}]).through(program, split=split, order=order)
        stream.write(rows).run(state=None, quiet=True, lm=lm)
        assert [row.answer for row in rows.rows] == ["mine"]
        program.set_lm(lm)
        assert program(text="a").answer == "mine"


def programs(route, read=READ):
    yield lambda: Program(read=read, way=route)
    yield lambda: read | route
    yield lambda: Pipeline(read, Predict("text -> note"), Fork(x=route, y=Predict("text -> said")))
    yield lambda: Program(read=read, more=Loop(route, "answer", 2))
    yield lambda: Stream.from_iterable([{"text": "a"}]).through(read).through(route)
    yield lambda: Stream.from_iterable([{"text": "a"}]).through(read).through(Program(way=route), split=False)


class TestKeysThatCannotBe:
    @pytest.mark.parametrize("number", range(6))
    def test_are_refused_with_the_possible_ones(self, number):
        route = Route("kind", {Kind.BILLING: ANSWER, "shiping": ANSWER}, default=ANSWER)
        made = list(programs(route))[number]
        with pytest.raises(ConfigurationError, match="no row is ever for the key 'shiping'") as caught:
            made()
        assert "kind is one of: Kind.BILLING, Kind.SHIPPING, Kind.OTHER" in str(caught.value)

    @pytest.mark.parametrize("number", range(6))
    @pytest.mark.parametrize("key", [Kind.BILLING, "billing", "BILLING", None])
    def test_and_all_others_are_not(self, number, key):
        list(programs(Route("kind", {key: ANSWER}, default=ANSWER)))[number]()

    @pytest.mark.parametrize(
        ("signature", "keys", "bad"),
        [
            ("text -> kind: Literal['a', 'b']", ["a", "c"], "'c'"),
            ("text -> kind: bool", [True, "True"], "'True'"),
            ("text -> kind: Optional[Literal['a']]", ["a", None, "b"], "'b'"),
        ],
    )
    def test_of_other_types(self, signature, keys, bad):
        for read in (Predict(signature), ChainOfThought(signature)):
            with pytest.raises(ConfigurationError, match=f"for the key {bad};"):
                read | Route("kind", dict.fromkeys(keys, ANSWER), default=ANSWER)

    def test_nobody_knows_them_where_anything_may_have_been_put_there(self):
        class Other(Module):
            def forward(self, text):
                return {"kind": "new"}

        class Mine(Predict):
            def steps(self, inputs):
                yield from super().steps(inputs)
                return {"kind": "new"}

        route = Route("kind", {"new": ANSWER}, default=ANSWER)
        Program(read=READ, again=Other(), way=route)
        Program(read=Mine(Read), way=route)
        Program(read=READ.using(outputs={"kind": "sort"}), way=route)
        Program(read=READ.using(fallback=Other()), way=route)
        Program(read=Route("text", {"a": READ}, default=lambda text: {"kind": "new"}), way=route)
        Program(read=READ | Predict("text -> kind"), way=route)
        Loop(Program(way=route, read=READ), "answer", 2)
        stream = Stream.from_iterable([{"text": "a"}]).through(READ)
        stream.map(lambda row: {**row, "kind": "new"}).through(route)
        stream.rename(kind="sort", text="kind").through(route)
        for order in ("ordered", "unordered"):
            parted = stream.through(Route("text", {"a": Predict("text -> kind")}, default=READ), order=order)
            parted.through(route)

    def test_a_renamed_output_keeps_its_values(self):
        with pytest.raises(ConfigurationError, match="'new'"):
            READ.using(outputs={"kind": "sort"}) | Route("sort", {"new": ANSWER}, default=ANSWER)

    def test_values_are_counted_where_they_can_be(self):
        assert values_of(Annotated[Literal["a"], "x"]) == ("a",)
        assert values_of(Literal["a"] | str) is None


def test_parts_are_named_readably():
    route = Route("kind", {Kind.SHIPPING: mark, "a": mark}, default=other)
    assert [part.name for part in route.parts()] == ["Kind.SHIPPING", "'a'", "default"]
