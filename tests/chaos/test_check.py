"""The checker must be able to find every kind of fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.chaos.check import check

LINES = [b'{"key": "a"}', b'{"key": "b"}', b'{"key": "c"}', b"{torn"]
GOOD = [{"key": "a", "v": "A", "row_id": "1"}, {"key": "b", "v": "B", "row_id": "2"}]
DEAD = [("c", "map"), (repr(b"{torn"), "read")]


def fate(row: Mapping[str, Any]) -> Mapping[str, str] | str:
    return "map" if row["key"] == "c" else {"v": row["key"].upper()}


def test_a_right_run_has_no_problems() -> None:
    assert check(LINES, GOOD, DEAD, fate, ordered=True).problems == {}


@pytest.mark.parametrize(
    ("kind", "out", "dead"),
    [
        ("lost", GOOD[:1], DEAD),
        ("lost", GOOD, DEAD[:1]),
        ("duplicate", [*GOOD, GOOD[0]], DEAD),
        ("duplicate", GOOD, [*DEAD, DEAD[0]]),
        ("duplicate", [GOOD[0], {**GOOD[1], "row_id": "1"}], DEAD),
        ("invented", [*GOOD, {"key": "z", "v": "Z", "row_id": "9"}], DEAD),
        ("invented", GOOD, [*DEAD, ("z", "map")]),
        ("reordered", GOOD[::-1], DEAD),
        ("wrong", [{**GOOD[0], "v": "B"}, GOOD[1]], DEAD),
        ("wrong", GOOD, [("c", "parse"), DEAD[1]]),
        ("both", [*GOOD, {"key": "c", "v": "C", "row_id": "3"}], DEAD),
    ],
)
def test_a_fault_is_found(kind: str, out: list[dict[str, Any]], dead: list[tuple[str, str]]) -> None:
    assert kind in check(LINES, out, dead, fate, ordered=True).problems
