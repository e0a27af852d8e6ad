import dataclasses
import datetime as dt
import decimal
import enum
import sys
import typing
import uuid
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import core_schema
from typing_extensions import TypedDict

from dspy_stream.adapters.choices import Choices
from dspy_stream.adapters.problem import ValueProblem
from dspy_stream.adapters.values import codec_for
from dspy_stream.adapters.write import json_text
from dspy_stream.program import Example, Prediction


class Color(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    ADMIN = 4


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: dt.date
    color: Color


class Aliased(BaseModel):
    name: str = Field(alias="fullName")


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Pair(TypedDict):
    left: str
    right: int


def codec(annotation, *constraints):
    checked = Annotated[(annotation, *constraints)] if constraints else annotation
    return codec_for(annotation, TypeAdapter(checked), constrained=bool(constraints))


READ = [
    (str, "  kept as given ", "  kept as given "),
    (str, '"quoted"', '"quoted"'),
    (bool, "yes", True),
    (bool, "True.", True),
    (bool, "**FALSE**", False),
    (bool, '"true"', True),
    (int, "42", 42),
    (int, "`42`", 42),
    (int, "4.0", 4),
    (int, "1,234,567", 1234567),
    (float, "1,234.5", 1234.5),
    (dt.timedelta, "3600", dt.timedelta(hours=1)),
    (bytes, '"abc"', b"abc"),
    (list[int], "1, 2, 3", [1, 2, 3]),
    (list[str], '"a", "b"', ["a", "b"]),
    (list[dict[str, int]], '{"a": 1},\n{"a": 2}', [{"a": 1}, {"a": 2}]),
    (int, "```json\n7\n```", 7),
    (int, "9" * 300, int("9" * 300)),
    (float, "-1.5e3", -1500.0),
    (float, "3", 3.0),
    (Literal["x", "y z"], "y z", "y z"),
    (Literal["x", "y z"], '"Y Z".', "y z"),
    (Literal["a", "A"], "A", "A"),
    (Literal[1, "b", None, True], "1", 1),
    (Color, "red", Color.RED),
    (Color, "DARK_BLUE", Color.DARK_BLUE),
    (Color, "Dark Blue", Color.DARK_BLUE),
    (Level, "2", Level.HIGH),
    (Level, "low", Level.LOW),
    (str | None, "None", None),
    (str | None, "", None),
    (str | None, '"None"', "None"),
    (str | None, "[1, 2]", "[1, 2]"),
    (int | None, "null", None),
    (int | None, "7", 7),
    (dt.date | None, "2031-05-28", dt.date(2031, 5, 28)),
    (Literal["a", "b"] | None, "B", "b"),
    (int | str, "42", 42),
    (int | str, "see [1] and {2}", "see [1] and {2}"),
    (list[str], '["a", "b",]', ["a", "b"]),
    (list[str], "```json\n['a']\n```", ["a"]),
    (list[str], 'Sure: ["a"]', ["a"]),
    (dict[str, int], "{'a': 1}", {"a": 1}),
    (dict[int, str], '{"1": "x"}', {1: "x"}),
    (tuple[int, str], "(1, 'a')", (1, "a")),
    (set[int], "[1, 2, 1]", {1, 2}),
    (dt.date, '"2031-05-28"', dt.date(2031, 5, 28)),
    (uuid.UUID, "12345678-1234-5678-1234-567812345678", uuid.UUID("12345678-1234-5678-1234-567812345678")),
    (bytes, "abc", b"abc"),
    (Any, "I think [1]", "I think [1]"),
    (Point, '{"x": 1, "y": 2}', Point(1, 2.0)),
    (Pair, '{"left": "a", "right": "2"}', {"left": "a", "right": 2}),
    (Strict, '{"day": "2031-05-28", "color": "red"}', Strict(day=dt.date(2031, 5, 28), color=Color.RED)),
    (Aliased, '{"fullName": "n"}', Aliased(fullName="n")),
    (list[Color], '["DARK_BLUE", "Red", "dark blue"]', [Color.DARK_BLUE, Color.RED, Color.DARK_BLUE]),
    (dict[Color, list[Level]] | None, '{"RED": ["low", 2]}', {Color.RED: [Level.LOW, Level.HIGH]}),
    (list[Literal["a", "b"]], '["A", "b"]', ["a", "b"]),
    (Strict, '{"day": "2031-05-28", "color": "red"}', Strict(day=dt.date(2031, 5, 28), color=Color.RED)),
    (Rights, "3", Rights.READ | Rights.WRITE),
    (Rights, "Rights.READ | write", Rights.READ | Rights.WRITE),
    (Rights, '["READ", "ADMIN"]', Rights.READ | Rights.ADMIN),
    (Rights, "READ, WRITE.", Rights.READ | Rights.WRITE),
    (Rights, "0", Rights(0)),
    (Access, "read|write", Access(3)),
    (Rights, "WRITE", Rights.WRITE),
    (list[Rights], "[3, 4]", [Rights(3), Rights.ADMIN]),
    (set[int], "{1, 2}", {1, 2}),
    (set[int], "set()", set()),
    (set[int] | None, "frozenset({1, 2,})", {1, 2}),
    (frozenset[str], '{"a", "b"}', frozenset("ab")),
    (dict[str, set[int]], "{'a': {1, 2}, 'b': {3}}", {"a": {1, 2}, "b": {3}}),
]


@pytest.mark.parametrize(("annotation", "text", "value"), READ)
def test_reads(annotation, text, value):
    read = codec(annotation).read(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (bool, "maybe"), (bool, ""), (bool, "true or false"),
        (int, ""), (int, "4.5"), (int, "one"), (int, "9" * 301), (int, "9" * 5000), (int, "1,2"),
        (int, "\u0661"),
        (float, "nan"), (float, "inf"), (float, "-Infinity"), (float, "1e999"), (float, "50%"), (float, ""),
        (Literal["a", "A"], "`b`"), (Literal["ab", "AB"], "Ab"), (Literal["a"], ""), (Color, "green"),
        (int | None, "x"), (float | None, "nan"),
        (list[str], "a, b"), (list[str], "[1]"), (list[str], "[1] or [2]"), (list[float], '["nan"]'),
        (list[float], "[1e999]"), (dict[str, int], '{"a": 1, "a": 2}'), (dict[str, int], '{"a": 1'),
        (dict[str, Any], '{"a": NaN}'), (decimal.Decimal, "NaN"), (float | list[float], "inf"),
        (Rights, "8"), (Rights, "9"), (Access, "9"),
        (Rights, "READ WRITE"), (Rights, "READ|SELL"), (Rights, ""),
        (list[Color], '["green"]'), (list[Color], '[["RED"]]'), (set[int], "{1: 2}"), (set[int], "{1, 'x'}"),
        (list[int], "{1, 2}"), (decimal.Decimal, "1e999"), (decimal.Decimal, "one"),
        (decimal.Decimal, "1,2"), (dt.date, "May 28"), (Point, '{"x": 1}'),
        (Pair, "[]"), (list[int], "[" * 100_000), (Any, "NaN"),
    ],
)  # fmt: skip
def test_refuses(annotation, text):
    with pytest.raises(ValueProblem) as caught:
        codec(annotation).read(text)
    assert 0 < len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("annotation", "constraint", "good", "bad"),
    [
        (int, Field(ge=1, le=5), "5", "6"),
        (str, Field(max_length=3), "abc", "abcd"),
        (float, Field(gt=0), "0.5", "0"),
        (list[int], Field(min_length=1), "[1]", "[]"),
        (int | None, Field(ge=1), "null", "0"),
    ],
)
def test_constraints_are_enforced(annotation, constraint, good, bad):
    made = codec(annotation, constraint)
    made.read(good)
    with pytest.raises(ValueProblem):
        made.read(bad)


def test_constraints_within_a_union_are_enforced():
    made = codec(Annotated[str, Field(max_length=3)] | None)
    assert made.read("abc") == "abc"
    with pytest.raises(ValueProblem):
        made.read("abcd")


def test_a_validator_that_fails_in_its_own_way_is_a_finding_about_the_value():
    shout = pydantic.BeforeValidator(lambda value: value.upper())
    made = codec(list[str], shout)
    with pytest.raises(ValueProblem, match="AttributeError"):
        made.read('["a"]')


def test_accepts_plain_data_of_a_json_answer():
    assert codec(str).accept(42) == "42"
    assert codec(str).accept(True) == "true"
    assert codec(str).accept(" x ") == " x "
    assert codec(bool).accept("yes") is True
    assert codec(int).accept("1,000") == 1000
    assert codec(list[str]).accept('["a"]') == ["a"]
    assert codec(str | None).accept("None") == "None"
    assert codec(str | None).accept(None) is None
    assert codec(Color).accept("red") is Color.RED
    assert codec(Level).accept(2) is Level.HIGH
    with pytest.raises(ValueProblem):
        codec(int).accept("nan")
    with pytest.raises(ValueProblem):
        codec(int).accept(None)


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (str, "as is\n", "as is\n"),
        (str, ["one", "two\nlines"], "1. one\n2. two\n   lines"),
        (str, [], "(none)"),
        (str, 3, "3"),
        (list[str], ["a", "ü"], '["a","ü"]'),
        (list[str], "already text", "already text"),
        (set[str], {"b", "a", "c"}, '["a","b","c"]'),
        (Any, {"k": {3, 1, 2}}, None),
        (Color, Color.RED, "red"),
        (bool, True, "true"),
        (int | None, None, "null"),
        (dt.date, dt.date(2031, 5, 28), "2031-05-28"),
        (decimal.Decimal, decimal.Decimal("1.50"), '"1.50"'),
        (bytes, b"abc", "abc"),
        (Aliased, Aliased(fullName="n"), '{"fullName":"n"}'),
        (int, 10**30, "1" + "0" * 30),
        (Point, Point(1, 2.0), '{"x":1,"y":2.0}'),
    ],
)
def test_writes(annotation, value, text):
    written = codec(annotation).write(value)
    if text is not None:
        assert written == text


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (float, float("nan")),
        (list[float], [1.0, float("inf")]),
        (str, float("nan")),
        (bytes, b"\xff"),
        (Any, object()),
    ],
)
def test_refuses_to_write(annotation, value):
    with pytest.raises(ValueProblem):
        codec(annotation).write(value)


def test_nulls_are_still_written_next_to_the_check_for_nan():
    assert json_text({"a": None, "b": ["null", 1.5]}) == '{"a":null,"b":["null",1.5]}'


def test_a_member_may_be_named_with_its_class():
    assert codec(Color).read(f"Color.{next(iter(Color)).name}") is next(iter(Color))
    assert codec(list[Color]).read(f'["Color.{next(iter(Color)).name}"]') == [next(iter(Color))]


def test_quotes_around_a_text_of_another_type_are_kept_where_they_belong_to_it():
    made = codec(bytes)
    assert made.read(made.show(b'"x"')) == b'"x"'


def test_choices_prefer_the_value_as_written():
    choices = Choices(["yes", "Yes", "no"])
    assert choices.parse("Yes") == "Yes"
    with pytest.raises(ValueProblem):
        choices.parse("YES")


words = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from(['"', "\\", "None", "null", " ", "\n", "[[ ## a ## ]]", "1", "true", "{", "}", "n"])
).map("".join)
stripped = words.map(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)

ROUND_TRIPS = {
    "str": (str, stripped),
    "int": (int, st.integers(-(10**299), 10**299)),
    "float": (float, finite),
    "bool": (bool, st.booleans()),
    "list": (list[str], st.lists(words)),
    "dict": (dict[str, int], st.dictionaries(words, st.integers())),
    "optional str": (str | None, st.none() | stripped),
    "optional int": (int | None, st.none() | st.integers()),
    "optional list": (list[str] | None, st.none() | st.lists(words)),
    "optional label": (Literal["None", "null", "x"] | None, st.sampled_from([None, "None", "null", "x"])),
    "union": (int | str, st.integers() | stripped),
    "literal": (
        Literal["a", "A", 'q"', "line\nbreak", 7],
        st.sampled_from(["a", "A", 'q"', "line\nbreak", 7]),
    ),
    "enum": (Color, st.sampled_from(Color)),
    "int enum": (Level, st.sampled_from(Level)),
    "dataclass": (Point, st.builds(Point, st.integers(), finite)),
    "typed dict": (Pair, st.fixed_dictionaries({"left": words, "right": st.integers()})),
    "date": (dt.date, st.dates()),
    "datetime": (dt.datetime, st.datetimes(timezones=st.just(dt.timezone.utc))),
    "naive datetime": (dt.datetime, st.datetimes()),
    "timedelta": (dt.timedelta, st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999))),
    "uuid": (uuid.UUID, st.uuids()),
    "decimal": (decimal.Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=4)),
    "tuple": (tuple[int, str], st.tuples(st.integers(), words)),
    "long tuple": (tuple[float, ...], st.lists(finite).map(tuple)),
    "set": (set[str], st.sets(words)),
    "frozenset": (frozenset[int], st.frozensets(st.integers())),
    "nested": (dict[str, list[int | None]], st.dictionaries(words, st.lists(st.none() | st.integers()))),
}


class Person(BaseModel):
    name: str
    age: int | None = None
    tags: set[str] = set()
    color: Color = Color.RED
    points: list[Point] = []


ROUND_TRIPS["model"] = (
    Person,
    st.builds(
        Person,
        name=words,
        age=st.none() | st.integers(),
        tags=st.sets(words, max_size=3),
        color=st.sampled_from(Color),
        points=st.lists(st.builds(Point, st.integers(), finite), max_size=2),
    ),
)


@pytest.mark.parametrize("name", ROUND_TRIPS)
@settings(max_examples=40)
@given(data=st.data())
def test_what_is_shown_is_read_back(name, data):
    annotation, strategy = ROUND_TRIPS[name]
    made = codec(annotation)
    value = data.draw(strategy)
    shown = made.show(value)
    assert made.read(shown.strip()) == value
    assert made.accept(made.plain(value)) == value


@given(
    st.sampled_from(sorted(ROUND_TRIPS)), st.text(max_size=60) | st.text("[]{}\"':,0e9.\\ntrul", max_size=40)
)
@settings(max_examples=200)
def test_no_text_raises_anything_else(name, text):
    made = codec(ROUND_TRIPS[name][0])
    try:
        value = made.read(text)
    except ValueProblem:
        return
    made.write(value)


def test_types_that_travel_as_other_types_are_not_confused_by_warnings():
    # A demo from a file has plain data where the field has a model or an enum.
    assert codec(Person).show({"name": "n"}) == '{"name":"n"}'
    assert codec(Color).show("red") == "red"
    assert codec(int).show("42") == "42"
    assert codec(list[str]).show('["a"]') == '["a"]'


def test_every_python_spelling_of_optional_is_the_same():
    assert codec(typing.Optional[int]).nullable  # noqa: UP045 - the old spelling is what is tested
    assert codec(int | None).nullable
    assert not codec(int).nullable
    assert codec(Any).nullable


def test_types_without_a_schema_are_read_all_the_same():
    class Odd:
        @classmethod
        def __get_pydantic_core_schema__(cls, source, handler):
            return core_schema.no_info_plain_validator_function(lambda value: (cls, value))

    made = codec(Odd)
    assert made.schema is None
    assert made.read("[1]") == (Odd, [1])


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (Literal["a", "b"], 'Literal["a"]', "a"),
        (Literal["a", "b"], "Literal[b]", "b"),
        (Literal["a", "b"], "str[a].", "a"),
        (Literal["Literal[x]", "x"], "Literal[x]", "Literal[x]"),
        (bool, "on", True),
        (bool, "F", False),
    ],
)
def test_what_models_write_around_a_choice_or_for_a_truth_value(annotation, text, value):
    assert codec_for(annotation, TypeAdapter(annotation)).read(text) == value


class _Said:
    def __str__(self):
        return "as it says"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (_Said(), "as it says"),
        (ValueError("why"), "why"),
        (Prediction(a=1, b=["x"]), '{"a":1,"b":["x"]}'),
        (Example(a=1).with_inputs("a"), '{"a":1}'),
        ([Example(a=1), _Said()], '1. {"a":1}\n2. as it says'),
    ],
)
def test_what_is_no_plain_data_is_written_by_what_it_says(value, text):
    assert codec_for(str, TypeAdapter(str)).write(value) == text


@pytest.mark.parametrize("value", [object(), int, len])
def test_an_object_without_a_text_of_its_own_is_refused(value):
    with pytest.raises(ValueProblem, match="cannot be written as text"):
        codec_for(str, TypeAdapter(str)).write(value)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Flag fails in a way of its own there")
def test_joined_members_within_another_type_may_be_named():
    assert codec(list[Rights]).read('["READ|WRITE", "admin"]') == [Rights(3), Rights.ADMIN]
