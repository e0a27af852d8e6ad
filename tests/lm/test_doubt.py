"""The window where many calls fail: made smaller where that helps, and left alone where it does not."""

from __future__ import annotations

import random
from collections.abc import Callable

from dspy_stream.errors import LMServerError
from dspy_stream.lm.controller import Controller


def simulated(
    fails: Callable[[int, float], bool], seconds: float, latency: float = 0.05
) -> tuple[Controller, list[float]]:
    """Callers without end at a server where ``fails(in_flight, now)`` decides; when answers came."""
    control, now, flying, answers = Controller(), 0.0, [], []
    while now < seconds:
        now += 0.001
        while flying and flying[0][0] <= now:
            _, number, sent, failed = flying.pop(0)
            if failed:
                control.failed(now, number, sent, LMServerError("overloaded", status=503))
            else:
                control.succeeded(now, number, sent, pressed=True)
                answers.append(now)
        while len(flying) < 200 and (number := control.take(now)):
            flying.append((now + latency, number, now, fails(len(flying) + 1, now)))
    return control, answers


def test_failures_that_have_nothing_to_do_with_the_load_do_not_close_the_window() -> None:
    rng = random.Random(3)
    control, answers = simulated(lambda _flying, now: now > 1.0 and rng.random() < 0.9, 20.0)
    assert control.window.limit >= 16.0
    late = sum(now > 10.0 for now in answers) / 10.0
    assert late > 25.0, "answers a second; one call at a time would bring two"


def test_a_server_that_is_overloaded_gets_fewer_calls() -> None:
    control, answers = simulated(lambda flying, now: flying > (100 if now < 5.0 else 20), 20.0)
    assert control.window.limit < 40.0
    assert sum(now > 10.0 for now in answers) / 10.0 > 200.0


def test_an_outage_teaches_nothing() -> None:
    control, _ = simulated(lambda _flying, now: 2.0 < now < 6.0, 8.0)
    assert control.window.limit > 50.0
