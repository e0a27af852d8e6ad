"""What headers say, in every form; meters and guesses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import LMConfigurationError, LMRateLimitError
from dspy_stream.lm.controller import Controller, Limits
from dspy_stream.lm.rates import Allowance, Quota, quota, says_quota, seconds
from dspy_stream.lm.throttle import Known, Sizes, Throttle
from dspy_stream.types import Head, Message, Request, Usage

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1m6.5s", 66.5),
        ("350ms", 0.35),
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("2m59.56s", 179.56),
        ("12", 12.0),
        ("0.25", 0.25),
        ("1d", 86400.0),
        ("0s", 0.0),
        ("2027-01-15T08:01:00Z", 60.0),
        ("2027-01-15t08:01:00.25z", 60.25),
        ("2027-01-15T09:01:00+01:00", 60.0),
        ("2027-01-15T08:00:00.123456789Z", 0.123456789),
        ("2027-01-15T07:00:00Z", 0.0),
        ("1800000030", 30.0),
        ("2027-02-30T08:00:00Z", None),
        ("2027-01-15T08:00:00", None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
        ("nan", None),
        ("5m garbage", None),
        ("s", None),
        ("9" * 100, None),
        ("99999999999d", 100 * 86400.0),
    ],
)
def test_resets(text: str, expected: float | None) -> None:
    found = seconds(text, NOW)
    assert found is None if expected is None else found == pytest.approx(expected, abs=1e-6)


@given(st.text(max_size=80), st.floats(0.0, 1e11))
def test_any_text_is_seconds_or_nothing(text: str, now: float) -> None:
    found = seconds(text, now)
    assert found is None or 0.0 <= found <= 100 * 86400.0


@given(st.integers(0, 99), st.integers(0, 59), st.floats(0.0, 59.0))
def test_durations_as_they_are_written(hours: int, minutes: int, rest: float) -> None:
    text = f"{hours}h{minutes}m{rest:.3f}s"
    assert seconds(text, 0.0) == pytest.approx(3600 * hours + 60 * minutes + rest, abs=0.001)


def test_each_family_of_headers() -> None:
    openai = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "4990",
        "x-ratelimit-reset-requests": "125ms",
        "x-ratelimit-limit-tokens": "160000",
        "x-ratelimit-remaining-tokens": "159976",
        "x-ratelimit-reset-tokens": "9ms",
    }
    said = quota(openai, NOW)
    assert said is not None
    assert said.requests == Allowance(5000.0, 4990.0, 0.125)
    assert said.requests.refill == pytest.approx(80.0)
    assert said.tokens == Allowance(160000.0, 159976.0, pytest.approx(0.009))
    anthropic = {
        f"anthropic-ratelimit-{kind}-{name}": value
        for kind in ("requests", "tokens", "input-tokens", "output-tokens")
        for name, value in (("limit", "4000"), ("remaining", "3000"), ("reset", "2027-01-15T08:00:15Z"))
    }
    said = quota(anthropic, NOW)
    assert said == Quota(*[Allowance(4000.0, 3000.0, 15.0)] * 4)
    azure = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "900"}
    assert quota(azure, NOW) == Quota(tokens=Allowance(1000.0, 900.0, None))
    for headers in (openai, anthropic, azure):
        assert says_quota(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1"},
        {"x-ratelimit-limit-requests": "0", "x-ratelimit-remaining-requests": "0"},
        {"x-ratelimit-limit-requests": "60"},
        {"x-ratelimit-limit-requests": "sixty", "x-ratelimit-remaining-requests": "59"},
        {"x-ratelimit-limit-requests": "1e400", "x-ratelimit-remaining-requests": "1"},
        {"content-type": "application/json"},
    ],
)
def test_what_makes_no_sense_is_not_said(headers: dict[str, str]) -> None:
    assert quota(headers, NOW) is None


def test_more_left_than_there_is_counts_as_all() -> None:
    said = quota({"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "99"}, NOW)
    assert said is not None
    assert said.requests == Allowance(10.0, 10.0, None)
    assert said.requests.refill is None


# ------------------------------------------------------------------------------------ meters


def test_a_meter_is_an_even_pace() -> None:
    meter = Known(10.0)
    now = 5.0
    for _ in range(50):
        now = max(now, meter.free_at(1.0))
        meter.spend(now, 1.0, 1)
    assert now == pytest.approx(5.0 + 49 / 10.0, abs=0.11)
    meter.correct(20.0)
    assert meter.free_at(1.0) == pytest.approx(now + 2.1, abs=0.11)


def test_settings_are_kept_to() -> None:
    control = Controller(Limits(requests_per_minute=600, concurrency=8))
    now, sent = 0.0, []
    while now < 30.0:
        delay = control.delay(now)
        now += delay
        number = control.take(now)
        assert number
        sent.append(now)
        control.succeeded(now, number, now, pressed=True)
    assert 295 <= len(sent) <= 303
    assert control.window.limit == 8


def test_tokens_are_guessed_corrected_and_kept_to() -> None:
    control = Controller(Limits(tokens_per_minute=60_000))
    assert control.counts_tokens
    request = Request(Head("m", (Message("system", "s" * 400),)), (Message("user", "u" * 400),))
    assert control.guess(request) == 200.0
    now, used = 0.0, 0
    for _ in range(400):
        now += control.delay(now)
        tokens = control.guess(request)
        number = control.take(now, tokens)
        assert number
        control.succeeded(now, number, now)
        control.learn(request, tokens, Usage(400, 100))
        used += 500
    assert used / now == pytest.approx(1000.0, rel=0.05)
    assert control.guess(request) == pytest.approx(400.0, rel=0.02)


def test_the_smallest_of_several_limits_counts() -> None:
    both = Limits(requests_per_minute=60).within(Limits(requests_per_minute=30, concurrency=4))
    assert both == Limits(30, None, 4)
    assert Limits(concurrency=4).within(Limits(concurrency=9)) == Limits(concurrency=4)
    control = Controller(Limits(requests_per_minute=60))
    control.restrict(Limits(requests_per_minute=6000))
    assert control.state(0.0, 0).rate == 1.0


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "concurrency"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_a_limit_is_above_zero(name: str, value: float) -> None:
    with pytest.raises(LMConfigurationError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def provider(
    *, window: bool, rate: float = 50.0, limit: float = 3000.0, latency: float = 2.0
) -> tuple[int, int]:
    """A minute's allowance, said with every answer; how many calls passed and were refused in 4 minutes."""
    control = Controller()
    left, at, now = limit, 0.0, 0.0
    flying: list[tuple[float, int, float, Allowance]] = []
    taken = refused = 0
    while now < 240.0:
        while flying and flying[0][0] <= now:
            _, number, sent, said = flying.pop(0)
            control.heard(Quota(said), now, number)
            control.succeeded(now, number, sent, pressed=True)
        while len(flying) < 512 and (number := control.take(now)):
            if window:
                left = limit if now // 60.0 > at // 60.0 else left
            else:
                left = min(limit, left + (now - at) * rate)
            at = now
            if left < 1.0:
                refused += 1
                control.failed(now, number, now, LMRateLimitError("no"))
                continue
            left -= 1.0
            taken += 1
            reset = 60.0 - now % 60.0 if window else (limit - left) / rate
            flying.append((now + latency, number, now, Allowance(limit, left, reset)))
        now += 0.005
    return taken, refused


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("latency", [0.2, 2.0, 8.0])
def test_what_is_said_is_slowed_down_for_before_the_wall(window: bool, latency: float) -> None:
    taken, refused = provider(window=window, latency=latency)
    allowed = min(3000 * 4 if window else 3000 + 50 * 240, int(512 / latency * 240))
    assert refused <= (0.01 if window else 0.002) * taken
    assert taken >= 0.80 * allowed


def test_plenty_left_is_no_limit() -> None:
    throttle = Throttle(1.0, 10)
    throttle.heard(Allowance(5000.0, 4000.0, 12.0), 1.0, 10, 1.0)
    throttle.spend(1.0, 1.0, 11)
    assert throttle.rate == math.inf
    assert throttle.free_at(1.0) <= 1.0


def test_what_was_sent_since_is_taken_off_what_is_said() -> None:
    throttle = Throttle(1.0, 0)
    for number in range(1, 101):
        throttle.spend(1.0, 30.0, number)
    throttle.heard(Allowance(3000.0, 2970.0, 0.6), 2.0, 1, 1.0)  # 50 a second come back; 99 others take 2,970
    assert throttle.free_at(30.0) == pytest.approx(2.0 + (330.0 - 50.0) / 50.0, abs=0.1)
    throttle.heard(Allowance(3000.0, 600.0, 48.0), 2.0, 80, 1.0)  # 20 others
    assert throttle.free_at(30.0) == pytest.approx(2.0 + (330.0 - 50.0) / 50.0, abs=0.1)
    throttle.heard(Allowance(3000.0, 3000.0, 0.0), 2.0, 40, 1.0)  # of an earlier call: known better
    assert throttle.free_at(30.0) > 2.0


def test_a_large_call_waits_until_there_is_room_for_it_and_one_above_the_limit_until_it_is_full() -> None:
    throttle = Throttle(500.0, 1)
    throttle.heard(Allowance(10_000.0, 2_000.0, 8.0), 10.0, 1, 0.0)  # 1,000 a second come back
    small, large, huge = (throttle.free_at(units) for units in (500.0, 5_000.0, 50_000.0))
    assert small <= 10.0 + 3.0
    assert 10.0 + 4.0 <= large < 10.0 + 7.5
    assert 10.0 + 8.0 <= huge <= 10.0 + 8.2


def test_room_that_the_provider_keeps_for_answers_is_learnt() -> None:
    """A thousand tokens a call where the answers take ten."""
    throttle, left = Throttle(210.0, 0, rooms=True), 100_000.0
    for number in range(1, 41):
        throttle.spend(0.0, 210.0, number)
        left -= 1200.0
        throttle.heard(Allowance(100_000.0, left, (100_000.0 - left) / 1666.0), 0.0, number, 0.0)
    free = throttle.free_at(210.0)
    assert free == 0.0
    for number in range(41, 77):
        throttle.spend(0.0, 210.0, number)
    assert throttle.free_at(210.0) > 0.0  # 52,000 were left, and 36 of them take 43,200


def test_sizes_count_blocks_and_never_go_wild() -> None:
    sizes = Sizes()
    blocks = ({"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "https://x"}})
    request = Request(Head("m"), (Message("user", blocks),))
    assert sizes.guess(request) == 10.0 + 1000.0
    for _ in range(1000):
        sizes.learn(request, Usage(10**9, 0))
        sizes.learn(Request(Head("m"), ()), Usage(5, 5))
        sizes.learn(request, Usage(0, 0))
    assert math.isfinite(sizes.guess(request))


def test_what_a_character_takes_is_learnt_once_however_many_calls_are_in_flight() -> None:
    """Two hundred guessed before the first answer: each says the same, and none adds to another."""
    sizes = Sizes()
    request = Request.of("m", "x" * 4000)
    assert sizes.guess(request) == 1000.0
    for _ in range(200):
        sizes.learn(request, Usage(1600, 100))
    assert sizes.guess(request) == pytest.approx(1600.0, rel=0.01)
    assert sizes.guess(Request.of("m", "x" * 400)) == pytest.approx(160.0, rel=0.01)
