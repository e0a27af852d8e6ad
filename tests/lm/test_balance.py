"""Several endpoints as one model: shares, health, where a retry goes, and whose key goes where."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from typing import Any

import pytest

from dspy_stream.clock import FakeClock
from dspy_stream.errors import (
    LMAuthError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMServerError,
    LMUnavailableError,
)
from dspy_stream.lm import LM
from dspy_stream.lm.backends import Backend
from dspy_stream.lm.balance import Balancer, Member
from dspy_stream.lm.base import SavedLM
from dspy_stream.lm.circuit import BreakerPolicy, Circuit
from dspy_stream.lm.retry import Retry
from dspy_stream.types import Choice, Request, Response
from tests.lm.server import ModelServer, Reply

REQUEST = Request.of("openai/x", "hi")
CANARY = "sk-CANARY-0123456789"


class Place:
    """A layer that answers with its name, when it is let."""

    def __init__(self, name: str, *lines: Any) -> None:
        self.name = name
        self.lines = list(lines)
        self.calls = 0
        self.gate: asyncio.Event | None = None
        self.closed = False

    async def __call__(self, request: Request) -> Response:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        line = self.lines.pop(0) if self.lines else self.name
        if isinstance(line, Exception):
            raise line
        return Response((Choice(line),))

    async def aclose(self) -> None:
        self.closed = True


def balanced(*members: Member, seed: int = 3) -> tuple[Balancer, FakeClock]:
    clock = FakeClock()
    return Balancer(members, name="openai/x", clock=clock, rng=random.Random(seed)), clock


def open_circuit() -> Circuit:
    circuit = Circuit(BreakerPolicy(failures=1), random.Random(0))
    admission = circuit.admit(0.0)
    assert admission is not None
    circuit.failed(admission, 0.0, "503")
    return circuit


async def texts(layer: Any, times: int, *, at_once: bool = False) -> Counter[str]:
    calls = [layer(Request.of("openai/x", str(n))) for n in range(times)]
    answers = await asyncio.gather(*calls) if at_once else [await call for call in calls]
    return Counter(answer.text for answer in answers)


def test_calls_in_flight_are_shared_by_weight() -> None:
    async def go() -> None:
        small, large = Place("small"), Place("large")
        small.gate = large.gate = asyncio.Event()
        balancer, _ = balanced(Member(small), Member(large, weight=3.0))
        tasks = asyncio.ensure_future(texts(balancer, 400, at_once=True))
        for _ in range(3):
            await asyncio.sleep(0)
        assert (small.calls, large.calls) == (100, 300)
        small.gate.set()
        await tasks
        await balancer.aclose()
        assert small.closed
        assert large.closed

    asyncio.run(go())


def test_calls_one_after_the_other_are_shared_by_weight_too() -> None:
    balancer, _ = balanced(Member(Place("small")), Member(Place("large"), weight=3.0))
    shares = asyncio.run(texts(balancer, 1000))
    assert 200 < shares["small"] < 300


def test_a_slow_place_gets_fewer() -> None:
    async def go() -> None:
        slow, fast = Place("slow"), Place("fast")
        slow.gate = asyncio.Event()
        balancer, _ = balanced(Member(slow), Member(fast))
        tasks = []
        for n in range(200):
            tasks.append(asyncio.ensure_future(balancer(Request.of("openai/x", str(n)))))
            for _ in range(3):
                await asyncio.sleep(0)
        assert slow.calls <= 2
        assert fast.calls >= 198
        slow.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())


def test_of_many_places_two_are_compared() -> None:
    async def go() -> None:
        places = [Place(str(n)) for n in range(20)]
        gate = asyncio.Event()
        for place in places:
            place.gate = gate
        balancer, _ = balanced(*(Member(place) for place in places))
        tasks = asyncio.ensure_future(texts(balancer, 1000, at_once=True))
        for _ in range(3):
            await asyncio.sleep(0)
        assert sum(place.calls for place in places) == 1000
        assert max(place.calls for place in places) <= 55
        gate.set()
        await tasks

    asyncio.run(go())


def test_an_open_circuit_and_a_rate_pause_are_passed_over() -> None:
    pause = [30.0]
    down, limited, fine = Place("down"), Place("limited"), Place("fine")
    circuit = open_circuit()
    balancer, clock = balanced(
        Member(down, circuit=circuit), Member(limited, paused=lambda: pause[0]), Member(fine)
    )
    assert asyncio.run(texts(balancer, 50)) == {"fine": 50}
    pause[0] = 0.0
    assert asyncio.run(texts(balancer, 50)).keys() == {"fine", "limited"}
    clock.advance(circuit.wait(0.0))
    assert "down" in asyncio.run(texts(balancer, 50))


def test_where_all_are_paused_the_limit_decides_and_where_all_are_down_nobody_is_asked() -> None:
    balancer, _ = balanced(Member(Place("a"), paused=lambda: 5.0), Member(Place("b"), paused=lambda: 5.0))
    assert sum(asyncio.run(texts(balancer, 10)).values()) == 10
    circuits = [open_circuit(), open_circuit()]
    balancer, _ = balanced(*(Member(Place("x"), circuit=circuit) for circuit in circuits))
    with pytest.raises(LMUnavailableError, match=r"none of the 2 endpoints of openai/x is .*503") as raised:
        asyncio.run(texts(balancer, 1))
    assert raised.value.model == "openai/x"
    assert raised.value.retry_after == min(circuit.wait(0.0) for circuit in circuits)


def test_a_retry_prefers_another_place() -> None:
    async def go() -> None:
        for seed in range(20):
            broken = Place("broken", *[LMServerError("500")] * 100)
            members = [Member(broken), Member(Place("one")), Member(Place("two"))]
            balancer, clock = balanced(*members, seed=seed)
            retry = Retry(balancer, num_retries=1, timeout=60.0, clock=clock, rng=random.Random(0))
            answers = await texts(retry, 20)
            assert broken.calls > 0
            assert sum(answers.values()) == 20  # nobody met it twice
            assert all(member.active == 0 for member in members)

    asyncio.run(go())


def test_a_place_that_fails_fast_is_not_the_least_busy_one() -> None:
    async def go() -> None:
        broken = Place("broken", *[LMServerError("500", status=500)] * 1000)
        slow = [Place("one"), Place("two")]
        for place in slow:
            place.gate = asyncio.Event()
        balancer, clock = balanced(Member(broken), *map(Member, slow))
        tasks = [asyncio.ensure_future(balancer(Request.of("openai/x", str(n)))) for n in range(300)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert broken.calls <= 101  # it has a third, though all of them have failed by now
        for place in slow:
            assert place.gate is not None
            place.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        before = broken.calls
        assert (await texts(balancer, 50)).keys() == {"one", "two"}
        assert broken.calls == before
        broken.lines.clear()  # well again: asked once its failures are forgotten, then as the others
        clock.advance(120.0)
        assert (await texts(balancer, 300))["broken"] > 60

    asyncio.run(go())


def test_a_few_failures_cost_a_place_little() -> None:
    async def go() -> None:
        flaky = Place("flaky", *([LMServerError("500", status=500), *["flaky"] * 19] * 100))
        balancer, clock = balanced(Member(flaky), Member(Place("one")))
        for n in range(1000):
            clock.advance(0.1)
            with contextlib.suppress(LMServerError):
                await balancer(Request.of("openai/x", str(n)))
        assert flaky.calls > 250

    asyncio.run(go())


def test_a_refused_request_is_no_failure_of_its_place() -> None:
    async def go() -> None:
        strict = Place("strict", *[LMInvalidRequestError("400", status=400)] * 1000)
        balancer, _ = balanced(Member(strict), Member(Place("one")))
        for n in range(200):
            with contextlib.suppress(LMInvalidRequestError):
                await balancer(Request.of("openai/x", str(n)))
        assert strict.calls > 60

    asyncio.run(go())


def test_the_only_place_is_asked_again() -> None:
    async def go() -> None:
        flaky = Place("fine", LMServerError("500"))
        balancer, clock = balanced(Member(flaky), Member(Place("x"), circuit=open_circuit()))
        retry = Retry(balancer, num_retries=1, timeout=60.0, clock=clock, rng=random.Random(0))
        assert (await retry(REQUEST)).text == "fine"

    asyncio.run(go())


# --------------------------------------------------------------------------- the model of a user


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def places() -> list[Backend]:
    return [
        Backend("https://one.example/v1", CANARY, weight=2),
        Backend("https://two.example/v1", "sk-other-0123456789"),
    ]


def test_keys_show_nowhere_and_decide_nothing() -> None:
    lm = LM("openai/x", endpoints=places(), temperature=0.5)
    shown = [repr(lm), repr(lm.endpoints), json.dumps(lm.dump_state()), json.dumps(lm.identity())]
    assert [text for text in shown if "CANARY" in text or "sk-" in text] == []
    assert repr(lm) == "LM('openai/x', endpoints=2, temperature=0.5)"
    assert lm.identity() == LM("openai/x", temperature=0.5).identity()
    assert "CANARY" not in repr(places()[0])
    request = lm.request("hi")
    assert request.key() == LM("openai/x", temperature=0.5).request("hi").key()


def test_a_model_in_several_places_is_a_value() -> None:
    lm = LM("openai/x", endpoints=places())
    assert lm == LM("openai/x", endpoints=places())
    assert hash(lm) == hash(LM("openai/x", endpoints=places()))
    assert lm.copy(temperature=1.0).endpoints == lm.endpoints
    assert lm.copy() == lm
    assert lm != LM("openai/x", endpoints=places()[:1])
    assert lm != LM("openai/x")
    moved = lm.copy(api_base="https://three.example/v1", api_key="k")
    assert (moved.endpoints, moved.api_base) == ((), "https://three.example/v1")
    assert LM("openai/x", api_key=["a", "b"]) == LM("openai/x", api_key=["a", "b"])
    assert LM("openai/x", api_key=["a", "b"]) != LM("openai/x", api_key=["a", "c"])


def test_addresses_are_not_taken_from_files() -> None:
    state = json.loads(json.dumps(LM("openai/x", endpoints=places()).dump_state()))
    loaded = LM.load_state(state)
    assert isinstance(loaded, SavedLM)
    with pytest.raises(LMConfigurationError, match="servers are not taken from files"):
        loaded.connect()
    keys = LM("openai/x", api_key=["sk-a", "sk-b"]).dump_state()
    assert LM.load_state(json.loads(json.dumps(keys))) == LM("openai/x")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"endpoints": [Backend("http://a/v1")], "api_base": "http://b/v1"}, "theirs to name"),
        ({"endpoints": [Backend("http://a/v1")], "api_key": "k"}, "theirs to name"),
        ({"api_key": []}, "list of keys is empty"),
        ({"endpoints": [Backend("ftp://a")]}, "http or https"),
    ],
)
def test_places_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LMConfigurationError, match=said):
        LM("openai/x", **settings)
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(LMConfigurationError, match="weight"):
            Backend(weight=weight)
    for more in ({"endpoints": [Backend("http://a/v1")]}, {"api_key": ["a", "b"]}):
        with pytest.raises(LMConfigurationError, match="in this process"):
            LM("local/nearest", **more)


def test_each_server_is_sent_its_own_key_and_a_retry_goes_to_the_other() -> None:
    async def go() -> None:
        down = Reply(b"down", status=503)
        async with (
            ModelServer(then=lambda seen: down) as broken,
            ModelServer() as fine,
        ):
            lm = LM(
                "openai/x",
                endpoints=[
                    Backend(broken.url, CANARY),
                    Backend(fine.url, "sk-other-0123456789", model="openai/x-there"),
                ],
                num_retries=1,
                breaker=BreakerPolicy(failures=3),
            )
            layer = lm.connect(clock=FakeClock())
            results = []
            for n in range(40):
                try:
                    results.append(await layer(lm.request(str(n))))
                except LMError as error:
                    results.append(error)
            await layer.aclose()
        assert [type(result) for result in results] == [Response] * 40
        assert {seen.headers["authorization"] for seen in broken.seen} == {f"Bearer {CANARY}"}
        assert {seen.headers["authorization"] for seen in fine.seen} == {"Bearer sk-other-0123456789"}
        assert {seen.json["model"] for seen in fine.seen} == {"x-there"}
        assert 1 <= len(broken.seen) <= 20  # after a failure or two it is left alone for a while
        assert len(fine.seen) == 40

    asyncio.run(go())


def test_several_keys_share_the_calls_to_one_server() -> None:
    async def go() -> None:
        async with ModelServer() as server:
            lm = LM("openai/x", api_base=server.url, api_key=["sk-one", "sk-two"])
            layer = lm.connect(clock=FakeClock())
            await asyncio.gather(*(layer(lm.request(str(n))) for n in range(40)))
            await layer.aclose()
            used = Counter(seen.headers["authorization"] for seen in server.seen)
            assert used == {"Bearer sk-one": 20, "Bearer sk-two": 20}
            elsewhere = lm.copy(endpoints=[lm.endpoints[0]])
            assert elsewhere.endpoints[0].api_key == lm.endpoints[0].api_key
            with pytest.raises(LMConfigurationError, match="is not sent to"):
                LM(
                    "openai/x",
                    endpoints=[Backend("https://evil.example/v1", lm.endpoints[0].api_key)],
                ).connect()

    asyncio.run(go())


# ------------------------------------------------------------------------------- a key that is dead


@pytest.mark.parametrize("status", [401, 403, 402])
def test_a_key_that_is_refused_is_left_out_while_others_are_taken(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        def then(seen: Any) -> Reply:
            dead = seen.headers["authorization"] == "Bearer dead"
            return Reply(b'{"error":{"message":"no"}}', status=status) if dead else Reply()

        async with ModelServer(then=then) as server:
            lm = LM("openai/x", api_base=server.url, api_key=["dead", "alive"], num_retries=0)
            layer = lm.connect()
            asked = (layer(lm.request(f"question {n}")) for n in range(50))
            made = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(each) for each in made] == [Response] * 50
            before = len(server.seen)
            await layer(lm.request("one more"))
            await layer.aclose()
        keys = [seen.headers["authorization"] for seen in server.seen]
        assert keys.count("Bearer alive") == 51
        assert keys[before:] == ["Bearer alive"]

    asyncio.run(go())
    assert caplog.text.count("is left out from now on") == 1
    assert "dead" not in caplog.text


def test_a_key_that_alone_fails_hardly_delays_the_others() -> None:
    """The circuit is the server's, and opens where most calls fail: they must not."""

    async def go() -> None:
        used: Counter[str] = Counter()

        def then(seen: Any) -> Reply:
            key = seen.headers["authorization"]
            used[key] += 1
            return Reply(b"{}", status=500) if key == "Bearer bad" else Reply(delay=0.01)

        async with ModelServer(then=then) as server:
            lm = LM("openai/x", api_base=server.url, api_key=["bad", "good"])
            layer = lm.connect()
            gate = asyncio.Semaphore(64)

            async def row(number: int) -> Response:
                async with gate:
                    return await layer(lm.request(f"question {number}"))

            await asyncio.gather(*(row(number) for number in range(300)))
            await layer.aclose()
        assert used["Bearer good"] == 300
        assert used["Bearer bad"] < 100

    asyncio.run(go())


def test_where_all_keys_are_refused_the_flow_stops() -> None:
    async def go() -> None:
        refused = Reply(b'{"error":{"message":"no"}}', status=401)
        async with ModelServer(then=lambda seen: refused) as server:
            lm = LM("openai/x", api_base=server.url, api_key=["one", "two"])
            layer = lm.connect()
            with pytest.raises(LMAuthError):
                await layer(lm.request("q"))
            with pytest.raises(LMAuthError):
                await layer(lm.request("r"))
            await layer.aclose()
        assert len(server.seen) == 3

    asyncio.run(go())
