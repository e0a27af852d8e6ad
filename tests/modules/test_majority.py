"""majority: what is counted, and which of the equal ones is given back."""

import pytest

from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.modules import Predict
from dspy_stream.modules.majority import default_normalize, majority
from dspy_stream.program import Completions, Prediction, Signature
from dspy_stream.types import Choice, Response

QA = Signature("question -> answer, source")


def dicts(*answers):
    return [{"answer": answer} for answer in answers]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (dicts("2", "2", "3"), "2"),
        (dicts("3", "2", "2"), "2"),
        (dicts("2", "3"), "2"),
        (dicts("3", "2", "2", "3"), "3"),
        (dicts("The answer", "Rome", "answer!"), "The answer"),
        (dicts("...", "", "x"), "x"),
        (dicts("...", ""), "..."),
        (dicts(1, True, True), True),
        (dicts([1], [1], [2]), [1]),
        (dicts({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 3}, {"a": 3}, {"b": 2, "a": 1}), {"a": 1, "b": 2}),
        (dicts(None, None, "x"), "x"),
    ],
)
def test_the_most_common_answer_wins_and_the_first_of_equals(given, expected):
    made = majority(given)
    assert made.answer == expected
    assert type(made.answer) is type(expected)
    assert len(made.completions) == 1


def test_all_fields_of_the_winner_come_along():
    made = majority([{"why": "a", "answer": "1"}, {"why": "b", "answer": "2"}, {"why": "c", "answer": "2"}])
    assert (made.why, made.answer) == ("b", "2")


def test_the_last_output_of_the_signature_counts_unless_a_field_is_named():
    completions = Completions(
        {"answer": ["a", "b", "b"], "source": ["x", "y", "x"]},
        QA,
    )
    assert majority(completions).toDict() == {"answer": "a", "source": "x"}
    assert majority(completions, field="answer").toDict() == {"answer": "b", "source": "y"}
    assert majority(completions).completions.signature is QA


def test_predictions_are_counted_too():
    assert majority([Prediction(answer="a"), Prediction(answer="b"), Prediction(answer="B")]).answer == "b"


def test_the_completions_of_a_call_are_counted():
    lines = [Choice(f"[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]") for text in ("x", "y", "y")]
    asked = Predict("question -> answer", n=3)(
        question="?", lm=ScriptedLM(lambda request: Response(tuple(lines), model=request.model))
    )
    assert majority(asked).answer == "y"


def test_another_normalization_or_none():
    assert majority(dicts("A", "a", "b", "b"), normalize=None).answer == "b"
    assert majority(dicts("aa", "b", "cc"), normalize=len).answer == "aa"
    assert majority(dicts("x", "skip", "skip"), normalize=lambda s: None if s == "skip" else s).answer == "x"


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="no completions"):
        majority([])
    with pytest.raises(ValueError, match="single completion"):
        majority(Prediction(answer="a"))
    with pytest.raises(ValueError, match="completion 2 has no field `answer`; it has: other"):
        majority([{"answer": "a"}, {"other": "a"}])
    with pytest.raises(TypeError, match="not str"):
        majority("abc")


def test_what_is_compared_of_a_text():
    assert default_normalize("Émile  Zola's A-Z") == default_normalize("émile zolas az")
    assert default_normalize("an a the") is None
    assert default_normalize([1]) == [1]
