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
    LMUnavailableError,
)
from dspy_stream.lm import ScriptedLM
from dspy_stream.lm.deadline import Within, seconds_left
from dspy_stream.lm.retry import Retry, pause
from dspy_stream.lm.retry_after import LONGEST_WAIT, retry_after
from dspy_stream.lm.witness import WITNESS
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


# ------------------------------------------------------- failures that are not the call's own to lose


def test_a_rate_limit_uses_up_no_retry() -> None:
    busy = [LMRateLimitError("429", retry_after=1.0) for _ in range(20)]
    answer, script = run(*busy, LMServerError("500"), "fine", num_retries=1, timeout=1e6)
    assert answer.text == "fine"
    assert len(script.clock.slept) == 21


def test_but_a_call_meets_it_fifty_times_at_most() -> None:
    busy = [LMRateLimitError("429", retry_after=0.0) for _ in range(60)]
    error, script = run(*busy, num_retries=1, timeout=1e9)
    assert isinstance(error, LMRateLimitError)
    assert (error.attempts, len(script.lines)) == (50, 10)


@given(st.integers(0, 2**32), st.floats(0.0, 60.0))
def test_a_storm_of_rate_limits_is_bounded_by_the_deadline(seed: int, asked: float) -> None:
    clock = FakeClock()
    busy = [LMRateLimitError("429", retry_after=asked) for _ in range(60)]
    script = Script(*busy, clock=clock)
    layer = Retry(script, num_retries=3, timeout=120.0, clock=clock, rng=random.Random(seed))
    with pytest.raises(LMRateLimitError):
        asyncio.run(layer(REQUEST))
    assert clock.monotonic() < 120.0
    assert len(script.budgets) <= 50
    assert all(wait >= asked for wait in clock.slept)


def test_an_open_circuit_is_waited_for_without_an_attempt() -> None:
    down = [LMUnavailableError("open", retry_after=wait) for wait in (7.0, 3.0, 1.0, 1.0, 1.0)]
    answer, script = run(*down, LMServerError("500"), "fine", num_retries=1)
    assert answer.text == "fine"
    for wait, slept in zip((7.0, 3.0, 1.0, 1.0, 1.0), script.clock.slept, strict=False):
        assert wait <= slept <= wait + 0.5


def test_it_is_waited_for_within_the_deadline() -> None:
    error, script = run(LMUnavailableError("open", retry_after=30.0), "never", timeout=20.0)
    assert isinstance(error, LMUnavailableError)
    assert (error.attempts, script.clock.slept) == (0, [])
    assert str(error) == "open (no attempt, no time left of 20 s)"


def test_without_patience_both_count_like_any_failure() -> None:
    def impatient(*lines: Any) -> tuple[LMError, Script]:
        clock = FakeClock()
        script = Script(*lines, clock=clock)
        layer = Retry(script, num_retries=2, timeout=120.0, clock=clock, rng=random.Random(1), patient=False)
        with pytest.raises(LMError) as raised:
            asyncio.run(layer(REQUEST))
        return raised.value, script

    error, script = impatient(*[LMRateLimitError("429") for _ in range(9)])
    assert (error.attempts, len(script.clock.slept)) == (3, 2)
    error, script = impatient(LMUnavailableError("open", retry_after=1.0), "never")
    assert (type(error), script.clock.slept) == (LMUnavailableError, [])


def test_no_retries_wait_for_nothing() -> None:
    for failure in (LMRateLimitError("429"), LMUnavailableError("open", retry_after=1.0)):
        error, script = run(failure, "never", num_retries=0)
        assert (error, script.clock.slept) == (failure, [])


def test_time_spent_waiting_for_a_permit_is_not_the_call_s() -> None:
    held = LMServerError("a", retry_after=1.0)
    held.waited = 500.0
    answer, script = run(held, "fine", timeout=120.0, takes=510.0)
    assert answer.text == "fine"
    assert script.budgets[1] == pytest.approx(120.0 - 10.0 - 1.0, abs=0.6)
    tired, _ = run(LMServerError("a", retry_after=1.0), "never", timeout=120.0, takes=510.0)
    assert isinstance(tired, LMServerError)


# ------------------------------------------------------------------------------------ the witness


def test_a_witness_hears_every_attempt_that_failed_and_may_end_the_call() -> None:
    heard: list[LMError] = []

    def watch(error: LMError) -> bool:
        heard.append(error)
        return len(heard) < 3

    async def go(*lines: Any) -> Any:
        token = WITNESS.set(watch)
        try:
            clock = FakeClock()
            script = Script(*lines, clock=clock)
            layer = Retry(script, num_retries=9, timeout=1e6, clock=clock, rng=random.Random(1))
            return await layer(REQUEST)
        finally:
            WITNESS.reset(token)

    down = [LMServerError("a"), LMUnavailableError("b", retry_after=1.0), LMRateLimitError("c"), "never"]
    with pytest.raises(LMRateLimitError) as raised:
        asyncio.run(go(*down))
    assert heard == down[:3]
    assert raised.value.attempts == 2  # of three failures, one was of a call not made
    heard.clear()
    with pytest.raises(LMAuthError):
        asyncio.run(go(LMAuthError("no")))
    assert heard == []


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
