import copy
import pickle
import time

import pytest

from dspy_stream.program import Completions, Example, Prediction


def test_is_an_example():
    prediction = Prediction(answer="4", n=1)
    assert isinstance(prediction, Example)
    assert (prediction.answer, prediction["n"], len(prediction)) == ("4", 1, 2)
    assert Prediction(Example(a=1).with_inputs("a")).toDict() == {"a": 1}
    assert Prediction({"base": 1}).base == 1
    assert prediction.completions is None
    assert prediction.get_lm_usage() is None
    with pytest.raises(AttributeError, match="'Prediction' object has no attribute 'x'"):
        _ = prediction.x


def test_usage_is_kept_beside_the_fields():
    prediction = Prediction(a=1)
    prediction.set_lm_usage({"m": {"total_tokens": 3}})
    assert prediction.get_lm_usage() == {"m": {"total_tokens": 3}}
    assert prediction.toDict() == {"a": 1}
    assert pickle.loads(pickle.dumps(prediction)).get_lm_usage() == {"m": {"total_tokens": 3}}


@pytest.mark.parametrize("given", [[{"a": 1, "b": "x"}, {"b": "y", "a": 2}], {"a": [1, 2], "b": ["x", "y"]}])
def test_completions(given):
    prediction = Prediction.from_completions(given, signature="s")
    assert prediction.toDict() == {"a": 1, "b": "x"}
    completions = prediction.completions
    assert completions.signature == "s"
    assert len(completions) == 2
    assert completions.a == completions["a"] == [1, 2]
    assert type(completions[1]) is Prediction
    assert completions[1].toDict() == {"a": 2, "b": "y"}
    assert completions[-1] == completions[1]
    assert [one.b for one in completions] == ["x", "y"]
    assert dict(completions.items()) == {"a": [1, 2], "b": ["x", "y"]}
    assert "a" in completions
    assert "c" not in completions
    with pytest.raises(IndexError):
        completions[2]
    with pytest.raises(TypeError, match="by their number or by a field's name, not by slice"):
        completions[0:1]
    with pytest.raises(KeyError):
        completions["c"]
    with pytest.raises(AttributeError, match="no attribute 'c'; the fields are: a, b"):
        _ = completions.c
    assert copy.deepcopy(completions) == completions == pickle.loads(pickle.dumps(completions))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([{"a": 1}, {"a": 1, "b": 2}], "completion 2 differs from the first in its fields: b"),
        ([{"a": 1}, {}], "completion 2 differs from the first in its fields: a"),
        (
            {"a": [1, 2], "b": [1]},
            "All lists must have the same length; field `b` has 1 values, the first field 2",
        ),
        ({"a": "text"}, "All values must be lists, one value a completion; field `a` is not"),
    ],
)
def test_uneven_completions_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Completions(given)


def test_no_completion_is_no_prediction():
    assert len(Completions([])) == 0
    with pytest.raises(ValueError, match="at least one completion"):
        Prediction.from_completions([])


def test_repr_names_the_other_completions():
    assert (
        repr(Prediction(a=1, b="x")) == str(Prediction(a=1, b="x")) == "Prediction(\n    a=1,\n    b='x'\n)"
    )
    several = Prediction.from_completions([{"a": 1}] * 3)
    assert repr(several) == (
        "Prediction(\n    a=1,\n    completions=Completions(...)\n) (2 completions omitted)"
    )
    assert repr(several.completions) == "Completions(\n    a=[1, 1, 1]\n)"


def test_an_answer_is_its_own_completion():
    answer = Prediction.of({"a": 1}, answered=True)
    assert repr(answer) == "Prediction(\n    a=1\n)"
    for one in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer), answer):
        assert (len(one.completions), one.completions.a, one.completions[0].a) == (1, [1], 1)
        assert one.completions is one.completions
    assert repr(answer) == "Prediction(\n    a=1\n)"
    assert Prediction.of({"a": 1}).completions is None


def test_a_score_is_a_number():
    half, one = Prediction(score=0.5, feedback="so-so"), Prediction(score=True)
    assert float(half) == 0.5
    assert half + one == one + half == half + 1 == 1 + half == 1.5
    assert sum([half, one, half]) == 2.0
    assert (half / one, half / 2, 1 / half, one / half) == (0.5, 0.25, 2.0, 2.0)
    assert half < one
    assert one > 0.5
    assert half <= 0.5
    assert half >= 0.5
    assert 0.4 < half < 0.6
    assert max([half, one]) is one
    assert sorted([one, half])[0] is half


def test_without_a_score_there_is_no_number():
    for use in (float, lambda p: p + 1, lambda p: p < 1, lambda p: 1 / p):
        with pytest.raises(ValueError, match="does not have a 'score' field"):
            use(Prediction(answer="4"))
    for use in (lambda p: p + "1", lambda p: p < "1", lambda p: p / None):
        with pytest.raises(TypeError):
            use(Prediction(score=1))


def test_equality_is_of_all_fields():
    assert Prediction(score=1, feedback="a") != Prediction(score=1, feedback="b")
    assert Prediction(score=1) == Prediction(score=1)
    assert len({Prediction(score=1), Prediction(score=1)}) == 1


def test_making_one_is_cheap():
    # Far above what it takes (below 1 microsecond on an idle core), so that only a blunder fails.
    best = min(_seconds(2_000) for _ in range(20)) / 2_000
    assert best < 20e-6


def _seconds(times):
    started = time.perf_counter()
    for _ in range(times):
        Prediction(reasoning="r", answer="a", score=1)
    return time.perf_counter() - started
