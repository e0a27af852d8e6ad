"""F7 against a real socket: refusals in every form, storms, and rates found without a word."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import pytest

from dspy_stream.clock import Clock, FakeClock, SystemClock
from dspy_stream.errors import LMError, LMRateLimitError
from dspy_stream.lm.address import parse
from dspy_stream.lm.client import Client
from dspy_stream.lm.limit import Limit, Limiter
from dspy_stream.lm.providers import locate
from dspy_stream.lm.retry import Retry
from dspy_stream.lm.transport import Endpoint
from dspy_stream.types import Layer, Request, Response
from tests.lm.limit_servers import Bucket
from tests.lm.server import ModelServer, Reply, Seen

pytestmark = pytest.mark.measures

BUSY = b'{"error":{"message":"slow down"}}'


def model(server: ModelServer, limiter: Limiter, clock: Clock, *, retry: bool = True, seed: int = 7) -> Layer:
    """Retry over Limit over Client."""
    target = locate("openai/x", api_base=server.url, has_key=False)
    format = target.provider.format(target.model, price=None, now=clock.time)
    endpoint = Endpoint(parse(server.url).join(format.path), format.headers(None))
    client = Client(
        endpoint,
        format,
        model="openai/x",
        provider="openai",
        secret=None,
        timeout=30.0,
        observe=limiter.observer(clock),
    )
    layer: Layer = Limit(client, limiter, clock=clock)
    rng = random.Random(seed)
    return Retry(layer, num_retries=3, timeout=60.0, clock=clock, rng=rng) if retry else layer


def served(work: Callable[[ModelServer], Awaitable[Any]], *replies: Reply, **options: Any) -> Any:
    async def go() -> Any:
        async with ModelServer(*replies, **options) as server:
            return await work(server), server

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("2", 2.0),
        (formatdate(1000.0 + 9.0, usegmt=True), 9.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("1e9", 60.0),
        ("abc", 0.0),
        (None, 0.0),
    ],
)
def test_the_whole_endpoint_waits_as_long_as_it_was_told(header: str | None, wait: float) -> None:
    clock = FakeClock(1000.0)

    async def work(server: ModelServer) -> list[Any]:
        layer = model(server, Limiter(), clock, retry=False)
        first: list[Any] = []
        for number in range(5):  # so many in a row, and it is not that one call
            ask = layer(Request.of("openai/x", f"refused {number}"))
            first += await asyncio.gather(ask, return_exceptions=True)
        refused = clock.monotonic()
        rest = [await layer(Request.of("openai/x", f"{number}")) for number in range(1, 4)]
        await layer.aclose()
        return [first[0], refused, *rest]

    headers = () if header is None else (("Retry-After", header),)
    (error, refused, *answers), server = served(work, *[Reply(BUSY, status=429, headers=headers)] * 5)
    assert isinstance(error, LMRateLimitError)
    assert [answer.text for answer in answers] == ["Paris"] * 3
    assert len(server.seen) == 8
    assert wait <= clock.monotonic() - refused <= wait + 0.5


def test_a_storm_of_refusals_ends_with_all_rows_done() -> None:
    """Nine of ten refused for a second, as it is in twenty with everything twenty times as long."""
    rng = random.Random(1)
    storm_ends = time.monotonic() + 1.0
    open_now = most = 0

    def reply(seen: Seen) -> Reply:
        if time.monotonic() < storm_ends and rng.random() < 0.9:
            return Reply(BUSY, status=429)
        return Reply(delay=0.01)

    async def work(server: ModelServer) -> list[Any]:
        nonlocal most, open_now
        limiter = Limiter()
        layer = model(server, limiter, SystemClock())
        gate = asyncio.Semaphore(64)

        async def row(number: int) -> Any:
            nonlocal most
            async with gate:
                try:
                    return await layer(Request.of("openai/x", f"{number}"))
                finally:
                    most = max(most, limiter.control.window.in_flight)

        done = await asyncio.gather(*(row(number) for number in range(150)))
        await layer.aclose()
        return done

    done, server = served(work, then=reply)
    assert len(done) == 150
    assert all(isinstance(answer, Response) for answer in done)
    assert most <= 64
    attempts: dict[bytes, int] = {}
    for seen in server.seen:
        attempts[seen.body] = attempts.get(seen.body, 0) + 1
    assert max(attempts.values()) <= 8
    assert len(server.seen) < 150 + 100


def test_a_rate_is_found_without_a_word_of_it() -> None:
    """A bucket of 200 a second with room for ten, and answers after 30 ms."""
    bucket = Bucket(200.0, 10.0)
    began = time.monotonic()
    taken: list[float] = []
    refused = 0

    def reply(seen: Seen) -> Reply:
        nonlocal refused
        now = time.monotonic() - began
        if not bucket.admit(now):
            refused += 1
            return Reply(BUSY, status=429)
        taken.append(now)
        return Reply(delay=0.03)

    async def work(server: ModelServer) -> list[Any]:
        layer = model(server, Limiter(), SystemClock())
        gate = asyncio.Semaphore(64)

        async def row(number: int) -> Any:
            async with gate:
                return await layer(Request.of("openai/x", f"{number}"))

        done = await asyncio.gather(*(row(number) for number in range(500)))
        await layer.aclose()
        return done

    done, _ = served(work, then=reply)
    assert len(done) == 500
    # A shared machine is not always on time; what the rate comes to exactly is measured by the simulation.
    assert len(taken) / (taken[-1] - taken[0]) >= 0.75 * 200.0
    assert refused <= 0.15 * 500


def test_what_the_headers_say_is_kept_to() -> None:
    left = [60]

    def reply(seen: Seen) -> Reply:
        left[0] -= 1
        said = (
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", str(max(0, left[0]))),
            ("x-ratelimit-reset-requests", f"{60 - max(0, left[0])}s"),
        )
        return Reply(headers=said) if left[0] >= 0 else Reply(BUSY, status=429, headers=said)

    clock = FakeClock(0.0)

    async def work(server: ModelServer) -> float:
        layer = model(server, Limiter(), clock, retry=False)
        for number in range(58):
            await layer(Request.of("openai/x", f"{number}"))
        await layer.aclose()
        return clock.monotonic()

    took, server = served(work)[0], None
    assert server is None
    assert took < 5.0  # nothing was said, so nothing was waited for
    took, said = served(work, then=reply)
    assert left[0] == 2
    assert len(said.seen) == 58
    assert took > 6.0


def test_a_connection_that_is_refused_is_overload_and_gives_its_permit_back() -> None:
    async def go() -> tuple[int, int, int]:
        async with ModelServer() as server:
            pass  # nobody listens there any more
        limiter = Limiter()
        layer = model(server, limiter, FakeClock(0.0), retry=False)
        failures = await asyncio.gather(
            *(layer(Request.of("openai/x", f"{number}")) for number in range(20)), return_exceptions=True
        )
        await layer.aclose()
        state = limiter.state(0.0)
        return sum(isinstance(failure, LMError) for failure in failures), state.in_flight, state.overloaded

    assert asyncio.run(go()) == (20, 0, 20)
