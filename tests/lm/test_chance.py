"""Refusals that come at any pace, limits, and both at once: all of it in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dspy_stream.lm.chance import Chance
from dspy_stream.lm.controller import Controller, Limits
from tests.lm.limit_servers import (
    Bucket,
    FixedWindow,
    Flaky,
    Outcome,
    Server,
    Simulation,
    SlidingWindow,
    Unlimited,
    latencies,
)

KINDS: dict[str, Callable[[float], Server]] = {
    "bucket": lambda rate: Bucket(rate, rate),
    "fixed window": FixedWindow,
    "sliding window": SlidingWindow,
}
LATENCY, CAPACITY, SECONDS = 0.05, 64, 20.0


def flaky(share: float, seed: int, pause: float = 0.0, limits: Limits | None = None) -> float:
    """Calls taken by a server without a limit, as a share of what rows that wait when refused leave."""
    simulation = Simulation(
        Flaky(Unlimited(), share, seed, pause),
        latencies(LATENCY),
        hint="exact" if pause else "",
        capacity=CAPACITY,
        seed=seed,
    )
    simulation.control = simulation.out.control = Controller(limits or Limits())
    out = simulation.run(SECONDS)
    # A row that was refused waits a quarter of a second in the mean, or for as long as it was asked to.
    busy = LATENCY + share / (1.0 - share) * max(pause, 0.27)
    return len(out.taken) / (SECONDS * CAPACITY / busy)


def limited(
    server: Server, *, seed: int = 1, hint: str = "", changes: tuple[tuple[float, float], ...] = ()
) -> Outcome:
    return Simulation(server, latencies("log-normal", seed), seed=seed, hint=hint, changes=changes).run(60.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pause", [0.0, 1.0])
@pytest.mark.parametrize(("share", "least"), [(0.01, 0.93), (0.04, 0.90), (0.10, 0.70)])
def test_refusals_by_chance_do_not_slow_it_down(share: float, least: float, pause: float, seed: int) -> None:
    assert flaky(share, seed, pause) >= least


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pause", [0.0, 1.0])
def test_nor_where_a_limit_is_set_by_hand(pause: float, seed: int) -> None:
    assert flaky(0.04, seed, pause, Limits(requests_per_minute=120_000)) >= 0.85


def test_a_limit_set_by_hand_is_kept_to() -> None:
    simulation = Simulation(Flaky(Unlimited(), 0.04, 1), latencies(LATENCY), capacity=CAPACITY)
    simulation.control = simulation.out.control = Controller(Limits(requests_per_minute=6000))
    out = simulation.run(30.0)
    made = len(out.taken) + len(out.refused)
    assert 0.90 * 3000 <= made <= 1.01 * 3000 + 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [5.0, 50.0, 500.0])
@pytest.mark.parametrize("seed", range(3))
def test_limits_are_found_as_before(kind: str, rate: float, seed: int) -> None:
    out = limited(KINDS[kind](rate), seed=seed)
    assert len(out.taken) >= (0.95 if rate >= 50.0 else 0.88) * rate * 60.0
    assert out.wasted < (0.02 if rate >= 50.0 else 0.15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [5.0, 50.0, 500.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_limit_is_found_among_refusals_by_chance(kind: str, rate: float, seed: int) -> None:
    """Every fiftieth call is refused for no reason: the pace is not taken from those."""
    out = limited(Flaky(KINDS[kind](rate), 0.02, seed), seed=seed)
    assert len(out.taken) >= 0.6 * rate * 60.0
    assert out.wasted < (0.08 if rate >= 50.0 else 0.15)


def stalls(every: float, least: float, most: float, seed: int) -> list[tuple[float, float]]:
    rng = random.Random(seed)
    found, end = [], 0.0
    while end < 60.0:
        begin = end + rng.expovariate(1.0 / every)
        end = begin + rng.uniform(least, most)
        found.append((begin, end))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("every", "least", "most"), [(1.0, 0.05, 0.15), (0.3, 0.02, 0.08)], ids=["rare", "often"]
)
def test_stalls_of_our_own_are_not_taken_for_chance(
    kind: str, every: float, least: float, most: float
) -> None:
    for seed in range(6):
        out = Simulation(
            KINDS[kind](50.0),
            latencies("log-normal", seed),
            seed=seed,
            stalls=stalls(every, least, most, seed),
        ).run(60.0)
        assert len(out.taken) >= 0.80 * 50.0 * 60.0
        assert out.wasted < 0.022


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_that_comes_back_to_life_is_followed(kind: str) -> None:
    out = limited(Flaky(KINDS[kind](50.0), 0.02, 4), changes=((20.0, 20.0), (40.0, 100.0)))
    assert out.rate(25.0, 40.0) >= 0.5 * 20.0
    assert len([t for t in out.refused if 20.0 <= t < 40.0]) <= 150
    assert out.rate(50.0, 60.0) > 35.0


def test_the_pace_comes_back_when_refusals_begin_and_end() -> None:
    server = Flaky(Unlimited(), 0.0, 1)
    simulation = Simulation(server, latencies(LATENCY), capacity=CAPACITY)
    simulation.at(5.0, lambda: setattr(server, "share", 0.05))
    simulation.at(15.0, lambda: setattr(server, "share", 0.0))
    out = simulation.run(20.0)
    free = CAPACITY / LATENCY
    assert out.rate(2.0, 5.0) >= 0.98 * free
    assert out.rate(6.0, 15.0) >= 0.70 * free
    assert out.rate(16.0, 20.0) >= 0.98 * free


# ------------------------------------------------------------------------- the decisions alone


def test_lone_refusals_are_ignored_and_a_row_of_them_is_heeded() -> None:
    chance = Chance()
    assert [chance.free(1.0, number, number) for number in (100, 200, 300)] == ["ignore"] * 3
    assert "heed" in [chance.free(2.0, number, number) for number in range(301, 306)]


def test_a_share_that_stays_at_a_lower_pace_raises_it_and_a_limit_ends_that() -> None:
    chance = Chance()
    said = [chance.paced(1.0, number, number, 0.0) for number in range(20, 220, 20)]
    assert said == ["heed"] * 4 + ["scale"] + ["ignore"] * 4 + ["scale"]
    assert chance.climbing
    assert chance.scale > 1.0
    assert chance.share == pytest.approx(5 / 90)  # one that follows within two calls would not count
    assert "back" in [chance.raised(2.0, number, number) for number in range(201, 220)]
    assert not chance.climbing


def test_a_share_that_is_gone_at_a_lower_pace_was_the_pace() -> None:
    chance = Chance()
    for number in range(20, 120, 20):
        chance.paced(1.0, number, number, 0.0)
    assert chance.scale < 1.0
    assert chance.paced(9.0, 600, 600, 1.2) == "heed"
    assert chance.share == 0.0
    assert not chance.climbing
