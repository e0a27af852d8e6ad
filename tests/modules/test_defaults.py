"""``on_error="default"``: what a row goes on with where a part has failed, called and in a flow."""

import pytest

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError, LMServerError, RecordError
from dspy_stream.modules.defaults import default_outputs
from dspy_stream.modules.part import as_part
from dspy_stream.stream.sinks import MemorySink


class Score(ds.Signature):
    """Score a text."""

    text: str = ds.InputField()
    label: str = ds.OutputField()
    score: int = ds.OutputField(default=3)
    tags: list[str] = ds.OutputField()


class Fails(ds.Module):
    """A program of the user's own that fails for some rows."""

    def __init__(self):
        self.score = ds.Predict(Score)
        self.score.lm = ds.ScriptedLM([])

    def forward(self, text):
        if "bad" in text:
            raise KeyError(text)
        return ds.Prediction(label="good", score=5, tags=[])

    def output_names(self):
        return ("label", "score", "tags")


def after(label, score):
    return {"line": f"{label} {score}"}


class TestValues:
    def test_given_then_declared_then_none(self):
        assert default_outputs(ds.Predict(Score), {"label": "?"}) == {"label": "?", "score": 3, "tags": None}

    def test_every_row_gets_objects_of_its_own(self):
        given = {"tags": []}
        first, second = (default_outputs(ds.Predict(Score), given) for _ in range(2))
        first["tags"].append("x")
        assert second["tags"] == [] == given["tags"]

    @pytest.mark.parametrize(
        ("module", "options", "message"),
        [
            (ds.Predict(Score), {"defaults": {"lable": "?"}}, "'lable', which is no output"),
            (ds.Predict(Score), {"defaults": {"score": "many"}}, "the default 'many' of 'score' is none"),
            (ds.Predict(Score), {"on_error": "skip", "defaults": {"score": 1}}, "for on_error='default'"),
            (lambda text: {"n": 1}, {}, "needs defaults="),
            (
                ds.Predict(Score),
                {"outputs": ["label", "tag"]},
                "outputs= names 'tag', but its outputs are label",
            ),
            (
                *(lambda text: {"n": 1}, {"defaults": {"n": 1}, "outputs": {"m": "n"}}),
                "outputs= names 'm', but defaults= names no value for it",
            ),
        ],
    )
    def test_what_does_not_fit_is_said_when_the_program_is_made(self, module, options, message):
        part = as_part(module).using(**{"on_error": "default", **options})
        with pytest.raises(ConfigurationError, match=message):
            ds.Program(part=part)
        with pytest.raises(ConfigurationError, match=message):
            ds.Stream.from_iterable([]).through(part)


def program():
    return ds.Program(score=Fails().using(on_error="default", defaults={"label": "none"}), after=after)


ROWS = [{"text": text} for text in ("a", "bad one", "c", "bad two")]
LINES = ["good 5", "none 3", "good 5", "none 3"]


class TestProgram:
    def test_called(self):
        made = program()
        assert [made(**row).line for row in ROWS] == LINES

    @pytest.mark.parametrize("split", [None, False])
    def test_in_a_flow(self, split):
        rows, letters = MemorySink(), MemorySink()
        stream = ds.Stream.from_iterable(ROWS).through(program(), split=split, order="ordered")
        report = stream.write(rows, dead_letters=letters).run(state=None, quiet=True)
        assert [row.line for row in rows.rows] == LINES
        assert letters.rows == []
        assert report.to_json()["defaulted"] == 2

    def test_the_fallback_goes_first_and_the_default_after_it(self):
        def other(text):
            if "two" in text:
                raise ValueError("no")
            return {"label": "other", "score": 0, "tags": None}

        part = Fails().using(on_error="default", defaults={"label": "none"}, fallback=other)
        made = ds.Program(score=part, after=after)
        expected = ["good 5", "other 0", "good 5", "none 3"]
        assert [made(**row).line for row in ROWS] == expected
        stream = ds.Stream.from_iterable(ROWS).through(made, order="ordered")
        assert [row["line"] for row in stream.to_list()] == expected

    def test_outputs_are_renamed_after_the_defaults(self):
        part = Fails().using(on_error="default", defaults={"label": "none"}, outputs={"label": "what"})
        made = ds.Program(score=part)
        assert made(text="bad").toDict() == {"what": "none"}
        assert ds.Stream.from_iterable(ROWS[1:2]).through(made).to_list() == [{**ROWS[1], "what": "none"}]

    def test_a_missing_field_is_a_failure_too(self):
        rows = [{"text": "a"}, {"other": "b"}]
        stream = ds.Stream.from_iterable(rows).through(
            Fails(), on_error="default", defaults={"label": "none"}, order="ordered"
        )
        assert [row["label"] for row in stream.to_list()] == ["good", "none"]

    def test_the_step_says_it_for_all_parts(self):
        made = ds.Program(score=Fails(), after=after)
        with pytest.raises(ConfigurationError, match="after: what it returns is not known"):
            ds.Stream.from_iterable(ROWS).through(made, on_error="default", defaults={"label": "none"})
        parts = ds.Program(score=Fails(), after=as_part(after).using(on_error="dead_letter"))
        stream = ds.Stream.from_iterable(ROWS).through(
            parts, on_error="default", defaults={"label": "none"}, order="ordered"
        )
        assert [row["line"] for row in stream.to_list()] == LINES
        with pytest.raises(ConfigurationError, match="'lable', which no part makes"):
            ds.Stream.from_iterable(ROWS).through(parts, on_error="default", defaults={"lable": "none"})

    def test_a_silent_model_is_waited_for_and_no_reason_for_defaults(self):
        answers = iter([LMServerError("down"), LMServerError("down")])

        def answer(request):
            error = next(answers, None)
            if error is not None:
                raise error
            return {"label": "x", "score": 1, "tags": []}

        lm = ds.ScriptedLM(answer, cache=False)
        made = ds.Program(score=ds.Predict(Score).using(on_error="default"))
        stream = ds.Stream.from_iterable([{"text": "a"}]).through(made, split=False)
        assert [row["label"] for row in stream.to_list(lm=lm)] == ["x"]

    def test_called_alone_a_silent_model_is_a_failure(self):
        lm = ds.ScriptedLM([LMServerError("down")])
        made = ds.Program(score=ds.Predict(Score).using(on_error="default"))
        with ds.context(lm=lm):
            assert made(text="a").score == 3

    def test_what_concerns_the_flow_is_no_row_error(self):
        with pytest.raises(ConfigurationError):
            ds.Program(score=ds.Predict(Score).using(on_error="default"))(text="a")  # no model

    def test_dead_letters_are_what_they_were(self):
        with pytest.raises(RecordError):
            ds.Program(score=Fails())(other="b")
