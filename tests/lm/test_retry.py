"""The retry policy as a table, and the layer under a clock that only moves when told."""

from __future__ import annotations

import asyncio
import random
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.clock import FakeClock
from dspy_stream.errors import (
    LMAuthError,
    LMConfigurationError,
    LMError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)
from dspy_stream.lm import ScriptedLM
from dspy_stream.lm.deadline import Within, seconds_left
from dspy_stream.lm.retry import Retry, pause
from dspy_stream.lm.retry_after import LONGEST_WAIT, retry_after
from dspy_stream.types import Choice, Request, Response

REQUEST = Request.of("openai/x", "hi")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("-5", 0.0),
        ("1e9", LONGEST_WAIT),
        ("inf", LONGEST_WAIT),
        ("nan", None),
        ("abc", None),
        ("", None),
        ("9" * 500, None),
        (formatdate(1000.0 + 30, usegmt=True), 30.0),
        (formatdate(1000.0 - 30, usegmt=True), 0.0),
        (formatdate(4e9, usegmt=True), LONGEST_WAIT),
        ("Fri, 99 Foo 2026 99:99:99 GMT", None),
    ],
)
def test_every_form_of_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}, 1000.0) == seconds


def test_milliseconds_go_first_and_nothing_is_none() -> None:
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}, 0.0) == 0.25
    assert retry_after({"retry-after-ms": "soon", "retry-after": "9"}, 0.0) == 9.0
    assert retry_after({}, 0.0) is None


@given(st.text(), st.floats(0, 1e12))
def test_whatever_it_says_the_wait_is_bounded(text: str, now: float) -> None:
    seconds = retry_after({"retry-after": text}, now)
    assert seconds is None or 0.0 <= seconds <= LONGEST_WAIT


@given(st.integers(1, 10_000), st.none() | st.floats(0, LONGEST_WAIT), st.integers())
def test_a_pause_is_at_least_what_was_asked_and_at_most_a_minute(
    failures: int, asked: float | None, seed: int
) -> None:
    seconds = pause(failures, asked, random.Random(seed))
    assert (asked or 0.0) <= seconds <= 60.0
    assert seconds <= max(asked or 0.0, 0.5 * 2.0 ** min(failures - 1, 20))


def test_pauses_are_spread_over_their_whole_range() -> None:
    rng = random.Random(7)
    pauses = [pause(4, None, rng) for _ in range(2000)]
    assert min(pauses) < 0.1
    assert max(pauses) > 3.9
    assert sum(pauses) / len(pauses) == pytest.approx(2.0, abs=0.1)


class Script:
    """A layer that raises or answers in order, and takes its time."""

    def __init__(self, *lines: Any, clock: FakeClock, takes: float = 0.0) -> None:
        self.lines = list(lines)
        self.clock = clock
        self.takes = takes
        self.budgets: list[float] = []

    async def __call__(self, request: Request) -> Response:
        self.budgets.append(seconds_left(1000.0))
        self.clock.advance(self.takes)
        line = self.lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return Response((Choice(line),))

    async def aclose(self) -> None:
        self.closed = True


def run(*lines: Any, num_retries: int = 3, timeout: float = 120.0, takes: float = 0.0) -> tuple[Any, Script]:
    clock = FakeClock()
    script = Script(*lines, clock=clock, takes=takes)
    layer = Retry(script, num_retries=num_retries, timeout=timeout, clock=clock, rng=random.Random(1))
    try:
        return asyncio.run(layer(REQUEST)), script
    except LMError as error:
        return error, script


def test_a_failure_that_may_pass_is_tried_again() -> None:
    answer, script = run(LMServerError("a"), LMTransportError("b"), LMTimeoutError("c"), "fine")
    assert answer.text == "fine"
    assert len(script.clock.slept) == 3
    assert all(0 <= wait <= 0.5 * 2**n for n, wait in enumerate(script.clock.slept))


def test_the_last_error_is_raised_with_the_number_of_attempts() -> None:
    error, script = run(*[LMServerError(name) for name in "abcd"], "never")
    assert (type(error), error.attempts, error.message) == (LMServerError, 4, "d (attempt 4)")
    assert str(error) == error.message
    assert script.lines == ["never"]


@pytest.mark.parametrize("final", [LMAuthError("no"), LMConfigurationError("no")])
def test_a_failure_that_will_not_pass_ends_it(final: LMError) -> None:
    assert run(final, "never")[0] is final
    assert final.attempts == 1
    error, script = run(LMServerError("a"), final, "never")
    assert error is final
    assert error.attempts == 2
    assert len(script.clock.slept) == 1


def test_no_retries_means_one_attempt() -> None:
    error, script = run(LMServerError("a"), "never", num_retries=0)
    assert (error.attempts, error.message, script.clock.slept) == (1, "a", [])


def test_the_provider_is_given_the_time_it_asks_for() -> None:
    answer, script = run(LMRateLimitError("a", retry_after=20.0), "fine")
    assert answer.text == "fine"
    assert script.clock.slept == [20.0]


def test_no_attempt_begins_after_the_deadline() -> None:
    error, script = run(LMRateLimitError("busy", retry_after=20.0), "never", timeout=15.0)
    assert isinstance(error, LMRateLimitError)
    assert script.clock.slept == []
    assert "15 s" in error.message


def test_later_attempts_get_what_is_left_of_the_time() -> None:
    slow = [LMServerError("a", retry_after=5.0), LMServerError("b", retry_after=5.0), "fine"]
    answer, script = run(*slow, timeout=100.0, takes=30.0)
    assert answer.text == "fine"
    assert script.budgets == [1000.0, 65.0, 30.0]


def test_the_budget_does_not_leak_out_of_a_call() -> None:
    run(LMServerError("a"), "fine")
    assert seconds_left(1000.0) == 1000.0


def test_scripted_faults_are_retried_too() -> None:
    lm = ScriptedLM([LMServerError("once"), "fine"], num_retries=1)

    async def go() -> str:
        return (await lm.connect(clock=FakeClock())(REQUEST)).text

    assert asyncio.run(go()) == "fine"
    assert lm.call_count == 2


# --------------------------------------------------------------------------------- the deadline


def test_within_cuts_a_block_short() -> None:
    async def go() -> None:
        with pytest.raises(TimeoutError), Within(0.01):
            await asyncio.Event().wait()
        await asyncio.sleep(0)  # nothing is left behind to cancel this

    asyncio.run(go())


def test_within_passes_values_errors_and_outside_cancellation() -> None:
    async def waits() -> None:
        with Within(60.0):
            await asyncio.Event().wait()

    async def go() -> None:
        with Within(60.0):
            pass
        with pytest.raises(KeyError), Within(60.0):
            raise KeyError
        task = asyncio.ensure_future(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
