"""Pythons that have a certain DSPy, or other packages: named by a variable, or, in CI, made for the tests."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What is installed, the variable that names a Python which has it, and what its versions begin with.
VERSIONS = {
    "current": ("dspy==3.4.1", "DSPY_STREAM_DSPY", "3."),
    "old": ("dspy==2.6.27", "DSPY_STREAM_DSPY26", "2.6"),
}
# The same for those whose tools are taken over, with pytest, which runs the cases in them.
TOOLS = {
    "tools_current": ("mcp==2.3.0", "DSPY_STREAM_TOOLS", "2."),
    "tools_old": ("mcp==1.30.0", "DSPY_STREAM_TOOLS_OLD", "1."),
}
_BESIDE = dict.fromkeys(TOOLS, ("langchain-core", "pytest", "pytest-timeout"))
# Seconds for making one: some 100 MB are fetched where nothing is in the installer's cache, and linked
# in a second where all is. Whichever test comes first waits for it, so its own limit has to be longer.
MAKING = 240


def python_of(which):
    """The path of a Python; where there is none the test is skipped, or, in CI, fails."""
    python, reason = _python_with(which)
    if python:
        return python
    return pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@cache
def _python_with(which):
    """The path of a Python, or "" and the reason why there is none."""
    wanted, variable, version = {**VERSIONS, **TOOLS}[which]
    package = wanted.partition("=")[0]
    if os.environ.get(variable):
        return os.environ[variable], ""
    if importlib.util.find_spec(package) and importlib.metadata.version(package).startswith(version):
        return sys.executable, ""
    if not os.environ.get("CI"):
        return "", f"no {wanted} here; {variable} may name a Python that has it and this package's needs"
    try:
        return _made(which, wanted), ""
    except subprocess.TimeoutExpired:
        return "", f"an environment with {wanted} could not be made in {MAKING} s"
    except OSError as error:
        return "", f"an environment with {wanted} could not be made: {error}"
    except subprocess.CalledProcessError as error:
        return "", f"an environment with {wanted} could not be made: {error.stderr.decode()[-2000:]}"


def _made(which, wanted):
    """Make it beside this Python's own packages, if it is not there yet; every version of it is pinned."""
    pins = HERE / (f"{which}.txt" if which in TOOLS else f"dspy_{which}.txt")
    needs = hashlib.sha256(pins.read_bytes() + (ROOT / "pyproject.toml").read_bytes())
    folder = Path(sys.prefix) / "interop" / f"{which}-{needs.hexdigest()[:12]}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        begun = Path(tempfile.mkdtemp(dir=folder.parent))  # two test runs may make it at the same time
        try:
            _install(
                begun, [wanted, *_BESIDE.get(which, ()), "-r", str(ROOT / "pyproject.toml"), "-c", str(pins)]
            )
            os.rename(begun, folder)
        except OSError:  # the other was faster, or it could not be made
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(begun, ignore_errors=True)
    return str(folder / "bin" / "python")


def _install(folder, wanted):
    # uv, because pip takes minutes to resolve DSPy 2.6 and to unpack what it has in its cache.
    uv = [sys.executable, "-m", "uv"]
    ends = time.monotonic() + MAKING
    python = str(folder / "bin" / "python")
    for command in (
        [*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
        [*uv, "pip", "install", "--quiet", "--python", python, *wanted],
    ):
        subprocess.run(command, check=True, timeout=max(1.0, ends - time.monotonic()), capture_output=True)


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
