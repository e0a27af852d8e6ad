"""The functions that adapters of one's own call."""

import enum
from typing import Literal

import pytest

from dspy_stream.adapters.fieldwise import (
    format_field_value,
    get_annotation_name,
    get_field_description_string,
    parse_value,
    serialize_for_json,
)
from dspy_stream.program import InputField, OutputField, Signature
from dspy_stream.program.types import Image


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Order(Signature):
    photo: Image = InputField()
    words: str = InputField(desc="of the customer")
    count: int = OutputField(ge=1)


@pytest.mark.parametrize(
    ("given", "annotation", "value"),
    [
        ("3", int, 3),
        (" 3 ", int, 3),
        ("x", Literal["x", "y"], "x"),
        ('{"a": 1}', dict[str, int], {"a": 1}),
        ([1, 2], list[int], [1, 2]),
        ("null", int | None, None),
    ],
)
def test_values_are_read(given, annotation, value):
    assert parse_value(given, annotation) == value


@pytest.mark.parametrize(("given", "annotation"), [("abc", int), ("z", Literal["x"]), (["a"], list[int])])
def test_other_values_are_refused(given, annotation):
    with pytest.raises(ValueError, match=r"."):
        parse_value(given, annotation)


def test_values_are_written_as_in_a_prompt():
    assert format_field_value(Order.fields["words"], "two") == "two"
    (block,) = format_field_value(Order.fields["photo"], Image("http://x/y.png"))
    assert block["type"] == "image_url"


def test_fields_are_described_each_on_its_line():
    text = get_field_description_string(Order.input_fields)
    assert [line[:2] for line in text.splitlines()] == ["1.", "2."]
    assert "of the customer" in text
    assert "at least 1" in get_field_description_string(Order.output_fields)


def test_joined_members_are_described_by_their_numbers():
    text = get_field_description_string(Order.append("rights", OutputField(), Rights).output_fields)
    assert "the sum of one or more of: 1 (READ); 2 (WRITE)" in text


def test_types_and_json():
    assert get_annotation_name(list[Order]) == "list[Order]"
    assert serialize_for_json(Image("http://x/y.png")) == {"url": "http://x/y.png"}
