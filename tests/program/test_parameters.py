import copy
import dataclasses
import enum
import json
import pickle
from collections import namedtuple
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dspy_stream.errors import ConfigurationError
from dspy_stream.program import Example, Parameters, Prediction, PredictorParameters
from dspy_stream.program.jsonable import canonical, to_jsonable

QUICK = settings(database=None, max_examples=100)


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Note(BaseModel):
    text: str
    on: date | None = None


@dataclasses.dataclass
class Pair:
    left: int
    right: set[str]


class Rich(BaseModel):
    tags: set[str]
    pair: Pair


Spot = namedtuple("Spot", "x y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (10**30, 10**30),
        (1.5, 1.5),
        ("é", "é"),
        ((1, (2,)), [1, [2]]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Color.RED, "red"),
        (Level.HIGH, 3),
        (Note(text="t", on=date(2024, 1, 2)), {"text": "t", "on": "2024-01-02"}),
        (Pair(1, {"b", "a"}), {"left": 1, "right": ["a", "b"]}),
        (Spot(1, 2), {"x": 1, "y": 2}),
        (
            Example(q="x", dspy_uuid="u", note=Note(text="t")),
            {"q": "x", "dspy_uuid": "u", "note": {"text": "t", "on": None}},
        ),
        (Prediction(a=[Example(b=1)]), {"a": [{"b": 1}]}),
        (datetime(2024, 1, 2, tzinfo=timezone.utc), "2024-01-02T00:00:00Z"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("/a/b"), "/a/b"),
        (
            Rich(tags={"b", "a"}, pair=Pair(1, {"d", "c"})),
            {"tags": ["a", "b"], "pair": {"left": 1, "right": ["c", "d"]}},
        ),
        (b"abc", "abc"),
        ({2: "a", None: "b", True: "c", Color.RED: "d"}, {"2": "a", "true": "c", "null": "b", "red": "d"}),
    ],
)
def test_json_forms(value, expected):
    result = to_jsonable(value)
    assert result == expected
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "value is nan"),
        ({"a": [1, float("inf")]}, "value.a[1] is inf"),
        ({"a": object()}, "value.a: a object has no JSON form"),
        ({"a": lambda: 1}, "value.a: a function has no JSON form"),
        ({(1, 2): 3}, "has the key (1, 2)"),
        (b"\xff", "a bytes has no JSON form"),
        (Pair(1, {object()}), "value.right: a object has no JSON form"),
    ],
)
def test_what_has_no_json_form_is_named(value, says):
    with pytest.raises(ConfigurationError) as caught:
        to_jsonable(value)
    assert says in str(caught.value)


def test_a_value_that_contains_itself():
    loop = []
    loop.append(loop)
    with pytest.raises(ConfigurationError, match="contains itself"):
        to_jsonable(loop)


def test_predictor_parameters_are_plain_copies():
    demo = {"q": ["x"], "note": Note(text="t")}
    config = {"temperature": 0.5, "stop": ["a"]}
    value = PredictorParameters("Do.", (demo, Example(q=["y"])), config, {"model": "m"})
    demo["q"].append("later")
    config["stop"].append("later")
    assert value.demos == ({"q": ["x"], "note": {"text": "t", "on": None}}, {"q": ["y"]})
    assert value.config == {"temperature": 0.5, "stop": ["a"]}
    value.to_json()["config"]["stop"].append("later")
    assert value.config["stop"] == ["a"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.instructions = "x"


def test_of_takes_examples_and_none():
    value = PredictorParameters.of(demos=[Example(q=1).with_inputs("q"), {"q": 2}], config=None)
    assert value == PredictorParameters(demos=({"q": 1}, {"q": 2}))
    assert value.config == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"instructions": 3}, "instructions are text or None, not int"),
        ({"demos": {"q": 1}}, "demos are a list of mappings, not dict"),
        ({"demos": 3}, "demos are a list of mappings, not int"),
        ({"demos": ["q"]}, "demo 1 is a mapping, not str"),
        ({"demos": [{}, {"q": float("nan")}]}, "demo 2.q is nan"),
        ({"config": [1]}, "config is a mapping, not list"),
        ({"lm": {"model": "m", "api_key": "k-123"}}, "lm has 'api_key': secrets do not belong"),
        ({"config": {"Authorization": "k-123"}}, "config has 'Authorization': secrets"),
    ],
)
def test_wrong_kinds_are_named(options, says):
    with pytest.raises(ConfigurationError) as caught:
        PredictorParameters(**options)
    assert says in str(caught.value)
    assert "k-123" not in str(caught.value)


def test_equality_is_of_the_json():
    one = PredictorParameters("x", ({"a": (1, 2)},), {"t": 1, "u": 2})
    same = PredictorParameters("x", [{"a": [1, 2]}], {"u": 2, "t": 1})
    assert one == same
    assert hash(one) == hash(same)
    assert one.digest() == same.digest()
    for other in (
        PredictorParameters("y", one.demos, one.config),
        PredictorParameters("x", (), one.config),
        PredictorParameters("x", one.demos, {"t": 1.0, "u": 2}),
        PredictorParameters("x", one.demos, one.config, {}),
        None,
    ):
        assert one != other
    assert PredictorParameters() != PredictorParameters("")
    assert PredictorParameters(demos=({"a": 1}, {"b": 2})) != PredictorParameters(demos=({"b": 2}, {"a": 1}))


def test_repr_does_not_print_demos_or_settings_of_the_model():
    text = repr(PredictorParameters("Do.", ({"q": "PRIVATE"},), {}, {"model": "m", "api_base": "http://x"}))
    assert text == "PredictorParameters(instructions='Do.', demos=<1>, config={}, lm='m')"


def parameters():
    return Parameters({"cot.predict": PredictorParameters("A", ({"q": 1},)), "xs[0]": PredictorParameters()})


def test_parameters_are_a_read_only_mapping():
    value = parameters()
    assert list(value) == ["cot.predict", "xs[0]"]
    assert value["cot.predict"].instructions == "A"
    assert len(value) == 2
    assert value == Parameters(dict(reversed(list(value.items()))))
    assert value.digest() == Parameters(dict(reversed(list(value.items())))).digest()
    changed = value.with_predictor("xs[0]", PredictorParameters("B"))
    assert (changed["xs[0]"].instructions, value["xs[0]"].instructions) == ("B", None)
    assert changed != value
    assert len({value, parameters(), changed}) == 2
    assert repr(value) == "Parameters(cot.predict, xs[0])"
    with pytest.raises(TypeError):
        value["x"] = PredictorParameters()
    with pytest.raises(KeyError):
        value["x"]
    with pytest.raises(ConfigurationError, match="not 'x' to dict"):
        Parameters({"x": {}})


def test_parameters_copy_and_pickle():
    for again in (copy.deepcopy(parameters()), pickle.loads(pickle.dumps(parameters()))):
        assert again == parameters()
        assert again.digest() == parameters().digest()


def test_json_round_trip():
    value = parameters()
    text = json.dumps(value.to_json())
    assert Parameters.from_json(json.loads(text)) == value
    assert Parameters.from_json({}) == Parameters()
    assert PredictorParameters.from_json({}) == PredictorParameters()


def test_digest_does_not_change_between_releases():
    assert parameters().digest() == "6829905b0a8d81d916ba18b3d2a499ab4860be0f17aabf45d05b035cede6d235"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "parameters: an object is expected, not list"),
        ({"predictor": {}}, "parameters: unknown key 'predictor'; did you mean 'predictors'?"),
        ({"predictors": []}, "`predictors` is an object, not list"),
        ({"predictors": {"a": None}}, "predictor 'a': an object is expected, not NoneType"),
        ({"predictors": {"a": {"demoes": []}}}, "predictor 'a': unknown key 'demoes'; did you mean 'demos'?"),
        (
            {"predictors": {"a": {"weights": 1}}},
            "unknown key 'weights'; known are instructions, demos, config, lm",
        ),
        ({"predictors": {"a": {"instructions": 1}}}, "predictor 'a': instructions are text or None, not int"),
        ({"predictors": {"a": {"demos": [1]}}}, "predictor 'a': demo 1 is a mapping"),
        ({"predictors": {"a": {"config": None}}}, "predictor 'a': config is a mapping"),
        ({"predictors": {"a": {"lm": "gpt"}}}, "predictor 'a': lm is a mapping"),
        ({"predictors": {"a": {"lm": {"api_key": "k"}}}}, "predictor 'a': lm has 'api_key'"),
    ],
)
def test_foreign_json_is_refused(value, says):
    with pytest.raises(ConfigurationError) as caught:
        Parameters.from_json(value)
    assert says in str(caught.value)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_object = st.dictionaries(
    st.text(max_size=5).filter(lambda k: "_" not in k and len(k) < 6), _json, max_size=3
)


@QUICK
@given(st.none() | st.text(max_size=8), st.lists(_object, max_size=3), _object, st.none() | _object)
def test_round_trip_of_anything(instructions, demos, config, lm):
    value = Parameters({"p": PredictorParameters(instructions, tuple(demos), config, lm)})
    again = Parameters.from_json(json.loads(json.dumps(value.to_json())))
    assert again == value
    assert again.digest() == value.digest()
    assert [dict(demo) for demo in again["p"].demos] == demos


def test_canonical_is_sorted_and_ascii():
    assert canonical({"b": 1, "a": "é\ud800"}) == b'{"a":"\\u00e9\\ud800","b":1}'
    with pytest.raises(ValueError):
        canonical(float("nan"))
