"""The docs run: every docstring example, and every block of the README in order.

In the README, blocks marked ``python`` share one namespace, and lines that begin with ``$ `` are
commands; both run in one empty folder, from top to bottom. A command must succeed unless it ends
in ``# exit CODE``. Blocks of another kind are for reading.
"""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dspy_stream
from dspy_stream.configuration import configure

ROOT = Path(dspy_stream.__file__).parent.parent
README = ROOT / "README.md"
MODULES = sorted(
    ["dspy_stream", *(found.name for found in pkgutil.walk_packages(dspy_stream.__path__, "dspy_stream."))]
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"#\s*exit (\d+)\s*$")


@pytest.fixture(autouse=True)
def settings_as_before():
    yield
    configure(lm=None, adapter=None, journal=None, track_usage=False)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "dspy":
            raise
        pytest.skip("DSPy is not installed here")
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_public_entry_points_have_an_example():
    wanted = [
        *("Example", "Prediction", "PredictorParameters", "Parameters", "Signature", "Module", "Predict"),
        *("ChainOfThought", "LM", "LocalLM", "ScriptedLM", "Stream", "Row", "configure", "context"),
    ]
    for name in wanted:
        assert ">>> " in (getattr(dspy_stream, name).__doc__ or ""), name


def blocks(text):
    """Kind, line of the first character, and body of every block."""
    return [
        (match.group(1), text.count("\n", 0, match.start(2)) + 1, match.group(2))
        for match in _FENCE.finditer(text)
    ]


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        environment.pop(name, None)
    namespace = {"__name__": "__main__"}
    for kind, line, body in blocks(README.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile("\n" * (line - 1) + body, str(README), "exec"), namespace)
            continue
        for number, text in enumerate(body.splitlines(), line):
            if text.startswith("$ "):
                run(text[2:], number, environment)


def run(command, line, environment):
    wanted = _EXIT.search(command)
    made = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert made.returncode == (int(wanted.group(1)) if wanted else 0), (
        f"README.md:{line}: {command}\n{made.stderr}"
    )
    assert "Traceback" not in made.stderr, f"README.md:{line}: {command}\n{made.stderr}"


def test_every_fence_of_the_readme_is_closed():
    assert README.read_text(encoding="utf-8").count("\n```") % 2 == 0


def test_every_verb_the_readme_names_exists():
    text = README.read_text(encoding="utf-8")
    verbs = set(re.findall(r"^(?:\$ )?dspy-stream ((?:dlq|state) \w+|run)", text, re.MULTILINE))
    from dspy_stream.cli import dlq, state

    known = {"run"}
    for group, app in (("dlq", dlq.app), ("state", state.app)):
        known |= {
            f"{group} {command.name or command.callback.__name__}" for command in app.registered_commands
        }
    assert verbs <= known


def test_options_of_the_command_in_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    main = importlib.import_module("dspy_stream.cli.main")
    help_text = ""
    for arguments in (["run"], ["dlq", "list"], ["dlq", "retry"], ["dlq", "resolve"], ["state", "gc"]):
        shown = CliRunner().invoke(main.app, [*arguments, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        help_text += shown.output
    for line in re.findall(r"^(?:\$ )?dspy-stream .*$", text, re.MULTILINE):
        for option in re.findall(r"(?<!\w)--[a-z-]+", line.partition("#")[0]):
            assert option in help_text, f"{option} in {line!r}"
