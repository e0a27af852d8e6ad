"""Rows as builtins: what goes into a snapshot comes back, and is only builtins."""

import dataclasses
import enum
import re
from datetime import date, datetime, timezone
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.rows import DeadLetter, Origin, Row
from dspy_stream.stream.codec import dump_fields, freeze, thaw
from dspy_stream.stream.compile import freeze_item, thaw_item
from dspy_stream.stream.work import Dropped

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ORIGINS = st.builds(Origin, TEXT, TEXT, st.integers(0, 2**40), st.none() | st.integers(1, 2**40))
ORIGIN = Origin("s", "p", 1)


def builtin(value):
    if type(value) is tuple:
        return all(map(builtin, value))
    return type(value) in (str, bytes, int, type(None))


@given(TEXT, st.dictionaries(TEXT, JSON, max_size=4), ORIGINS, st.none() | st.binary(max_size=20))
def test_a_row_of_json_comes_back_the_same(row_id, fields, origin, raw):
    row = Row(row_id, fields, origin, raw)
    frozen = freeze(row)
    assert builtin(frozen)
    assert thaw(frozen, {}) == row


def test_what_the_parts_of_a_row_have_written_comes_back():
    row = Row("r", {"n": 1}, ORIGIN).adding({"n": 1, "m": 2})
    frozen = freeze(row)
    assert builtin(frozen)
    assert thaw(frozen, {}).written == ("n", "m")


class Color(enum.Enum):
    RED = "red"


class Point(BaseModel):
    x: int
    when: date


@dataclasses.dataclass
class Pair:
    a: int


@pytest.mark.parametrize(
    "value",
    [{3, 1, 2}, (1, 2), datetime(2026, 1, 2, tzinfo=timezone.utc), {1: "a"}, complex(1, 2), np.int64(3)],
)
def test_values_that_json_does_not_know_come_back(value):
    assert thaw(freeze(Row("r", {"v": value}, ORIGIN)), {}).v == value


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Color.RED, "red"),
        (Point(x=1, when=date(2026, 1, 2)), {"x": 1, "when": date(2026, 1, 2)}),
        (Pair(1), {"a": 1}),
        (np.array([1.5, 2.5]), [1.5, 2.5]),
    ],
)
def test_values_of_classes_that_the_program_does_not_name_have_their_json_form(value, plain):
    assert thaw(freeze(Row("r", {"v": value}, ORIGIN)), {}).v == plain


def test_typed_outputs_of_earlier_steps_are_validated_back():
    class Typed(Signature):
        """Sort."""

        text: str = InputField()
        point: Point = OutputField()
        kinds: set[Literal["a", "b"]] = OutputField()

    types = {name: Typed.validator(name) for name in ("point", "kinds")}
    row = Row("r", {"text": "t", "point": Point(x=1, when=date(2026, 1, 2)), "kinds": {"a", "b"}}, ORIGIN)
    assert thaw(freeze(row), types) == row


def test_a_value_without_a_json_form_is_written_as_text():
    made = thaw(freeze(Row("r", {"v": re.compile("x")}, ORIGIN)), {})
    assert made.v == "re.compile('x')"


def test_a_value_that_does_not_fit_its_type_stays_what_it_is():
    types = {"n": TypeAdapter(int), "point": TypeAdapter(Point)}
    row = Row("r", {"n": "many", "point": "nowhere"}, ORIGIN)
    assert thaw(freeze(row), types) == row


@pytest.mark.parametrize(
    "item",
    [
        Row("r", {"a": 1}, ORIGIN, b"raw"),
        DeadLetter("r", ORIGIN, b"\xff", "map", {"code": "c", "type": "T", "message": "m"}, 2, "s", "d", "f"),
        Dropped("r"),
        Row("\0dead", {"a": 1}, ORIGIN),
        Row("\0dropped", {"a": 1}, ORIGIN),
    ],
    ids=["row", "letter", "dropped", "odd id", "odder id"],
)
def test_items_of_every_kind_come_back(item):
    frozen = freeze_item(item)
    assert builtin(frozen)
    assert thaw_item(frozen, {}) == item


def test_fields_keep_their_order():
    assert dump_fields({"b": 1, "a": 2}) == b'{"b":1,"a":2}'
