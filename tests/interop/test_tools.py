"""The tools of real MCP servers and of LangChain, with the libraries of today and the ones before."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from environments import MAKING, TOOLS, environment, python_of  # noqa: E402


@pytest.mark.timeout(MAKING + 400)
@pytest.mark.parametrize("which", TOOLS)
def test_the_cases_hold(which, tmp_path):
    python = python_of(which)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "--noconftest", "--timeout=90", str(HERE / "in_tools.py")],
        env=environment(),
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
