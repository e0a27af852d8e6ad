"""Prompts in DSPy's own words, compared with a real DSPy where one is at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dspy_stream
from dspy_stream.errors import ConfigurationError
from dspy_stream.interop import DSPyAdapter

sys.path.insert(0, str(Path(__file__).parent))

from environments import MAKING, VERSIONS, environment, python_of

ROOT = Path(dspy_stream.__file__).parents[1]
pytestmark = pytest.mark.timeout(MAKING + 180)


def test_without_dspy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dspy", None)
    with pytest.raises(ConfigurationError, match=r"pip install .dspy_stream\[dspy\]"):
        DSPyAdapter()


def test_the_package_is_imported_without_dspy():
    code = "import sys, dspy_stream.interop; sys.exit('dspy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture(scope="module", params=list(VERSIONS))
def seen(request):
    done = subprocess.run(
        [python_of(request.param), Path(__file__).with_name("with_dspy.py")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["what"]: line for line in lines}


@pytest.mark.parametrize("what", ["with 0 demos", "with 2 demos", "answer", "head and format", "history"])
def test_both_say_and_read_the_same(seen, request, what):
    adapters = ["ChatAdapter", "JSONAdapter"]
    if request.node.callspec.params["seen"] == "current":
        adapters += ["XMLAdapter", "BAMLAdapter"]
    for adapter in adapters:
        line = seen[f"{adapter} {what}"]
        assert line["ours"] == line["theirs"]
        assert line["ours"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("beyond a constraint", ["AdapterParseError", "urgency", "5"]),
        ("no answer", ["AdapterParseError", "`intent`"]),
        ("deep", ["AdapterParseError"]),
        ("missing input", ["AdapterRenderError", "`tags` is missing"]),
        ("surrogate", ["AdapterRenderError"]),
        ("whole", ["ConfigurationError", "replaces format()"]),
        ("two steps", ["ConfigurationError", "dspy_stream.TwoStepAdapter"]),
        ("no adapter", ["ConfigurationError", "one of DSPy's adapters"]),
        ("picture", ["ConfigurationError", "`picture`"]),
    ],
)
def test_what_cannot_be_is_said(seen, what, said):
    assert all(words in seen["refusals"]["ours"][what] for words in said), seen["refusals"]["ours"][what]


def test_what_is_not_carried_is_said_of_demos_without_more_words(seen):
    said = seen["refusals"]["ours"]["picture in demos"]
    assert said.startswith("ConfigurationError: field `picture`: DSPyAdapter carries text only")


def test_a_predictor_runs_under_it_and_repairs(seen):
    intent, urgency, calls, request = seen["called"]["ours"]
    assert (intent, urgency, calls) == ("card", 2, 2)
    assert "[[ ## completed ## ]]" in request
