"""Token limits that headers tell: used up, and hardly ever run into, however uneven the calls are."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dspy_stream.lm.window import START
from tests.lm.token_servers import Anthropic, OpenAI, Size, Traffic, most


def uneven(rng: random.Random) -> Size:
    characters = min(40_000, int(rng.lognormvariate(7.0, 1.2))) + 100
    return characters, min(2000, int(rng.lognormvariate(4.5, 0.8))) + 1


def few_are_large(rng: random.Random) -> Size:
    return (20_000 if rng.random() < 0.1 else 400), 50


SERVERS: dict[str, Callable[[], OpenAI]] = {
    "small": lambda: OpenAI(90_000.0),
    "large": lambda: OpenAI(600_000.0),
    "keeps room for the answer": lambda: OpenAI(90_000.0, reserved=1000),
    "large, keeps room": lambda: OpenAI(600_000.0, reserved=1000),
    "Anthropic": lambda: Anthropic(80_000.0, 16_000.0),
    "large Anthropic": lambda: Anthropic(400_000.0, 80_000.0),
}
SECONDS = 120.0


def share(server: OpenAI, taken: list[tuple[float, Size]], begin: float, end: float) -> float:
    """How much of what it allowed was used, of the kind that there was least of."""
    used = dict.fromkeys(server.kinds, 0.0)
    for at, size in taken:
        if begin <= at < end:
            for name, units in server.takes(size).items():
                used[name] += units
    return max(used[name] / (kind.limit * (end - begin) / 60.0) for name, kind in server.kinds.items())


@pytest.mark.parametrize("latency", [0.2, 5.0])
@pytest.mark.parametrize("size", [uneven, few_are_large])
@pytest.mark.parametrize("name", SERVERS)
def test_what_is_allowed_is_used_and_nothing_asked_for_in_vain(
    name: str, size: Callable[[random.Random], Size], latency: float
) -> None:
    server = SERVERS[name]()
    traffic = Traffic(server, size, lambda rng: latency * rng.uniform(0.6, 1.4))
    traffic.run(SECONDS)
    # The allowance was full to begin with, and no more than a tenth of it may be left.
    assert share(server, traffic.taken, 0.0, SECONDS) >= 0.95 * (SECONDS + 60.0) / SECONDS - 0.1
    assert share(server, traffic.taken, 60.0, SECONDS) >= 0.9
    # And the few that were on their way before the provider had said anything.
    assert traffic.refused < 0.02 * len(traffic.taken) + 6


@pytest.mark.parametrize("latency", [0.2, 5.0])
def test_what_comes_back_at_one_moment_is_waited_for(latency: float) -> None:
    server = OpenAI(600_000.0, at_once=True)
    traffic = Traffic(server, uneven, lambda rng: latency * rng.uniform(0.6, 1.4))
    traffic.run(4 * 60.0)
    assert share(server, traffic.taken, 0.0, 4 * 60.0) >= 0.9
    assert traffic.refused < 0.02 * len(traffic.taken)


def even(rng: random.Random) -> Size:
    return 1200, 150


RESERVING: dict[str, Callable[[bool], OpenAI]] = {
    "little": lambda late: OpenAI(90_000.0, reserved=1000, back=True, late=late),
    "much": lambda late: OpenAI(90_000.0, reserved=4096, back=True, late=late),
    "large": lambda late: OpenAI(600_000.0, reserved=4096, back=True, late=late),
    "large, very much": lambda late: OpenAI(600_000.0, reserved=16_000, back=True, late=late),
    "Anthropic": lambda late: Anthropic(80_000.0, 16_000.0, reserved=1000, late=late),
    "large Anthropic": lambda late: Anthropic(400_000.0, 80_000.0, reserved=4096, late=late),
}
MINUTES = 180.0


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("latency", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("size", [uneven, even])
@pytest.mark.parametrize("name", RESERVING)
def test_room_that_is_kept_for_answers_and_given_back_is_neither_lost_nor_run_into(
    name: str, size: Callable[[random.Random], Size], latency: float, late: bool
) -> None:
    def draw(rng: random.Random) -> float:
        return latency * rng.uniform(0.6, 1.4)

    traffic = Traffic(RESERVING[name](late), size, draw)
    traffic.run(MINUTES)
    ideal = most(RESERVING[name](late), size, draw, MINUTES)
    assert len(traffic.taken) >= 0.92 * len(ideal)
    # But for those that are sent before the first word.
    assert traffic.refused < 0.02 * len(traffic.taken) + START


@pytest.mark.parametrize("latency", [0.2, 1.0, 5.0])
@pytest.mark.parametrize(("limit", "reserved"), [(90_000.0, 4096), (600_000.0, 4096), (600_000.0, 16_000)])
def test_room_that_is_kept_within_a_minute_is_given_back_within_it(
    limit: float, reserved: int, latency: float
) -> None:
    def draw(rng: random.Random) -> float:
        return latency * rng.uniform(0.6, 1.4)

    def server() -> OpenAI:
        return OpenAI(limit, reserved=reserved, at_once=True, back=True)

    traffic = Traffic(server(), even, draw)
    traffic.run(MINUTES)
    assert len(traffic.taken) >= 0.9 * len(most(server(), even, draw, MINUTES))
    assert traffic.refused < 0.03 * len(traffic.taken) + START
