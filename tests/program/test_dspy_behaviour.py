"""Programs that were written for DSPy behave as they do there."""

import sys
from pathlib import Path

import pytest

import dspy_stream
from dspy_stream.configuration import configure
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.types import Choice, Response, Usage

sys.path.insert(0, str(Path(__file__).parent))

from behaviour import cases, difference, outcome


def model(answers, n=1):
    """A model that gives these answers, `n` at a time."""
    if n == 1:
        return ScriptedLM(answers)
    texts = ["\n\n".join(f"[[ ## {key} ## ]]\n{value}" for key, value in given.items()) for given in answers]
    calls = [texts[at : at + n] for at in range(0, len(texts), n)]
    return ScriptedLM([Response(tuple(Choice(text, "stop") for text in call), Usage(0, 0)) for call in calls])


@pytest.fixture(autouse=True)
def settings_as_before():
    yield
    configure(lm=None, track_usage=False, adapter=None, callbacks=[], rm=None, num_threads=8, max_errors=10)


@pytest.mark.parametrize(
    ("code", "expected"),
    [pytest.param(code, expected, id=name) for name, code, expected in cases()],
)
def test_case(code, expected):
    assert difference(expected, *outcome(code, dspy_stream, model)) == ""


def test_a_case_can_fail():
    assert len(cases()) > 300
    for expected in ("= 4", "! ValueError", "! ZeroDivisionError: other words"):
        assert difference(expected, *outcome("1 + 2", dspy_stream, model)) == "= 3"
        assert difference(expected, *outcome("1 / 0", dspy_stream, model)).startswith("! ZeroDivisionError: ")
