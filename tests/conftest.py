"""Which tests run: those that start and kill processes wait for ``--chaos``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# An example is judged by what comes out. How fast it was made says how busy the machine is: the first
# text of a clean checkout takes seconds alone, for the table of all characters.
settings.register_profile(
    "whatever the pace",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("whatever the pace")

CHAOS = Path(__file__).parent / "chaos"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos", action="store_true", help="run the tests that kill real processes, and only those"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--chaos`` the chaos tests alone, without it all others; a mark makes a test one of them."""
    wanted = bool(config.getoption("--chaos"))
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        chaos = CHAOS in item.path.parents or item.get_closest_marker("chaos") is not None
        if chaos:
            item.add_marker(pytest.mark.chaos)
        (kept if chaos == wanted else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept
