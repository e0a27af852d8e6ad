"""The circuit as a state machine under hypothesis, and the layer over it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from dspy_stream.clock import FakeClock
from dspy_stream.errors import (
    LMAuthError,
    LMConfigurationError,
    LMError,
    LMIncompleteError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
    LMUnavailableError,
)
from dspy_stream.lm import LM
from dspy_stream.lm.breaker import Breaker, still_allowed
from dspy_stream.lm.circuit import BreakerPolicy, Circuit, circuit_for, speaks_of_the_server
from dspy_stream.lm.limit import Limit, Limiter, Limits
from dspy_stream.lm.witness import ON_TRIAL
from dspy_stream.types import Choice, Request, Response
from tests.lm.server import ModelServer, Reply

REQUEST = Request.of("openai/x", "hi")
POLICY = BreakerPolicy(failures=3, ratio=0.5, least=8, window=20.0, pause=1.0, longest=8.0)


def opened(policy: BreakerPolicy = POLICY, now: float = 0.0) -> Circuit:
    circuit = Circuit(policy, random.Random(0))
    while circuit.state == "closed":
        fail(circuit, now)
    return circuit


def fail(circuit: Circuit, now: float, **more: Any) -> None:
    admission = circuit.admit(now)
    assert admission is not None
    circuit.failed(admission, now, "503", **more)


def succeed(circuit: Circuit, now: float) -> None:
    admission = circuit.admit(now)
    assert admission is not None
    circuit.succeeded(admission, now)


# ----------------------------------------------------------------------------------- the circuit


def test_so_many_failures_in_a_row_open_it() -> None:
    circuit = Circuit(BreakerPolicy(failures=3), random.Random(0))
    for _ in range(3):
        fail(circuit, 0.0)
        succeed(circuit, 0.0)
    assert circuit.state == "closed"
    for _ in range(3):
        assert circuit.state == "closed"
        fail(circuit, 9.0)
    assert (circuit.state, circuit.reason) == ("open", "503")


def test_a_server_that_answers_now_and_then_is_not_down() -> None:
    """Nine calls in ten fail for a minute at a hundred a second; then all do."""
    circuit, rng, now, made = Circuit(BreakerPolicy(), random.Random(0)), random.Random(1), 0.0, 0
    succeed(circuit, now)
    while now < 60.0:
        now += 0.01
        if circuit.ready(now):
            made += 1
            (fail if rng.random() < 0.9 else succeed)(circuit, now)
    assert made > 5000
    ends = now
    while circuit.state == "closed":
        now += 0.01
        fail(circuit, now)
    assert now - ends < 10.0


def test_an_outage_of_a_server_that_often_fails_has_pauses_like_any_other() -> None:
    circuit = Circuit(BreakerPolicy(pause=1.0), random.Random(0))
    now = 0.0
    for number in range(400):  # one call in ten passes
        now += 0.01
        admission = circuit.admit(now)
        assert admission is not None
        circuit.succeeded(admission, now) if number % 10 == 9 else circuit.failed(admission, now, "500")
    trials = []
    while now < 60.0:  # and then none
        now += 0.01
        admission = circuit.admit(now)
        if admission is not None:
            if circuit.state != "closed":
                trials.append(now)
            circuit.failed(admission, now, "500")
    assert min(after - before for before, after in itertools.pairwise(trials)) >= 0.5
    assert trials[-1] - trials[-2] >= 10.0


def test_an_answer_that_comes_late_shows_that_it_is_there() -> None:
    circuit = Circuit(BreakerPolicy(), random.Random(0))
    early = circuit.admit(0.0)
    while circuit.state == "closed":
        fail(circuit, 0.0)
    assert not circuit.ready(0.1)
    assert early is not None
    circuit.succeeded(early, 0.1)
    assert circuit.ready(0.1)


def test_most_calls_of_a_window_open_it_but_never_a_few() -> None:
    circuit = Circuit(POLICY, random.Random(0))
    for _ in range(3):
        fail(circuit, 0.0)
        succeed(circuit, 0.0)
    fail(circuit, 0.0)
    assert circuit.state == "closed"
    fail(circuit, 0.0)
    assert circuit.state == "open"


def test_what_is_older_than_the_window_is_forgotten() -> None:
    circuit = Circuit(POLICY, random.Random(0))
    for now in (0.0, 100.0, 200.0, 300.0):
        fail(circuit, now)
        succeed(circuit, now)
        fail(circuit, now)
    assert circuit.state == "closed"


def test_it_stays_open_for_longer_each_time_and_never_for_too_long() -> None:
    circuit, now, pauses = opened(), 0.0, []
    for _ in range(8):
        pause = circuit.wait(now)
        pauses.append(pause)
        assert circuit.admit(now + 0.99 * pause) is None
        now += pause
        fail(circuit, now)
    for number, pause in enumerate(pauses):
        longest = min(8.0, 2.0**number)
        assert 0.5 * longest <= pause <= longest
    assert len(set(pauses)) == len(pauses)


def test_the_server_s_own_wish_goes_before() -> None:
    circuit = opened()
    now = circuit.wait(0.0)
    fail(circuit, now, retry_after=55.0)
    assert circuit.wait(now) == 55.0


def test_one_call_tries_it_and_all_others_are_refused() -> None:
    circuit = opened()
    now = circuit.wait(0.0)
    assert circuit.ready(now)
    trial = circuit.admit(now)
    assert (circuit.state, circuit.ready(now)) == ("half open", False)
    assert [circuit.admit(now + n) for n in range(50)] == [None] * 50
    assert circuit.wait(now) == POLICY.pause
    assert trial is not None
    circuit.succeeded(trial, now)
    assert circuit.state == "closed"


def test_a_trial_that_was_given_up_is_made_by_the_next() -> None:
    circuit = opened()
    now = circuit.wait(0.0)
    trial = circuit.admit(now)
    assert trial is not None
    circuit.released(trial, now)
    assert circuit.admit(now) is not None
    circuit.released(trial, now)  # too late to matter
    assert circuit.admit(now) is None


def test_a_failed_check_waits_without_growing() -> None:
    circuit, now = opened(), 0.0
    for _ in range(10):
        now += circuit.wait(now)
        trial = circuit.admit(now)
        assert trial is not None
        circuit.postponed(trial, now)
        assert 0.5 <= circuit.wait(now) <= 1.0


def test_several_trials_may_be_wanted() -> None:
    circuit = opened(BreakerPolicy(failures=1, successes=3))
    now = circuit.wait(0.0)
    for state in ("open", "open", "closed"):
        succeed(circuit, now)
        assert circuit.state == state
    circuit = opened(BreakerPolicy(failures=1, successes=2))
    now = circuit.wait(0.0)
    succeed(circuit, now)
    fail(circuit, now)
    assert circuit.wait(now) > 0.9  # the second opening


def test_calls_made_before_it_opened_do_not_count() -> None:
    circuit = Circuit(POLICY, random.Random(0))
    early = [circuit.admit(0.0) for n in range(100)]
    for admission in early:
        assert admission is not None
        circuit.failed(admission, 0.0, "reset")
    first = circuit.wait(0.0)
    assert first <= POLICY.pause  # once for all of them, not once for each
    assert early[0] is not None
    circuit.succeeded(early[0], 0.5)
    assert circuit.state == "open"


def test_flapping_keeps_the_pauses_long_and_calm_makes_them_short() -> None:
    circuit, now = opened(), 0.0
    for _ in range(4):
        now += circuit.wait(now)
        succeed(circuit, now)
        now += 5 * POLICY.pause
        for _ in range(3):
            fail(circuit, now)
    assert circuit.wait(now) >= 4.0
    now += circuit.wait(now)
    succeed(circuit, now)
    now += POLICY.window + 1.0
    for _ in range(3):
        fail(circuit, now)
    assert circuit.wait(now) <= 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": 0},
        {"ratio": 0.0},
        {"ratio": 1.5},
        {"least": 0},
        {"window": 0.0},
        {"pause": 0.0},
        {"pause": 9.0, "longest": 8.0},
        {"successes": 0},
        {"pause": float("nan")},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LMConfigurationError, match="BreakerPolicy"):
        BreakerPolicy(**wrong)


def test_a_process_has_one_circuit_for_a_model_at_an_address() -> None:
    clock, rng = FakeClock(), random.Random(0)
    one = circuit_for("http://a/v1", "m", POLICY, clock=clock, rng=rng)
    assert circuit_for("http://a/v1", "m", POLICY, clock=clock, rng=rng) is one
    for url, model, policy, time in (
        ("http://b/v1", "m", POLICY, clock),
        ("http://a/v1", "n", POLICY, clock),
        ("http://a/v1", "m", BreakerPolicy(), clock),
        ("http://a/v1", "m", POLICY, FakeClock()),
    ):
        assert circuit_for(url, model, policy, clock=time, rng=rng) is not one


class Machine(RuleBasedStateMachine):
    """Any order of calls, answers and moments: the promises hold in all of them."""

    flying = Bundle("flying")

    def __init__(self) -> None:
        super().__init__()
        self.policy = BreakerPolicy(failures=2, ratio=0.5, least=4, window=10.0, pause=1.0, longest=4.0)
        self.circuit = Circuit(self.policy, random.Random(1))
        self.now = 0.0
        self.trials: set[int] = set()
        self.calls = 0

    @rule(seconds=st.floats(0.0, 6.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=flying)
    def call(self) -> int | None:
        state, wait = self.circuit.state, self.circuit.wait(self.now)
        ready = self.circuit.ready(self.now)
        admission = self.circuit.admit(self.now)
        assert (admission is not None) == ready
        if admission is None:
            assert state != "closed"
            return None
        assert state != "half open", "a second trial call"
        assert state == "closed" or wait == 0.0, "a call through an open circuit"
        if state == "open":
            assert not self.trials, "two trial calls at once"
            self.trials.add(admission)
        return admission

    @rule(flown=consumes(flying))
    def answer(self, flown: int | None) -> None:
        if flown is not None:
            self.circuit.succeeded(flown, self.now)
            self.trials.discard(flown)

    @rule(flown=consumes(flying), asked=st.none() | st.floats(0.0, 60.0))
    def failure(self, flown: int | None, asked: float | None) -> None:
        if flown is not None:
            was_trial = flown in self.trials
            self.circuit.failed(flown, self.now, "500", asked)
            self.trials.discard(flown)
            if was_trial:
                assert self.circuit.state == "open"
                assert self.circuit.wait(self.now) >= max(0.5, asked or 0.0) - 1e-9
                assert self.circuit.wait(self.now) <= max(4.0, asked or 0.0) + 1e-9

    @rule(flown=consumes(flying))
    def give_up(self, flown: int | None) -> None:
        if flown is not None:
            self.circuit.released(flown, self.now)
            self.trials.discard(flown)

    @rule(flown=consumes(flying))
    def check_fails(self, flown: int | None) -> None:
        if flown is not None and flown in self.trials:
            self.circuit.postponed(flown, self.now)
            self.trials.discard(flown)

    @precondition(lambda self: not self.trials)
    @rule()
    def it_can_always_be_closed_again(self) -> None:
        self.now += self.circuit.wait(self.now) + 1e-9
        if self.circuit.state == "open":
            trial = self.circuit.admit(self.now)
            assert trial is not None
            self.circuit.succeeded(trial, self.now)
        assert self.circuit.state == "closed"

    @invariant()
    def half_open_means_one_trial(self) -> None:
        assert len(self.trials) == (self.circuit.state == "half open")


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=30)


# ------------------------------------------------------------------------------ which errors count


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (LMServerError("x", status=500), True),
        (LMServerError("x", status=529), True),
        (LMServerError("x"), True),
        (LMTransportError("refused"), True),
        (LMIncompleteError("cut"), True),
        (LMTimeoutError("late"), True),
        (LMTimeoutError("x", status=408), False),
        (LMServerError("x", status=409), False),
        (LMRateLimitError("x", status=429), False),
        (LMAuthError("x", status=401), False),
        (LMInvalidRequestError("x", status=400), False),
        (LMProviderError("too long"), False),
        (LMUnavailableError("x"), False),
        (LMConfigurationError("certificate"), False),
    ],
)
def test_only_failures_of_the_server_count(error: LMError, counts: bool) -> None:
    assert speaks_of_the_server(error) is counts


# ------------------------------------------------------------------------------------- the layer


class Script:
    """A layer that raises or answers in order."""

    def __init__(self, *lines: Any) -> None:
        self.lines = list(lines)
        self.calls = 0
        self.gate: asyncio.Event | None = None

    async def __call__(self, request: Request) -> Response:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        line = self.lines.pop(0) if self.lines else "fine"
        if isinstance(line, Exception):
            raise line
        return Response((Choice(line),))

    async def aclose(self) -> None:
        self.closed = True


def layer(*lines: Any, **more: Any) -> tuple[Breaker, Script, FakeClock, Circuit]:
    clock = FakeClock()
    circuit = Circuit(POLICY, random.Random(0))
    script = Script(*lines)
    return Breaker(script, circuit, name="openai/x", clock=clock, **more), script, clock, circuit


async def outcome(call: Any) -> Any:
    try:
        return (await call(REQUEST)).text
    except LMError as error:
        return error


def test_while_it_is_open_nothing_is_asked_and_the_error_says_until_when() -> None:
    async def go() -> None:
        breaker, script, clock, circuit = layer(*[LMServerError("503: overloaded")] * 3, "fine")
        for _ in range(3):
            assert isinstance(await outcome(breaker), LMServerError)
        refused = await outcome(breaker)
        assert isinstance(refused, LMUnavailableError)
        assert refused.retry_after == circuit.wait(0.0) > 0.0
        assert "503: overloaded" in str(refused)
        assert (refused.model, script.calls) == ("openai/x", 3)
        clock.advance(refused.retry_after)
        assert await outcome(breaker) == "fine"
        assert circuit.state == "closed"
        await breaker.aclose()
        assert script.closed

    asyncio.run(go())


def test_failures_of_a_call_on_trial_do_not_open_it_but_keep_it_open() -> None:
    async def go() -> None:
        breaker, script, clock, circuit = layer(*[LMServerError("500")] * 9, "fine")
        token = ON_TRIAL.set(True)
        for _ in range(4):
            assert isinstance(await outcome(breaker), LMServerError)
        assert circuit.state == "closed"
        ON_TRIAL.reset(token)
        for _ in range(3):
            await outcome(breaker)
        assert circuit.state == "open"
        clock.advance(circuit.wait(0.0))
        token = ON_TRIAL.set(True)
        await outcome(breaker)
        ON_TRIAL.reset(token)
        assert circuit.state == "open"
        assert circuit.wait(clock.monotonic()) > 0.0
        assert script.calls == 8

    asyncio.run(go())


def test_a_hundred_rows_make_one_trial_call() -> None:
    async def go() -> None:
        breaker, script, clock, circuit = layer(*[LMServerError("503")] * 3)
        for _ in range(3):
            await outcome(breaker)
        clock.advance(circuit.wait(0.0))
        script.gate = asyncio.Event()
        rows = [asyncio.ensure_future(outcome(breaker)) for _ in range(100)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert script.calls == 4
        assert sum(row.done() for row in rows) == 99
        script.gate.set()
        results = await asyncio.gather(*rows)
        assert results.count("fine") == 1
        assert sum(isinstance(result, LMUnavailableError) for result in results) == 99

    asyncio.run(go())


@pytest.mark.parametrize(
    "refusal", [LMInvalidRequestError("x", status=400), LMRateLimitError("x", status=429)]
)
def test_a_refusal_shows_that_the_server_is_there(refusal: LMError) -> None:
    async def go() -> None:
        down = LMServerError("503")
        breaker, _, clock, circuit = layer(down, down, refusal, down, down, down, refusal)
        for _ in range(6):
            assert circuit.state == "closed"
            clock.advance(3.0)
            await outcome(breaker)
        assert circuit.state == "open"
        clock.advance(circuit.wait(clock.monotonic()))
        assert await outcome(breaker) is refusal
        assert circuit.state == "closed"

    asyncio.run(go())


def test_a_trial_call_that_is_cancelled_does_not_hold_the_circuit() -> None:
    async def go() -> None:
        breaker, script, clock, circuit = layer(*[LMServerError("503")] * 3)
        for _ in range(3):
            await outcome(breaker)
        clock.advance(circuit.wait(0.0))
        script.gate = asyncio.Event()
        lost = asyncio.ensure_future(breaker(REQUEST))
        await asyncio.sleep(0)
        assert circuit.state == "half open"
        lost.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lost
        script.gate.set()
        assert await outcome(breaker) == "fine"

    asyncio.run(go())


class Check:
    """A health check that is told what to find."""

    def __init__(self, *findings: bool) -> None:
        self.findings = list(findings)
        self.closed = False

    async def __call__(self) -> bool:
        return self.findings.pop(0)

    async def aclose(self) -> None:
        self.closed = True


def test_with_a_health_check_no_row_is_risked_before_it_passes() -> None:
    async def go() -> None:
        check = Check(False, False, True)
        breaker, script, clock, circuit = layer(*[LMServerError("503")] * 3, healthy=check)
        for _ in range(3):
            await outcome(breaker)
        for _ in range(2):
            clock.advance(circuit.wait(clock.monotonic()))
            refused = await outcome(breaker)
            assert isinstance(refused, LMUnavailableError)
            assert 0.5 <= (refused.retry_after or 0.0) <= 1.0
        assert script.calls == 3
        clock.advance(circuit.wait(clock.monotonic()))
        assert await outcome(breaker) == "fine"
        assert (check.findings, script.calls) == ([], 4)
        await breaker.aclose()
        assert check.closed

    asyncio.run(go())


def test_calls_that_waited_for_a_permit_meanwhile_are_not_made() -> None:
    async def go() -> None:
        clock = FakeClock()
        circuit = Circuit(POLICY, random.Random(0))
        script = Script()
        allowed = still_allowed(circuit, name="openai/x", clock=clock)
        limiter = Limiter(Limits(concurrency=1))
        limit = Limit(script, limiter, clock=clock, allowed=allowed)
        held = limiter.control.take(0.0)  # the only permit
        breaker = Breaker(limit, circuit, name="openai/x", clock=clock, trial=script)
        waiting = [asyncio.ensure_future(_caught(breaker, Request.of("openai/x", str(n)))) for n in range(20)]
        await asyncio.sleep(0)
        for _ in range(3):
            fail(circuit, 0.0)
        limiter.dropped(clock, held)
        results = await asyncio.gather(*waiting)
        assert script.calls == 0
        assert {type(result) for result in results} == {LMUnavailableError}
        clock.advance(circuit.wait(0.0))
        assert limiter.control.take(clock.monotonic())  # all are held: the trial call needs none
        assert await outcome(breaker) == "fine"
        assert script.calls == 1

    asyncio.run(go())


async def _caught(call: Any, request: Request) -> Any:
    try:
        return await call(request)
    except LMError as error:
        return error


# ------------------------------------------------------------------------------- the model of a user


def test_breaker_and_health_are_settings_like_others() -> None:
    lm = LM("openai/x", breaker=BreakerPolicy(failures=3), health="/models")
    assert lm == LM("openai/x", breaker=BreakerPolicy(failures=3), health="/models")
    assert lm not in (LM("openai/x"), lm.copy(health=None), lm.copy(breaker=BreakerPolicy()))
    assert lm.copy(temperature=1.0).copy(temperature=None) == lm
    limited = LM("openai/x", limits=Limits(requests_per_minute=60, concurrency=2))
    assert limited == limited.copy()
    assert limited != LM("openai/x")
    for made in (lm, limited, LM("openai/x", breaker=None), LM("openai/x")):
        assert LM.load_state(json.loads(json.dumps(made.dump_state()))) == made
    assert not {"breaker", "limits", "health", "fallbacks"} & LM("openai/x").dump_state().keys()
    assert lm.identity() == LM("openai/x").identity()
    for wrong in ({"health": "models"}, {"health": "/models", "breaker": None}):
        with pytest.raises(LMConfigurationError, match="health is a path"):
            LM("openai/x", **wrong)
    broken = LM.load_state({"model": "openai/x", "breaker": {"failures": 0}})
    with pytest.raises(LMConfigurationError, match="cannot be asked"):
        broken.connect()


def test_two_users_of_a_server_share_its_circuit_and_its_check() -> None:
    async def go() -> None:
        clock = FakeClock()
        sick = [Reply(b"down", status=503)] * 4
        async with ModelServer(*sick) as server:
            policy = BreakerPolicy(failures=3, pause=4.0)
            settings: dict[str, Any] = {"api_base": server.url, "breaker": policy, "num_retries": 0}
            one = LM("openai/x", health="/models", api_key="sk-the-key", **settings)
            two = one.copy(temperature=1.0)
            layers = [one.connect(clock=clock), two.connect(clock=clock)]
            for n in range(4):
                error = await outcome_of(layers[n % 2], one.request(str(n)))
            assert isinstance(error, LMUnavailableError)
            assert len(server.seen) == 3
            clock.advance(4.0)
            for n in range(4):  # the check fails, once
                error = await outcome_of(layers[n % 2], one.request(str(n)))
                assert isinstance(error, LMUnavailableError)
            assert len(server.seen) == 4
            clock.advance(4.0)
            answer = await outcome_of(layers[0], one.request("a"))
            assert isinstance(answer, Response)
            for layer in layers:
                await layer.aclose()
        heads = [seen.head.split(b" HTTP")[0] for seen in server.seen]
        ask, check = b"POST /v1/chat/completions", b"GET /v1/models"
        assert heads == [ask, ask, ask, check, check, ask]
        assert {seen.headers["authorization"] for seen in server.seen} == {"Bearer sk-the-key"}

    asyncio.run(go())


async def outcome_of(layer: Any, request: Request) -> Any:
    try:
        return await layer(request)
    except LMError as error:
        return error
