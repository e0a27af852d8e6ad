"""Examples that satisfy the types they are made for."""

import datetime
import enum
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dspy_stream.errors import SignatureError
from dspy_stream.program import InputField, OutputField, Signature, make_signature
from dspy_stream.program.plausible import example_outputs


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Leaf(BaseModel):
    name: str
    size: Annotated[int, Field(ge=3, le=4)]


class Tree(BaseModel):
    leaf: Leaf
    children: list["Tree"] = []
    parent: Optional["Tree"] = None


def made(type_, **constraints):
    parts = {"text": (str, InputField()), "out": (type_, OutputField(**constraints))}
    signature = make_signature(parts, "Try.")
    value = example_outputs(signature)["out"]
    assert example_outputs(signature)["out"] == value, "the same every time"
    return value


@pytest.mark.parametrize(
    "type_",
    [
        *(str, int, float, bool, Any, Decimal, bytes),
        *(list[str], list[int], set[str], frozenset[int], dict[str, float], tuple[int, str], tuple[int, ...]),
        *(Literal["a", "bb", "ccc"], Literal[1, 2], Colour, list[Colour], int | None, int | str | None),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, uuid.UUID),
        *(Leaf, Tree, list[Tree], dict[str, list[Leaf]]),
        Annotated[str, Field(pattern=r"^[a-z]+-\d+$")],
        Annotated[str, Field(min_length=300)],
        Annotated[str, Field(max_length=7)],
        Annotated[list[str], Field(min_length=5, max_length=6)],
        Annotated[float, Field(gt=0, lt=0.001)],
        Annotated[int, Field(multiple_of=7, gt=7)],
    ],
    ids=str,
)
def test_every_type_has_one(type_):
    made(type_)


@settings(max_examples=60)
@given(st.integers(-1000, 1000), st.integers(0, 500), st.booleans())
def test_numbers_stay_within_their_bounds(low, span, whole):
    value = made(int if whole else float, ge=low, le=low + span)
    assert low <= value <= low + span


def test_texts_are_as_long_as_one_may_expect():
    signature = Signature("question -> reasoning, answer, tags: list[str]")
    found = example_outputs(signature)
    assert len(found["reasoning"]) > 400 > len(found["answer"]) > 100
    assert len(set(found["tags"])) == len(found["tags"]) == 3
    assert max(map(len, found["tags"])) < 40


def test_a_type_that_cannot_be_satisfied_is_named():
    with pytest.raises(SignatureError, match="`out`"):
        made(Annotated[str, Field(pattern=r"^no example of this is known$")])
