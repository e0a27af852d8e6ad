"""A row has the same values wherever a part runs, and after a crash."""

import math
from datetime import date, datetime, timezone
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dspy_stream as ds
from dspy_stream.modules import hosts
from dspy_stream.program.types import Code, Image
from dspy_stream.rows import Origin, Row
from dspy_stream.runtime import run as on_loop
from dspy_stream.stream.codec import freeze, thaw
from dspy_stream.stream.typed import types_before
from tests.modules.process.programs import Colour, Gives, Item, Pair, Spot

ATOMS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(st.characters())),
    *(st.binary(), st.sampled_from(Colour), st.decimals(allow_nan=False), st.datetimes(), st.uuids()),
    st.sampled_from([2**80, date(2024, 1, 2), datetime(2024, 1, 2, tzinfo=timezone.utc)]),
    st.sampled_from([Code("x = 1"), Code["sql"]("SELECT 1"), Image("data:image/png;base64,AAAA")]),
)
HASHABLE = st.integers() | st.text() | st.tuples(st.integers(), st.text()) | st.sampled_from(Colour)


def containers(inner):
    return st.one_of(
        *(st.lists(inner, max_size=3), st.tuples(inner, inner), st.sets(HASHABLE, max_size=3)),
        *(st.frozensets(HASHABLE, max_size=3), st.dictionaries(HASHABLE, inner, max_size=3)),
        *(st.builds(Spot, inner, inner), st.builds(Pair, inner, inner)),
        st.builds(Item, name=st.text(), spots=st.lists(st.builds(Spot, st.integers())), more=inner),
        st.builds(lambda name, more: Item.model_construct(name=name, more=more), inner, inner),
    )


VALUES = st.recursive(ATOMS, containers, max_leaves=6)


@pytest.fixture(scope="module")
def everywhere():
    where = ({}, {"isolation": "thread"}, {"isolation": "process", "workers": 1})
    yield [ds.Program(part=Gives().using(**options)) for options in where]
    for found in hosts._process:
        on_loop(found.aclose())
    hosts._process.clear()


def shown(value):
    """The value with the classes of all that is in it: 1 and True and 1.0 are equal, and not the same."""
    if isinstance(value, dict):
        return [(shown(name), shown(item)) for name, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value), {shown(item) for item in value}
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(shown, value))
    return type(value), value


def resumed(prediction):
    """After a crash, when the next step holds the row."""
    stream = ds.Stream.from_iterable([]).through(Gives()).through(Gives())
    row = Row("a", dict(prediction.items()), Origin("it", "", 0, None))
    return thaw(freeze(row), types_before(stream.node)).fields


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(VALUES)
def test_values_are_the_same_inline_in_threads_in_processes_and_after_a_crash(everywhere, value):
    inline, thread, process = (program(value=value) for program in everywhere)
    for name in ("item", "colour", "spots", "n"):
        assert inline[name] == process[name] == thread[name]
        assert shown(inline[name]) == shown(process[name])
    assert dict(inline.items()) == resumed(inline)


def test_what_is_no_number_is_none_anywhere(everywhere):
    for program in everywhere:
        made = program(value=(math.nan, Decimal("NaN"), -math.inf))
        assert math.isnan(made.item[0])
        assert made.item[1].is_nan()
        assert made.item[2] == -math.inf
