"""Limits that find themselves, against servers of every kind, in virtual time."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.errors import LMRateLimitError, LMServerError
from dspy_stream.lm.controller import Controller
from dspy_stream.lm.pace import Pacer
from dspy_stream.lm.window import START, Window
from tests.lm.limit_servers import (
    Bucket,
    FixedWindow,
    Server,
    Simulation,
    SlidingWindow,
    Storm,
    Unlimited,
    latencies,
)

SERVERS: dict[str, Callable[[], Server]] = {
    "burst 1": lambda: Bucket(50.0, 1.0),
    "burst 10": lambda: Bucket(50.0, 10.0),
    "burst 50": lambda: Bucket(50.0, 50.0),
    "fixed window": lambda: FixedWindow(50.0),
    "sliding window": lambda: SlidingWindow(50.0),
}
LATENCIES = (0.005, 0.05, 0.2, "log-normal")
# A bucket that holds one token loses a part of it whenever a call is a millisecond late, and refuses
# one that is early: no sender whose timers have a grain gets all of it.
STRICT = "burst 1"


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("name", SERVERS)
def test_the_allowed_rate_is_used_and_little_is_refused(name: str, latency: float | str) -> None:
    out = Simulation(SERVERS[name](), latencies(latency)).run(60.0)
    assert len(out.taken) >= (0.88 if name == STRICT else 0.95) * 50.0 * 60.0
    assert out.wasted < 0.02


@pytest.mark.parametrize("latency", [0.05, "log-normal"])
@pytest.mark.parametrize("name", [name for name in SERVERS if name != STRICT])
def test_the_time_to_wait_is_obeyed_where_it_is_said_exactly(name: str, latency: float | str) -> None:
    out = Simulation(SERVERS[name](), latencies(latency), hint="exact").run(60.0)
    assert len(out.taken) >= (0.90 if name == "sliding window" else 0.95) * 50.0 * 60.0
    assert out.wasted < 0.02


@pytest.mark.parametrize("name", SERVERS)
def test_refusals_that_are_as_slow_as_answers_cost_more_but_not_the_rate(name: str) -> None:
    """By the time the first one is heard, two round trips of slow start are on their way."""
    out = Simulation(SERVERS[name](), latencies(0.2), refusal=None).run(60.0)
    late = [t for t in out.refused if t > 5.0]
    assert len(out.taken) >= (0.60 if name == STRICT else 0.95) * 50.0 * 60.0
    assert out.wasted < 0.08
    assert len(late) < 0.035 * 50.0 * 60.0


@pytest.mark.parametrize("seed", range(4))
def test_chance_does_not_decide(seed: int) -> None:
    rng = random.Random(seed)
    phase = rng.random()
    for server in (FixedWindow(50.0, phase=phase), Bucket(50.0, rng.uniform(2, 80)), SlidingWindow(50.0)):
        out = Simulation(server, latencies("log-normal", seed), seed=seed).run(60.0)
        assert len(out.taken) >= 0.95 * 50.0 * 60.0
        assert out.wasted < 0.025


@pytest.mark.parametrize("rate", [5.0, 300.0])
def test_other_rates_are_found_too(rate: float) -> None:
    for server in (Bucket(rate, rate), FixedWindow(rate)):
        out = Simulation(server, latencies(0.2)).run(60.0)
        assert len(out.taken) >= 0.95 * rate * 60.0
        assert out.wasted < (0.02 if rate > 50.0 else 0.15)


@pytest.mark.parametrize("name", SERVERS)
def test_a_limit_that_changes_is_followed(name: str) -> None:
    changes = [(30.0, 20.0), (60.0, 100.0)]
    out = Simulation(SERVERS[name](), latencies(0.2), changes=changes).run(100.0)
    share = 0.85 if name == STRICT else 0.95
    assert out.rate(5.0, 30.0) >= share * 50.0
    assert out.rate(33.0, 60.0) >= share * 20.0
    assert len([t for t in out.refused if 30.0 <= t < 60.0]) <= 60
    assert out.rate(90.0, 100.0) >= 0.85 * 100.0


@pytest.mark.parametrize("name", ["burst", "fixed window"])
def test_a_limit_that_is_lifted_a_hundredfold_is_found_within_two_minutes(name: str) -> None:
    server = Bucket(500.0, 10.0) if name == "burst" else FixedWindow(500.0)
    out = Simulation(server, latencies(0.2), changes=[(5.0, 5.0), (35.0, 500.0)]).run(150.0)
    assert len([t for t in out.refused if 5.0 <= t < 35.0]) <= 60
    assert out.rate(8.0, 35.0) >= 0.9 * 5.0
    assert out.rate(135.0, 150.0) >= 0.8 * 500.0
    assert len([t for t in out.refused if t >= 35.0]) <= 0.02 * out.rate(35.0, 150.0) * 115.0


@pytest.mark.parametrize("latency", [0.05, 0.2, 1.0])
def test_an_unlimited_server_is_full_within_three_round_trips(latency: float) -> None:
    out = Simulation(Unlimited(), latencies(latency)).run(10 * latency)
    # No round trip is taken to be shorter than a tenth of a second.
    assert out.full_at <= 3 * max(latency, 0.1)
    assert out.peak == 256


@pytest.mark.parametrize(("latency", "capacity"), [(0.2, 256), (0.2, 512), ("log-normal", 512)])
def test_an_unlimited_server_is_not_held_back(latency: float | str, capacity: int) -> None:
    out = Simulation(Unlimited(), latencies(latency), capacity=capacity).run(60.0)
    draw = latencies(latency)
    free = [0.0] * capacity
    ideal = 0
    while (at := heapq.heappop(free)) < 60.0:
        ideal += 1
        heapq.heappush(free, at + draw())
    assert len(out.taken) >= 0.97 * ideal
    steady = [t for t in out.taken if t > 3.0]
    assert out.control.window.limit >= capacity
    if latency == 0.2:
        assert len(steady) >= 0.99 * 57.0 * capacity / 0.2


def test_small_steps_are_not_slowed_down() -> None:
    """Four rows at a time through a server that answers at once: the pace of the start is soon dropped."""
    out = Simulation(Unlimited(), latencies(0.001), capacity=4).run(3.0)
    assert out.rate(1.0, 3.0) > 2500.0
    assert out.control.pacer.gap == 0.0


def test_a_storm_is_outlasted() -> None:
    """F7: nine of ten refused for twenty seconds."""
    for hint in ("", "seconds"):
        out = Simulation(Storm(20.0), latencies(0.2), hint=hint, rows=1000).run(120.0)
        assert out.done == 1000
        assert out.ended < 60.0
        assert max(out.attempts.values()) <= 10
        assert out.peak <= 256
        assert len(out.refused) < 100


def test_rows_that_were_refused_do_not_starve_the_others_or_the_other_way_round() -> None:
    out = Simulation(Bucket(50.0, 5.0), latencies(0.2), rows=500).run(60.0)
    assert out.done == 500
    assert max(out.attempts.values()) <= 8


# ------------------------------------------------------------------------------ the pace alone


def refuse(pacer: Pacer, now: float, number: int, sent: float, wait: float = 0.0) -> None:
    pacer.refused(now, number, sent, wait)


def test_nothing_is_sent_while_the_server_asks_to_wait() -> None:
    pacer = Pacer()
    for number in [pacer.sent(1.0) for _ in range(3)]:
        refuse(pacer, 1.1, number, 1.0, 7.0)
    assert pacer.free_at == pytest.approx(8.1)
    pacer.wait(2.0, 1.0)  # a shorter one does not cut it short
    assert pacer.free_at == pytest.approx(8.1)
    pacer.wait(2.0, 60.0)
    assert pacer.free_at == pytest.approx(62.0)


def test_an_answer_does_not_end_a_pause() -> None:
    pacer = Pacer()
    first, second, third = pacer.sent(0.0), pacer.sent(0.01), pacer.sent(0.01)
    refuse(pacer, 0.05, first, 0.0)
    refuse(pacer, 0.05, second, 0.01)
    probe = pacer.sent(max(0.1, pacer.free_at))
    refuse(pacer, 0.12, third, 0.01, 30.0)
    pacer.admitted(0.2, probe)
    assert pacer.free_at == pytest.approx(30.12)


def test_the_pace_rises_while_nothing_is_refused_and_comes_back() -> None:
    pacer = Pacer()
    number = pacer.sent(0.0)
    refuse(pacer, 0.01, number, 0.0)
    now, paces = pacer.free_at, []
    while now < 4.0:
        now = max(now, pacer.free_at)
        number = pacer.sent(now)
        pacer.admitted(now, number)
        paces.append(1.0 / pacer.gap)
    assert paces[2:] == sorted(paces[2:])
    assert paces[-1] > 1.3 * paces[2]
    pace = paces[-1]
    refuse(pacer, now + 0.01, number, now)
    assert 1.0 / pacer.gap < pace


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 2.0), st.booleans(), st.floats(0.0, 1.0), st.sampled_from([0.0, 0.5, 60.0])),
        max_size=120,
    )
)
def test_whatever_happens_there_is_a_next_permit(steps: list[tuple[float, bool, float, float]]) -> None:
    """Outcomes in any order and of any age: never an error, never stopped for good."""
    control = Controller()
    now = 0.0
    out: list[tuple[int, float]] = []
    for passed, good, which, wait in steps:
        now += passed
        number = control.take(now)
        if number:
            out.append((number, now))
        if out:
            number, sent = out.pop(int(which * (len(out) - 1)))
            if good:
                control.succeeded(now, number, sent, pressed=True)
            else:
                control.failed(now, number, sent, LMRateLimitError("no", retry_after=wait))
    delay = control.delay(now)
    assert delay == math.inf if control.window.in_flight >= control.window.limit else 0.0 <= delay <= 61.0
    assert control.window.in_flight == len(out)
    state = control.state(now, 0)
    assert state.limit >= 1
    assert state.rate is None or 0.0 < state.rate <= 1e4


# ---------------------------------------------------------------------------- the window alone


def test_a_window_grows_by_three_for_an_answer_and_only_as_far_as_it_is_used() -> None:
    window = Window()
    assert window.limit == START
    window.in_flight = START
    window.answered(0.2, 0.0, pressed=True)
    assert window.limit == START + 3
    window.in_flight = 1
    window.answered(0.2, 0.0, pressed=False)
    assert window.limit == START + 3


def test_overload_shrinks_it_once_a_round_trip_and_bad_luck_does_not() -> None:
    window = Window()
    window.in_flight, window.limit = 100, 100.0
    for number in range(1, 101):
        window.answered(0.2, 0.0, pressed=False)
        if number % 50 == 0:
            window.overloaded(0.0, number, 200, 0.0)  # two in a hundred
    assert window.limit >= 100.0
    before = window.limit
    for number in range(101, 200):
        window.overloaded(0.0, number, 200, 0.0)
    assert window.limit == pytest.approx(0.7 * min(before, 101.0))
    window.overloaded(0.0, 201, 300, 0.0)  # sent after the cut
    assert window.limit == pytest.approx(0.49 * min(before, 101.0))
    for number in range(301, 10_000):
        window.overloaded(0.0, number, number, 0.0)
    assert window.limit == 1.0


def test_after_an_outage_it_grows_fast_again() -> None:
    window = Window()
    window.in_flight, window.limit = 200, 256.0
    for number in range(1, 4000):
        window.overloaded(0.0, number, number - number % 200 + 200, 0.0)  # two hundred are out when it begins
    assert window.limit < 2.0
    for _ in range(200):
        window.in_flight = int(window.limit)
        window.answered(1.0, 0.8, pressed=True)
    assert window.limit > 100.0


def collapse(best: int, *, power: float, seconds: float) -> list[float]:
    """Goodput in each 5 s of a server that does ``best`` at a time and less than that with more."""
    control, rng = Controller(), random.Random(5)
    events: list[tuple[float, int, float]] = []
    idle, inside, now = 256, 0, 0.0
    done: list[float] = []
    while now < seconds:
        while idle and (number := control.take(now)):
            idle -= 1
            inside += 1
            goodput = 5.0 * inside if inside <= best else 5.0 * best * (best / inside) ** power
            heapq.heappush(events, (now + inside / goodput * rng.uniform(0.8, 1.2), number, now))
        wake = now + control.delay(now) + 1e-6 if idle else math.inf
        if wake < (events[0][0] if events else math.inf):
            now = wake
            continue
        now, number, sent = heapq.heappop(events)
        inside -= 1
        idle += 1
        done.append(now)
        control.succeeded(now, number, sent, pressed=idle > 1)
    return [sum(at <= t < at + 5.0 for t in done) / 5.0 for at in range(0, int(seconds), 5)]


@pytest.mark.parametrize(("best", "power"), [(64, 0.5), (64, 1.0), (64, 2.0), (100, 1.0)])
def test_a_server_that_does_less_the_more_it_is_given_is_given_less(best: int, power: float) -> None:
    rates = collapse(best, power=power, seconds=60.0)
    crowded = 5.0 * best * (best / 256) ** power
    assert rates[-1] >= 0.85 * 5.0 * best
    assert rates[-1] > 1.4 * crowded


def test_longer_answers_alone_do_not_shrink_it_for_good() -> None:
    """Answers become ten times as long because they are asked to."""
    out_of = {"took": 0.2}
    simulation = Simulation(Unlimited(), lambda: out_of["took"])
    simulation.at(10.0, lambda: out_of.update(took=2.0))
    out = simulation.run(60.0)
    assert out.rate(25.0, 60.0) >= 0.95 * 256 / 2.0
    assert out.rate(10.0, 60.0) >= 0.90 * 256 / 2.0


def test_server_errors_that_are_no_overload_change_nothing() -> None:
    control = Controller()
    for number in range(1, 40):
        assert control.take(float(number))
        control.failed(number + 0.1, number, float(number), LMServerError("oops", status=500))
    assert control.window.limit == START
    assert control.state(50.0, 0).overloaded == 0
