"""A folder, a model server and a seed for each test."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.crash import Place, kill_what_is_left, model_server

# Those that take longest begin first, so that the workers end together.
LONGEST = ("test_soak.py", "test_kill.py", "test_model.py", "test_compose.py", "test_parts.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which tests are begun."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A test that fails takes its processes along, or the next would fail for them."""
    yield
    kill_what_is_left()


@pytest.fixture
def seed() -> int:
    """From CHAOS_SEED, else a new one; printed, so that a failure can be run again."""
    found = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 1_000_000)
    print(f"CHAOS_SEED={found}")
    return found


@pytest.fixture
def rng(seed: int) -> random.Random:
    """All chance of a test."""
    return random.Random(seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose path no other user can write."""
    return tmp_path


@pytest.fixture
def place(folder: Path) -> Iterator[Place]:
    """The pipeline flow with a model server that answers at once."""
    with model_server(folder) as (api, _):
        yield Place(folder, api)


@pytest.fixture
def log(folder: Path) -> Path:
    """The call log."""
    return folder / "calls.jsonl"


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    point = folder / "disk"
    point.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("a small file system needs root and mount(8)")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=6m,mode=0755", "tmpfs", str(point)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"mounting is not possible here: {made.stderr.decode().strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)
