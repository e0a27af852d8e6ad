"""Pythons that have a certain DSPy: named by a variable, or, in CI, made for the tests."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What is installed, the variable that names a Python which has it, and what its versions begin with.
VERSIONS = {
    "current": ("dspy==3.4.1", "DSPY_STREAM_DSPY", "3."),
    "old": ("dspy>=2.6,<2.7", "DSPY_STREAM_DSPY26", "2.6"),
}
_LONGEST = 110  # seconds for making one


@cache
def python_with(which):
    """The path of a Python, or "" and the reason why there is none."""
    wanted, variable, version = VERSIONS[which]
    if os.environ.get(variable):
        return os.environ[variable], ""
    if importlib.util.find_spec("dspy") and importlib.metadata.version("dspy").startswith(version):
        return sys.executable, ""
    if not os.environ.get("CI"):
        return "", f"no {wanted} here; {variable} may name a Python that has it and this package's needs"
    try:
        return _made(which, wanted), ""
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"no environment with {wanted} could be made in {_LONGEST} s: {str(error)[:200]}"


def _made(which, wanted):
    folder = Path(tempfile.gettempdir()) / f"dspy_stream_{which}_{sys.version_info[0]}{sys.version_info[1]}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
        install = [wanted, str(ROOT)]
        if uv is not None:
            _run([uv, "venv", "--clear", "--python", sys.executable, str(folder)])
            _run([uv, "pip", "install", "--quiet", "--python", str(python), *install])
        else:
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            _run([str(python), "-m", "pip", "install", "--quiet", *install])
        (folder / "ready").touch()
    return str(python)


def _run(command):
    subprocess.run(command, check=True, timeout=_LONGEST, capture_output=True)


def environment(**more):
    """Variables for such a Python: this checkout's package, no cache of DSPy's, no network at import."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DSPY_CACHEDIR": os.path.join(tempfile.gettempdir(), "dspy_stream_no_cache"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONWARNINGS": "ignore",
        **more,
    }
