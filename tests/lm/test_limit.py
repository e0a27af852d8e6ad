"""The limit layer: who waits, who goes first, what is given back."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dspy_stream.clock import FakeClock, SystemClock
from dspy_stream.errors import BudgetExceeded, LMAuthError, LMError, LMRateLimitError, LMServerError
from dspy_stream.lm.deadline import BUDGET
from dspy_stream.lm.limit import Limit, Limiter, Limits, limiter_for
from dspy_stream.types import Choice, Request, Response, Usage

ASK = Request.of("openai/x", "hi")
ANSWER = Response((Choice("ho"),), Usage(3, 1))


class Slow:
    """A layer whose answers wait until the test lets them go."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[Response]] = []
        self.asked: list[Request] = []
        self.closed = False

    async def __call__(self, request: Request) -> Response:
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.calls.append(future)
        self.asked.append(request)
        return await future

    async def aclose(self) -> None:
        self.closed = True


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def go() -> None:
        await work()

    asyncio.run(go())


def limited(concurrency: int) -> tuple[Slow, Limiter, Limit]:
    """A layer that lets so many through, at any pace."""
    slow = Slow()
    limiter = Limiter(Limits(concurrency=concurrency))
    limiter.control.pacer.gap = limiter.control.window.gap = 0.0
    return slow, limiter, Limit(slow, limiter, clock=FakeClock(100.0))


def test_at_most_so_many_are_open_and_the_rest_goes_in_order() -> None:
    async def go() -> None:
        slow, limiter, layer = limited(2)
        requests = [Request.of("openai/x", f"{number}") for number in range(5)]
        tasks = [asyncio.ensure_future(layer(request)) for request in requests]
        await settle()
        assert slow.asked == requests[:2]
        state = limiter.state(100.0)
        assert (state.limit, state.in_flight, state.waiting) == (2, 2, 3)
        for number in range(5):
            slow.calls[number].set_result(ANSWER)
            await settle()
        assert slow.asked == requests
        assert await asyncio.gather(*tasks) == [ANSWER] * 5
        assert limiter.state(100.0).in_flight == 0
        await layer.aclose()
        assert slow.closed

    run(go)


def test_a_call_that_has_been_tried_goes_first() -> None:
    async def go() -> None:
        slow, _, layer = limited(1)
        requests = [Request.of("openai/x", f"{number}") for number in range(4)]
        tasks = [asyncio.ensure_future(layer(request)) for request in requests[:3]]
        await settle()
        token = BUDGET.set(5.0)
        tasks.append(asyncio.ensure_future(layer(requests[3])))
        BUDGET.reset(token)
        await settle()
        for number in range(4):
            slow.calls[number].set_result(ANSWER)
            await settle()
        assert [requests.index(asked) for asked in slow.asked] == [0, 3, 1, 2]
        await asyncio.gather(*tasks)

    run(go)


@pytest.mark.parametrize("error", [LMServerError("x", status=503), LMAuthError("x"), BudgetExceeded("x")])
def test_whatever_it_fails_with_the_permit_comes_back(error: Exception) -> None:
    async def go() -> None:
        slow, limiter, layer = limited(1)
        tasks = [asyncio.ensure_future(layer(ASK)) for _ in range(3)]
        await settle()
        for number in range(3):
            slow.calls[number].set_exception(type(error)("failed"))
            await settle()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [type(error)] * 3
        assert limiter.state(100.0).in_flight == 0

    run(go)


def test_cancelled_calls_give_back_what_they_have() -> None:
    async def go() -> None:
        slow, limiter, layer = limited(1)
        first, second, third, last = (asyncio.ensure_future(layer(ASK)) for _ in range(4))
        await settle()
        second.cancel()  # while it waits
        await settle()
        assert limiter.state(100.0).waiting == 2
        slow.calls[0].set_result(ANSWER)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        third.cancel()  # when its permit has just been given, or it has just begun
        await settle()
        assert limiter.state(100.0).in_flight == 1
        last_call = slow.calls[-1]
        last_call.set_result(ANSWER)
        await settle()
        assert (await first, await last) == (ANSWER, ANSWER)
        assert second.cancelled()
        assert third.cancelled()
        state = limiter.state(100.0)
        assert (state.in_flight, state.waiting) == (0, 0)

    run(go)


def test_where_nobody_waits_any_more_no_timer_runs() -> None:
    async def go() -> None:
        slow = Slow()
        layer = Limit(slow, Limiter(Limits(requests_per_minute=1)), clock=SystemClock())
        tasks = [asyncio.ensure_future(layer(ASK)) for _ in range(4)]
        await settle()
        assert len(slow.calls) == 1
        assert len(asyncio.all_tasks()) == 6  # the calls, the test, and the timer for the next
        for task in tasks:
            task.cancel()
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        again = asyncio.ensure_future(layer(ASK))  # and the next who waits has one of its own
        await settle()
        assert len(asyncio.all_tasks()) == 3
        again.cancel()
        await settle()

    run(go)


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_that_crosses_its_permit_loses_nothing(turns: int) -> None:
    async def go() -> None:
        slow, limiter, layer = limited(1)
        first = asyncio.ensure_future(layer(ASK))
        second = asyncio.ensure_future(layer(ASK))
        await settle()
        slow.calls[0].set_result(ANSWER)
        for _ in range(turns):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        third = asyncio.ensure_future(layer(ASK))
        await settle()
        slow.calls[-1].set_result(ANSWER)
        assert await third == ANSWER
        assert limiter.state(100.0).in_flight == 0

    run(go)


def test_seconds_waited_are_not_the_calls_own() -> None:
    class Refusing:
        def __init__(self) -> None:
            self.errors = 0

        async def __call__(self, request: Request) -> Response:
            self.errors += 1
            raise LMRateLimitError("slow down", retry_after=7.0)

        async def aclose(self) -> None: ...

    async def go() -> None:
        clock = FakeClock(50.0)
        layer = Limit(Refusing(), Limiter(), clock=clock)
        errors = []
        for _ in range(7):
            with pytest.raises(LMRateLimitError) as raised:
                await layer(ASK)
            errors.append(raised.value)
        assert errors[0].waited == 0.0
        assert errors[5].waited == pytest.approx(7.0, abs=0.5)
        assert errors[6].waited == pytest.approx(7.0, abs=0.5)
        assert layer.paused() == pytest.approx(7.0)
        assert clock.monotonic() >= 64.0

    run(go)


@pytest.mark.parametrize(("asked", "pause"), [(2.0, 2.0), (0.0, 0.0), (1e9, 60.0), (None, 0.0)])
def test_the_time_to_wait_holds_for_everybody_and_for_a_minute_at_most(
    asked: float | None, pause: float
) -> None:
    """Once five in a row were refused; of one alone only its own row waits."""
    answers: list[Any] = [LMRateLimitError("slow down", retry_after=asked) for _ in range(5)]
    answers += [ANSWER, ANSWER]
    sent: list[float] = []

    class Scripted:
        async def __call__(self, request: Request) -> Response:
            sent.append(clock.monotonic())
            answer = answers.pop(0)
            if isinstance(answer, LMError):
                raise answer
            assert isinstance(answer, Response)
            return answer

        async def aclose(self) -> None: ...

    clock = FakeClock(50.0)

    async def go() -> None:
        layer = Limit(Scripted(), Limiter(), clock=clock)
        for _ in range(5):
            with pytest.raises(LMRateLimitError):
                await layer(ASK)
        assert await asyncio.gather(layer(ASK), layer(ASK)) == [ANSWER] * 2

    run(go)
    assert sent[4] - sent[0] < 0.5
    assert sent[5] - sent[4] == pytest.approx(pause, abs=0.05)
    assert sent[6] >= sent[5]


def test_one_that_was_refused_does_not_make_the_others_wait() -> None:
    limiter, clock = Limiter(), FakeClock(50.0)
    answers: list[Any] = [ANSWER] * 20 + [LMRateLimitError("slow down", retry_after=60.0)] + [ANSWER] * 20

    class Scripted:
        async def __call__(self, request: Request) -> Response:
            answer = answers.pop(0)
            if isinstance(answer, LMError):
                raise answer
            assert isinstance(answer, Response)
            return answer

        async def aclose(self) -> None: ...

    async def go() -> None:
        layer = Limit(Scripted(), limiter, clock=clock)
        for number in range(41):
            if number == 20:
                with pytest.raises(LMRateLimitError):
                    await layer(ASK)
            else:
                await layer(ASK)
        assert layer.paused() == 0.0

    run(go)
    assert clock.monotonic() - 50.0 < 1.0


def test_a_refusal_says_to_what_pace_it_holds_those_who_wait() -> None:
    """Ten a second are let through, and twice as many want to go: told after three seconds, not before."""
    clock = FakeClock(50.0)
    limiter = limiter_for("https://one.example", "ab12", scope="small")
    held: list[tuple[float, float | None]] = []
    names: set[str] = set()

    class Bucket:
        level, at = 10.0, 50.0

        async def __call__(self, request: Request) -> Response:
            now = clock.monotonic()
            self.level, self.at = min(10.0, self.level + 10.0 * (now - self.at)), now
            if self.level < 1.0:
                raise LMRateLimitError("slow down")
            self.level -= 1.0
            return ANSWER

        async def aclose(self) -> None: ...

    async def go() -> None:
        layer = Limit(Bucket(), limiter, clock=clock)

        async def row() -> None:
            while clock.monotonic() < 80.0:
                try:
                    await layer(ASK)
                except LMRateLimitError as error:
                    name, rate = error.held or ("", None)
                    names.add(name)
                    held.append((clock.monotonic() - 50.0, rate))

        await asyncio.gather(*(row() for _ in range(8)))

    run(go)
    assert [rate for at, rate in held if at < 3.0] == [None] * sum(at < 3.0 for at, _ in held)
    late = [rate for at, rate in held if 6.0 < at < 30.0]
    assert late, held
    assert names == {"one.example (small)"}
    assert all(rate is not None and 5.0 < rate < 15.0 for rate in late)


def test_a_pause_of_an_overloaded_server_ends_without_a_burst() -> None:
    async def go() -> None:
        clock = FakeClock(0.0)
        sent: list[float] = []

        class Scripted:
            async def __call__(self, request: Request) -> Response:
                sent.append(clock.monotonic())
                if len(sent) == 1:
                    raise LMServerError("overloaded", status=529, retry_after=5.0)
                await asyncio.sleep(0)
                return ANSWER

            async def aclose(self) -> None: ...

        limiter = Limiter()
        limiter.control.window.gap = limiter.control.pacer.gap = 0.0
        layer = Limit(Scripted(), limiter, clock=clock)
        with pytest.raises(LMServerError):
            await layer(ASK)
        await asyncio.gather(*(layer(ASK) for _ in range(10)))
        assert sent[1] >= 5.0
        assert len(set(sent[1:])) >= 9

    run(go)


def test_a_limiter_is_shared_while_somebody_has_it() -> None:
    name = ("https://one.example", "digest")
    one = limiter_for(*name)
    assert limiter_for(*name, Limits(concurrency=3)) is one
    assert one.state(0.0).limit == 3
    assert limiter_for("https://one.example", "other") is not one
    assert limiter_for(*name, scope="openai/gpt-4o") is not one
    del one
    gc.collect()
    assert limiter_for(*name).state(0.0).limit > 3


def test_headers_are_read_and_a_silent_provider_is_soon_left_alone() -> None:
    looked = 0

    class Headers(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            nonlocal looked
            looked += 1
            return super().__contains__(name)

    limiter = Limiter()
    observe = limiter.observer(FakeClock(0.0))
    for _ in range(2000):
        observe(Headers(), 200)
    assert looked < 400
    said = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60s",
    }
    for _ in range(70):
        observe(said, 200)
    rate = limiter.state(0.0).rate
    assert rate is not None
    assert rate == pytest.approx(100 / 60)


def test_a_free_permit_is_taken_without_waiting() -> None:
    """What it costs beyond that is measured by the benchmarks."""

    class Nothing:
        async def __call__(self, request: Request) -> Response:
            return ANSWER

        async def aclose(self) -> None: ...

    async def go() -> None:
        clock, limiter = FakeClock(), Limiter()
        layer = Limit(Nothing(), limiter, clock=clock)
        for _ in range(100):
            clock.advance(1.0)  # long enough that no pace makes it wait
            call = layer(ASK)
            with pytest.raises(StopIteration) as ended:
                call.send(None)  # a call that waits for anything comes back here instead
            assert ended.value.value is ANSWER
        assert not limiter.waiting

    run(go)


def test_a_stampede_of_cancellations_is_survived() -> None:
    async def go() -> None:
        slow, limiter, layer = limited(4)
        tasks = [asyncio.ensure_future(layer(ASK)) for _ in range(2000)]
        await settle()
        for task in tasks[4:-4]:
            task.cancel()
        await settle()
        assert limiter.state(100.0).waiting == 4
        for number in range(8):
            slow.calls[number].set_result(ANSWER)
            await settle()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(result == ANSWER for result in results) == 8
        assert limiter.state(100.0).in_flight == 0

    run(go)
