# ruff: noqa: UP007, UP045 - the old spellings are tested too
import math
from datetime import date
from typing import Annotated, Literal, Optional, Union

import pytest
from annotated_types import Ge

from dspy_stream.errors import ConfigurationError, SignatureError
from dspy_stream.program import InputField, OutputField, Signature, infer_prefix
from dspy_stream.program.annotations import admits_none, type_name


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("question", "Question"),
        ("snake_case_text", "Snake Case Text"),
        ("camelCaseText", "Camel Case Text"),
        ("text2number", "Text 2 Number"),
        ("HTMLParser", "HTML Parser"),
        ("userID", "User ID"),
        ("x", "X"),
        ("a__b_", "A B"),
        ("some_attribute_3", "Some Attribute 3"),
    ],
)
def test_prefix_is_the_name_as_a_heading(name, prefix):
    assert infer_prefix(name) == prefix


@pytest.mark.parametrize(
    ("options", "prose"),
    [
        ({"gt": 3}, "greater than 3"),
        ({"lt": 3}, "less than 3"),
        ({"ge": 1}, "at least 1"),
        ({"le": 5}, "at most 5"),
        ({"ge": 1, "le": 5}, "from 1 to 5"),
        ({"le": 5, "ge": 1}, "from 1 to 5"),
        ({"ge": 5, "le": 5}, "exactly 5"),
        ({"gt": 0, "lt": 1}, "greater than 0, less than 1"),
        ({"min_length": 2}, "length at least 2"),
        ({"min_length": 2, "max_length": 4}, "length from 2 to 4"),
        ({"multiple_of": 5}, "a multiple of 5"),
        ({"pattern": "^a$"}, "matching the regular expression ^a$"),
        ({"allow_inf_nan": False}, "a finite number"),
        ({"allow_inf_nan": True}, "inf and nan are allowed"),
        ({"ge": date(2020, 1, 2)}, "at least 2020-01-02"),
        ({"max_digits": 4, "decimal_places": 2}, "at most 4 digits, at most 2 decimal places"),
    ],
)
def test_constraints_are_written_out(options, prose):
    assert OutputField(**options).json_schema_extra["constraints"] == prose
    assert InputField(**options).json_schema_extra["constraints"] == prose


def test_field_without_constraints_says_nothing():
    assert "constraints" not in OutputField(desc="x").json_schema_extra


def test_constraints_of_the_annotation_and_of_the_field_are_put_together():
    class Rate(Signature):
        text: str = InputField()
        score: Annotated[int, Ge(1)] = OutputField(le=9)

    assert Rate.fields["score"].json_schema_extra["constraints"] == "from 1 to 9"
    for wrong in (0, 10):
        with pytest.raises(ValueError):
            Rate.validator("score").validate_python(wrong)
    assert Rate.validator("score").validate_python("9") == 9
    # and they survive every edit
    edited = Rate.append("why", OutputField()).with_updated_fields("score", desc="d")
    assert edited.fields["score"].json_schema_extra["constraints"] == "from 1 to 9"
    with pytest.raises(ValueError):
        edited.validator("score").validate_python(0)


def test_metadata_defaults_come_from_the_name():
    extra = Signature("user_id -> a").fields["user_id"].json_schema_extra
    assert extra == {
        "__dspy_field_type": "input",
        "__dspy_untyped": True,
        "desc": "${user_id}",
        "prefix": "User Id:",
    }


def test_options_for_dspy_are_accepted():
    field = OutputField(desc="d", prefix="P:", format=str, parser=int, description="ignored for desc")
    assert field.json_schema_extra["desc"] == "d"
    assert field.json_schema_extra["prefix"] == "P:"
    assert InputField(description="used").json_schema_extra["desc"] == "used"


def test_own_json_schema_extra_is_kept():
    assert OutputField(json_schema_extra={"unit": "km"}).json_schema_extra["unit"] == "km"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dsc": "x"}, "no option 'dsc'; did you mean 'desc'?"),
        ({"minimum_length": 3}, "'min_length'"),
        ({"alias": "x"}, "no option 'alias'"),
        ({"default": 1, "default_factory": list}, "both default and default_factory"),
    ],
)
def test_wrong_options_are_named(options, says):
    with pytest.raises(SignatureError) as caught:
        OutputField(**options)
    assert says in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ConfigurationError)


def test_one_declaration_serves_two_classes():
    shared = OutputField()
    first = Signature({"q": (str, InputField()), "one": (str, shared)})
    second = Signature({"q": (str, InputField()), "two": (int, shared)})
    assert first.fields["one"].json_schema_extra["desc"] == "${one}"
    assert second.fields["two"].json_schema_extra["desc"] == "${two}"
    assert "desc" not in shared.json_schema_extra


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (None, True),
        (type(None), True),
        (Optional[int], True),
        (int | None, True),
        (Annotated[int | None, "x"], True),
        (Union[int, Annotated[str | None, 1]], True),
        (Literal["a", None], True),
        (int, False),
        (list[int | None], False),
        (Literal["None"], False),
    ],
)
def test_admits_none(annotation, expected):
    assert admits_none(annotation) is expected


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (str, "str"),
        (list, "list"),
        (list[int], "list[int]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (tuple[()], "tuple[()]"),
        (tuple, "tuple"),
        (dict[str, list[float]], "dict[str, list[float]]"),
        (int | None, "int | None"),
        (Optional[str], "str | None"),
        (Literal["a", 1, None], "Literal['a', 1, None]"),
        (Annotated[int, Ge(3)], "int"),
        (date, "date"),
    ],
)
def test_type_name(annotation, name):
    assert type_name(annotation) == name


def test_nan_bound_is_harmless():
    assert OutputField(ge=math.inf).json_schema_extra["constraints"] == "at least inf"
