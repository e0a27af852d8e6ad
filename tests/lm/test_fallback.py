"""Other models in order: when they are asked, with what, and what is raised when none answers."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from dspy_stream.clock import FakeClock
from dspy_stream.errors import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMIncompleteError,
    LMInvalidRequestError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
    LMUnavailableError,
    LMUnsupportedModelError,
)
from dspy_stream.lm import LM, LocalLM, Price, ScriptedLM
from dspy_stream.lm.cache import DictJournal
from dspy_stream.lm.circuit import BreakerPolicy
from dspy_stream.lm.fallback import Alternative, Fallback
from dspy_stream.types import Capabilities, Head, Message, Request, Response
from tests.lm.server import ModelServer, Reply, completion

FIRST = {"temperature": 0.5, "max_tokens": 100}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def layer_of(lm: ScriptedLM) -> Any:
    return lm._paid(FakeClock(), random.Random(0))


def asked(
    first: ScriptedLM, *others: ScriptedLM, options: dict[str, Any] | None = None, **how: Any
) -> tuple[Any, list[ScriptedLM]]:
    """Ask once; the answer's text or the error, and the models."""
    alternatives = [Alternative(lm.model, layer_of(lm), lm.options or None, **how) for lm in others]
    fallback = Fallback(layer_of(first), FIRST, alternatives)
    head = Head("openai/first", (Message("system", "s"),), options if options is not None else FIRST)

    async def go() -> Any:
        try:
            return (await fallback(Request(head, (Message("user", "hi"),), 7))).text
        except LMError as error:
            return error

    return asyncio.run(go()), [first, *others]


OUTAGES = [
    LMServerError("503"),
    LMTransportError("refused"),
    LMIncompleteError("cut"),
    LMTimeoutError("late"),
    LMRateLimitError("429"),
    LMUnavailableError("open", retry_after=9.0),
    ContextWindowExceededError("too long", status=400),
]
FINAL = [
    LMAuthError("401"),
    LMBillingError("402"),
    LMUnsupportedModelError("404"),
    LMInvalidRequestError("400"),
    LMConfigurationError("certificate"),
]


@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: error.code)
def test_the_next_model_is_asked_in_an_outage(error: LMError) -> None:
    answer, (first, second, third) = asked(ScriptedLM([error]), ScriptedLM("two"), ScriptedLM("three"))
    assert answer == "two"
    assert (first.call_count, second.call_count, third.call_count) == (1, 1, 0)


@pytest.mark.parametrize("error", FINAL, ids=lambda error: error.code)
def test_a_mistake_is_not_hidden_by_another_model(error: LMError) -> None:
    answer, (_, second) = asked(ScriptedLM([error]), ScriptedLM("two"))
    assert answer is error
    assert second.call_count == 0


def test_they_are_asked_in_order_until_one_answers() -> None:
    down = LMServerError("down")
    answer, models = asked(*(ScriptedLM([down]) for _ in range(3)), ScriptedLM("four"))
    assert answer == "four"
    assert [lm.call_count for lm in models] == [1, 1, 1, 1]


def test_when_none_answers_the_row_waits_for_the_first_that_may() -> None:
    refused = LMInvalidRequestError("400: no such option", status=400)
    first = LMServerError("503: overloaded", model="openai/first", retry_after=30.0)
    answer, _ = asked(ScriptedLM([first]), ScriptedLM([refused], model="b"), ScriptedLM("never"))
    assert answer is first
    assert "503: overloaded; nor did another model answer: 400: no such option" in str(answer)
    assert (answer.retryable, answer.model, answer.attempts) == (True, "openai/first", 2)
    soon = LMUnavailableError("open", model="b", retry_after=2.0)
    answer, _ = asked(ScriptedLM([ContextWindowExceededError("long")]), ScriptedLM([soon], model="b"))
    assert (answer, answer.retry_after, answer.model) == (soon, 2.0, "openai/first")
    answer, _ = asked(ScriptedLM([LMServerError("x", retry_after=9.0)]), ScriptedLM([soon]))
    assert answer.retry_after == 2.0


def test_a_wrong_key_of_another_model_is_told_at_once() -> None:
    wrong = LMAuthError("401")
    answer, models = asked(ScriptedLM([LMServerError("x")]), ScriptedLM([wrong]), ScriptedLM("never"))
    assert answer is wrong
    assert models[2].call_count == 0


def test_a_prompt_too_long_for_all_is_the_row_s_own_failure() -> None:
    answer, _ = asked(
        ScriptedLM([ContextWindowExceededError("a")]), ScriptedLM([ContextWindowExceededError("b")])
    )
    assert isinstance(answer, ContextWindowExceededError)
    assert not answer.retryable


# ------------------------------------------------------------------------------- what is asked


def test_a_name_takes_the_options_along_and_a_model_brings_its_own() -> None:
    down = LMServerError("x")
    options = {"temperature": 0.5, "max_tokens": 7, "response_format": {"type": "json_object"}}
    can = {"capabilities": Capabilities(json_mode=True)}
    _, (_, plain) = asked(ScriptedLM([down]), ScriptedLM("a", model="b/plain"), options=options, **can)
    (request,) = plain.calls
    assert request.options == options
    assert (request.model, request.rollout_id) == ("b/plain", 7)
    assert [message.role for message in request.messages] == ["system", "user"]
    own = ScriptedLM("a", model="b/own", temperature=1.0, top_p=0.1, max_tokens=50)
    asked(ScriptedLM([down]), own, options=options, **can)
    # temperature was the first model's own; max_tokens is other than that and so the predictor's
    expected = {"temperature": 1.0, "top_p": 0.1, "max_tokens": 7, "response_format": {"type": "json_object"}}
    assert own.calls[0].options == expected


@pytest.mark.parametrize(
    ("form", "able", "kept"),
    [
        ({"type": "json_object"}, Capabilities(), False),
        ({"type": "json_object"}, Capabilities(json_mode=True), True),
        ({"type": "json_schema", "json_schema": {}}, Capabilities(json_mode=True), False),
        ({"type": "json_schema", "json_schema": {}}, Capabilities(structured_outputs=True), True),
        ("odd", Capabilities(structured_outputs=True), False),
    ],
)
def test_a_response_format_is_asked_of_those_who_know_it(form: Any, able: Capabilities, kept: bool) -> None:
    other = ScriptedLM("a", model="b/x")
    options = {**FIRST, "response_format": form}
    asked(ScriptedLM([LMServerError("x")]), other, options=options, capabilities=able)
    assert ("response_format" in other.calls[0].options) is kept


def test_the_head_is_made_once_and_apart_for_each_model() -> None:
    down = LMServerError("x")
    one, two = ScriptedLM([down, down], model="b/one"), ScriptedLM("a", model="b/two")
    fallback = Fallback(
        layer_of(ScriptedLM([down, down])), {}, [Alternative(lm.model, layer_of(lm)) for lm in (one, two)]
    )
    head = Head("openai/first", (Message("system", "s"),))

    async def go() -> None:
        for text in ("a", "b"):
            await fallback(Request(head, (Message("user", text),)))

    asyncio.run(go())
    for lm in (one, two):
        assert lm.calls[0].head is lm.calls[1].head
        assert lm.calls[0].head is not head
    assert one.calls[0].head is not two.calls[0].head


def test_another_model_is_asked_under_another_name() -> None:
    """The provider must not take it for a repetition of the call that failed."""
    other = ScriptedLM("a", model="b/x")
    fallback = Fallback(
        layer_of(ScriptedLM([LMServerError("x")] * 2)), {}, [Alternative("b/x", layer_of(other))]
    )

    async def go() -> None:
        for cache, private in ((True, None), (False, b"run/row")):
            request = Request(Head("openai/first"), (Message("user", "hi"),), None, cache, private)
            await fallback(request)
            assert other.calls[-1].journal_key() != request.journal_key()
            assert other.calls[-1].cache is cache

    asyncio.run(go())


# ------------------------------------------------------------------------------- the model of a user


def test_the_answer_is_kept_under_the_first_model_s_key() -> None:
    async def go() -> None:
        journal = DictJournal()
        other = ScriptedLM(["from the other"], model="b/x")
        async with ModelServer(then=lambda seen: Reply(b"down", status=503)) as server:
            lm = LM("openai/first", api_base=server.url, num_retries=0, fallbacks=[other])
            layer: Any = lm.connect(journal, clock=FakeClock())
            request = lm.request("hi")
            answer = await layer(request)
            assert (answer.text, answer.model, answer.cached) == ("from the other", "b/x", False)
            again = layer.peek(request)
            await layer.aclose()
        assert (again.text, again.model, again.cached) == ("from the other", "b/x", True)
        assert list(journal.entries) == [request.key()]
        assert len(server.seen) == other.call_count == 1

    asyncio.run(go())


def test_the_price_is_that_of_the_one_who_answered() -> None:
    async def go() -> Response:
        async with (
            ModelServer(then=lambda seen: Reply(b"down", status=503)) as dear,
            ModelServer(then=lambda seen: Reply(completion("ok"))) as cheap,
        ):
            lm = LM(
                "openai/dear",
                api_base=dear.url,
                num_retries=0,
                prices={"openai/dear": Price(1e6, 1e6)},
                fallbacks=[LM("openai/cheap", api_base=cheap.url, prices={"openai/cheap": Price(1.0, 2.0)})],
            )
            layer = lm.connect(clock=FakeClock())
            try:
                return await layer(lm.request("hi"))
            finally:
                await layer.aclose()

    answer = asyncio.run(go())
    assert answer.usage.cost == pytest.approx((12 * 1.0 + 3 * 2.0) / 1e6)


def test_an_open_circuit_is_not_waited_for_while_there_is_another_model() -> None:
    async def go() -> None:
        clock = FakeClock()
        async with ModelServer(then=lambda seen: Reply(b"down", status=503)) as server:
            other = ScriptedLM("other", model="b/x")
            lm = LM(
                "openai/x",
                api_base=server.url,
                num_retries=0,
                breaker=BreakerPolicy(failures=3, pause=20.0),
                fallbacks=[other],
            )
            layer = lm.connect(clock=clock)
            for n in range(30):
                assert (await layer(lm.request(str(n)))).text == "other"
            await layer.aclose()
        assert (len(server.seen), other.call_count) == (3, 30)
        assert sum(clock.slept) < 1.0  # for permits; the circuit would have had it wait for twenty

    asyncio.run(go())


def test_the_last_model_is_waited_for() -> None:
    async def go() -> None:
        clock = FakeClock()
        policy = BreakerPolicy(failures=2, pause=5.0)
        async with ModelServer(*[Reply(b"down", status=503)] * 4) as server:
            settings: dict[str, Any] = {"api_base": server.url, "breaker": policy, "num_retries": 1}
            lm = LM("openai/a", fallbacks=[LM("openai/b", **settings)], **settings)
            layer = lm.connect(clock=clock)
            with pytest.raises(LMServerError):
                await layer(lm.request("1"))
            answer = await layer(lm.request("2"))
            await layer.aclose()
        # Both circuits are open: the first model's is passed over, the last one's waited for.
        assert server.seen[-1].json["model"] == "b"
        assert answer.text == "Paris"
        assert sum(clock.slept) >= 2.5

    asyncio.run(go())


def test_fallbacks_are_settings_like_others() -> None:
    lm = LM("openai/x", fallbacks=["openai/y", LM("openai/z", temperature=0.1)])
    assert lm == LM("openai/x", fallbacks=["openai/y", LM("openai/z", temperature=0.1)])
    assert lm != LM("openai/x")
    assert lm.copy(temperature=1.0).fallbacks == lm.fallbacks
    assert lm.copy(fallbacks=()) == LM("openai/x")
    assert repr(lm) == "LM('openai/x', fallbacks=['openai/y', 'openai/z'])"
    assert lm.identity() == LM("openai/x").identity()
    assert LM.load_state(json.loads(json.dumps(lm.dump_state()))) == lm
    with pytest.raises(LMConfigurationError, match="no provider"):
        LM("openai/x", fallbacks=["nosuch/y"])
    with pytest.raises(LMConfigurationError, match="list of models"):
        LM("openai/x", fallbacks="openai/y")


def test_a_fallback_s_server_is_not_taken_from_a_file() -> None:
    lm = LM("openai/x", api_key="k", fallbacks=[LM("openai/y", api_base="https://evil.example/v1")])
    loaded = LM.load_state(json.loads(json.dumps(lm.dump_state())))
    assert isinstance(loaded, LM)
    with pytest.raises(LMConfigurationError, match="cannot be asked"):
        loaded.copy(api_key="k").connect()


def test_other_kinds_of_models_can_be_fallen_back_to() -> None:
    async def go() -> str:
        async with ModelServer(then=lambda seen: Reply(b"down", status=503)) as server:
            local = LM("openai/x", api_base=server.url, num_retries=0, fallbacks=["local/nearest"])
            nested = LM("openai/x", api_base=server.url, num_retries=0, fallbacks=[local, LocalLM()])
            layer = nested.connect(clock=FakeClock())
            try:
                return (await layer(nested.request("echo"))).text
            finally:
                await layer.aclose()

    assert "echo" in asyncio.run(go())


def test_a_first_model_that_refuses_everything_is_not_waited_for() -> None:
    """Rows do not queue up behind a pace that falls towards nothing while another model is well."""
    busy = Reply(b'{"error":{"message":"slow down"}}', status=429)

    async def go() -> None:
        other = ScriptedLM("other", model="b/x")
        async with ModelServer(then=lambda seen: busy) as server:
            lm = LM("openai/x", api_base=server.url, num_retries=1, fallbacks=[other])
            layer = lm.connect()
            asked = asyncio.gather(*[layer(lm.request(str(number))) for number in range(60)])
            answers = await asyncio.wait_for(asked, 25.0)
            await layer.aclose()
        assert [answer.text for answer in answers] == ["other"] * 60
        assert len(server.seen) < 60

    asyncio.run(go())


def test_the_log_says_whose_answers_come_instead_at_most_twice_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    down = ScriptedLM(lambda request: LMServerError("overloaded"), model="scripted/down", num_retries=0)
    other = Alternative("scripted/spare", layer_of(ScriptedLM("yes", model="scripted/spare")))
    fallback = Fallback(layer_of(down), FIRST, [other])
    head = Head("scripted/down", (Message("system", "s"),), FIRST)

    async def go() -> None:
        for number in range(3):
            await fallback(Request(head, (Message("user", f"hi {number}"),)))

    with caplog.at_level("WARNING", logger="dspy_stream"):
        asyncio.run(go())
    (said,) = caplog.messages
    assert said.startswith("scripted/down did not answer (")
    assert "overloaded" in said
    assert said.endswith("; scripted/spare is asked instead")
