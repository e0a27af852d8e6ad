"""Which Python `make` takes."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "find-python"


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3": 0, "python3.11": 0, "python3.12": 0}, "python3"),
        ({"python3": 1, "python3.10": 0, "python3.11": 0, "python3.12": 0}, "python3.12"),
        ({"python3.10": 0, "python3.12": 1}, "python3.10"),
        ({"python3": 1}, ""),
    ],
)
def test_the_first_of_the_path_that_will_do(tmp_path, there, taken):
    for name, status in there.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    found = subprocess.run(
        ["/bin/sh", str(SCRIPT)], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == (str(tmp_path / taken) if taken else "")
