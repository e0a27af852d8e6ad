"""The cases of tests/program/behaviour.txt, under the DSPy that they were observed with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from environments import MAKING, environment, python_of  # noqa: E402


@pytest.mark.timeout(MAKING + 120)
def test_they_hold_under_dspy(tmp_path):
    python = python_of("current")
    done = subprocess.run(
        [python, HERE.parent / "program" / "behaviour.py"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == []
