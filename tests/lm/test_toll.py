"""What calls take of an allowance, learnt from headers alone."""

from __future__ import annotations

import random

import pytest

from dspy_stream.lm.rates import Allowance
from dspy_stream.lm.toll import Mark, Toll

LIMIT = 1_000_000.0
GUESS = 300.0


def learnt(*, room: float, more: float, rooms: bool = True, calls: int = 400) -> Toll:
    """After so many calls that took ``more`` than was guessed and ``room`` while they were open."""
    toll, rng = Toll(GUESS, rooms=rooms), random.Random(3)
    left, flying, now = LIMIT, 0, 0.0
    for number in range(1, calls + 1):
        now += 0.1
        flying += 1
        left -= GUESS + more + room
        said = Allowance(LIMIT, left)
        mark = Mark(number, now, GUESS * number, 0.0, flying, [now, 1.0])
        if number == 1:
            toll.first(mark, said)
        toll.heard(mark, said, 0.0)
        back = rng.randrange(flying + 1) if rng.random() < 0.3 else 0
        flying -= back
        left += back * room
    return toll


@pytest.mark.parametrize(
    ("room", "more"), [(4000.0, 0.0), (4000.0, 200.0), (0.0, 200.0), (0.0, 0.0), (0.0, 900.0)]
)
def test_room_that_comes_back_is_told_from_what_is_taken_for_good(room: float, more: float) -> None:
    toll = learnt(room=room, more=more)
    assert toll.more == pytest.approx(more, abs=30.0, rel=0.1)
    assert toll.takes(GUESS) == pytest.approx(GUESS + more + room, abs=200.0)
    assert room - 500.0 <= toll.back <= room + 1e-6 + 100.0 * (room > 0.0)


def test_no_room_is_seen_where_none_is_kept() -> None:
    toll = learnt(room=0.0, more=200.0, rooms=False)
    assert (toll.room, toll.back) == (0.0, 0.0)
    assert toll.takes(GUESS) == pytest.approx(GUESS + 200.0, abs=5.0)


def test_nothing_is_given_back_before_it_is_known_that_it_comes_back() -> None:
    toll = Toll(GUESS, rooms=True)
    toll.first(Mark(1, 0.0, GUESS, 0.0, 1, [0.0, 1.0]), Allowance(100_000.0, 98_700.0))
    assert toll.takes(GUESS) == pytest.approx(1300.0, abs=60.0)
    assert toll.back <= 150.0


def test_a_refusal_where_there_was_just_enough_says_that_it_was_not() -> None:
    toll = Toll(GUESS, rooms=True)
    toll.refused(400.0)
    assert toll.takes(GUESS) == pytest.approx(440.0)
    for left in (None, 100.0, 5_000.0):  # not known, seen before, another reason
        toll.refused(left)
        assert toll.takes(GUESS) == pytest.approx(440.0)
    plain = Toll(GUESS, rooms=False)
    plain.refused(400.0)
    assert plain.takes(GUESS) == GUESS


def test_calls_that_take_nothing_divide_by_nothing() -> None:
    toll = Toll(0.0, rooms=False)
    toll.first(Mark(1, 0.0, 0.0, 0.0, 1, [0.0, 1.0]), Allowance(100.0, 100.0))
    for number in range(2, 40):
        toll.heard(Mark(number, float(number), 0.0, 0.0, 1, [0.0, 1.0]), Allowance(100.0, 90.0), 0.0)
    assert 0.0 <= toll.takes(0.0) < 5.0
