"""Format: what a template may say, and what it makes of values."""

import asyncio
import enum
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dspy_stream.errors import AdapterRenderError, ConfigurationError
from dspy_stream.modules.format import Format
from dspy_stream.runtime import Pending, advance


class Color(enum.Enum):
    RED = "red"


class Place(BaseModel):
    city: str


@pytest.mark.parametrize(
    ("template", "fields", "text"),
    [
        ("no fields", {}, "no fields"),
        ("{a}{b}{a}", {"a": "x", "b": "y"}, "xyx"),
        ("{{{a}}} {{a}}", {"a": "x"}, "{x} {a}"),
        ("{a}", {"a": "{b} {{c}}"}, "{b} {{c}}"),
        ("{a} {b} {c}", {"a": 1, "b": True, "c": None}, "1 true "),
        ("{a} {b}", {"a": ["x", "é"], "b": {"k": 1.5}}, '["x","é"] {"k":1.5}'),
        ("{a} {b}", {"a": Place(city="Rome"), "b": date(2026, 1, 2)}, '{"city":"Rome"} 2026-01-02'),
        ("{naïve}", {"naïve": "ok", "other": object()}, "ok"),
    ],
)
def test_values_are_filled_in(template, fields, text):
    module = Format(template)
    assert module(**fields).text == text
    assert asyncio.run(module.acall(**fields)).text == text
    done = advance(module.steps(fields))
    assert not isinstance(done, Pending)
    assert done.text == text


@pytest.mark.parametrize(
    "template",
    ["{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>10}", "{ a }", "{__class__.__mro__}", "{a b}"],
)
def test_anything_but_a_name_is_refused(template):
    with pytest.raises(ConfigurationError, match=r"only \{name\} is filled in"):
        Format(template)


@pytest.mark.parametrize(
    ("template", "line"), [("a {", 1), ("a }", 1), ("ok\n{a", 2), ("{a}}", 1), ("{{a}", 1)]
)
def test_a_lone_brace_is_refused_with_its_line(template, line):
    with pytest.raises(ConfigurationError, match=f"line {line} of the template has a lone"):
        Format(template)


def test_a_missing_field_is_named():
    with pytest.raises(AdapterRenderError, match="field `b` of the template is missing; given: a"):
        Format("{a} {b}")(a="x")


def test_what_is_a_text_in_json_has_no_marks():
    values = (date(2027, 3, 4), Decimal("2079.00"), Color.RED, ["a"], {"when": date(2027, 3, 4)})
    found = [Format("{v}")(v=value).text for value in values]
    assert found == ["2027-03-04", "2079.00", "red", '["a"]', '{"when":"2027-03-04"}']


def test_a_value_without_a_json_form_is_named():
    with pytest.raises(AdapterRenderError, match="field `a` of the template has no JSON form"):
        Format("{a}")(a=object())


def test_the_result_has_the_name_it_is_given():
    assert Format("{a}", output="prompt")(a="x").prompt == "x"
    with pytest.raises(ConfigurationError, match="no name of a field"):
        Format("{a}", output="a b")


def test_a_flow_learns_which_fields_are_read():
    module = Format("{b} {a} {b}")
    assert module.input_names() == module.required_names() == ("b", "a")
    assert module.named_predictors() == []
    assert Format("").input_names() == ()


@given(st.text(), st.text())
def test_any_text_comes_through_whole(before, value):
    escaped = before.replace("{", "{{").replace("}", "}}")
    assert Format(f"{escaped}{{value}}")(value=value).text == before + value
