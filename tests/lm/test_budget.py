"""The budget: what it lets through, what waits, what is refused, and what is counted."""

import asyncio
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream import runtime
from dspy_stream.errors import (
    BudgetExceeded,
    ConfigurationError,
    LMConfigurationError,
    LMIncompleteError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
    LMUnavailableError,
)
from dspy_stream.lm import LM, Price
from dspy_stream.lm.budget import Budget
from dspy_stream.lm.charged import Charged
from dspy_stream.lm.reserve import Amount, Meter, meter_of
from dspy_stream.lm.scripted import ScriptedLM
from dspy_stream.lm.tokens import Gauge, answer_limit, request_bytes
from dspy_stream.modules import Predict
from dspy_stream.types import Choice, Message, Request, Response, Usage
from tests.lm.server import ModelServer, Reply

REQUEST = Request.of("scripted/model", "x" * 400)


def bounded(tokens=10):
    return Request.of("scripted/model", "x" * 384, max_tokens=tokens)


USUAL = Usage(100, 10, 0.01)
DEAR = Price(1000.0, 1000.0)


class Door:
    """A model whose calls wait until they are let go, one by one."""

    def __init__(self):
        self.waiting = deque()
        self.calls = 0

    async def __call__(self, request):
        self.calls += 1
        mine = asyncio.get_running_loop().create_future()
        self.waiting.append(mine)
        return await mine

    def answer(self, usage=USUAL):
        self.waiting.popleft().set_result(Response((Choice("x"),), usage))

    def fail(self, error):
        self.waiting.popleft().set_exception(error)

    async def aclose(self):
        pass


async def turn(times=5):
    for _ in range(times):
        await asyncio.sleep(0)


def run(work):
    return asyncio.run(work)


def layer(budget, inner, price=DEAR):
    return Charged(inner, budget, Meter("scripted/model", price))


class TestCalls:
    def test_no_more_than_the_limit_are_ever_sent(self):
        async def main():
            door, budget = Door(), Budget(max_calls=3)
            asks = [asyncio.ensure_future(layer(budget, door)(REQUEST)) for _ in range(5)]
            await turn()
            assert door.calls == 3
            assert budget.tight
            door.answer()
            await turn()
            assert door.calls == 3, "those in flight may all count"
            door.answer(), door.answer()
            await turn()
            assert [task.done() for task in asks] == [True] * 5
            assert [type(task.exception()) for task in asks[3:]] == [BudgetExceeded] * 2
            assert (budget.calls, budget.tokens, budget.cost) == (3, 330, pytest.approx(0.03))
            assert budget.left("max_calls") == 0

        run(main())

    def test_a_place_that_was_not_used_goes_to_the_next(self):
        async def main():
            door, budget = Door(), Budget(max_calls=1)
            first, second = (asyncio.ensure_future(layer(budget, door)(REQUEST)) for _ in range(2))
            await turn()
            door.fail(LMRateLimitError("slow down", status=429))
            await turn()
            assert isinstance(first.exception(), LMRateLimitError)
            assert door.calls == 2
            door.answer()
            await second
            assert budget.calls == 1

        run(main())

    def test_nothing_is_let_through_by_a_budget_of_nothing(self):
        async def main():
            door = Door()
            with pytest.raises(BudgetExceeded):
                await layer(Budget(max_calls=0), door)(REQUEST)
            assert door.calls == 0

        run(main())

    def test_once_refused_always_refused(self):
        async def main():
            door, budget = Door(), Budget(max_tokens=50)
            with pytest.raises(BudgetExceeded):
                await layer(budget, door)(REQUEST)
            with pytest.raises(BudgetExceeded):
                await layer(budget, door)(Request.of("scripted/model", "x", max_tokens=1))

        run(main())

    def test_who_waits_can_be_cancelled(self):
        async def main():
            door, budget = Door(), Budget(max_calls=1)
            first, second, third = (asyncio.ensure_future(layer(budget, door)(REQUEST)) for _ in range(3))
            await turn()
            second.cancel()
            await turn()
            door.fail(LMServerError("down", status=500))
            await turn()
            assert door.calls == 2, "the third has its place"
            door.answer()
            await third
            assert isinstance(first.exception(), LMServerError)
            assert not budget.tight

        run(main())

    def test_cancelled_in_the_moment_it_got_its_place(self):
        async def main():
            door, budget = Door(), Budget(max_calls=1)
            first, second = (asyncio.ensure_future(layer(budget, door)(REQUEST)) for _ in range(2))
            await turn()
            door.fail(LMServerError("down", status=500))
            await asyncio.sleep(0)  # the first gives its place back
            second.cancel()
            await turn()
            third = asyncio.ensure_future(layer(budget, door)(REQUEST))
            await turn()
            door.answer()
            await third
            assert first.done()

        run(main())

    def test_a_call_cancelled_on_its_way_may_have_been_charged(self):
        async def main():
            door, budget = Door(), Budget(max_calls=2)
            ask = asyncio.ensure_future(layer(budget, door)(REQUEST))
            await turn()
            ask.cancel()
            await turn()
            assert budget.calls == 1

        run(main())


class TestTokensAndMoney:
    def test_calls_in_flight_keep_their_reserve(self):
        async def main():
            door, budget = Door(), Budget(max_tokens=320)
            charged = layer(budget, door)
            first = asyncio.ensure_future(charged(bounded()))
            await turn()
            door.answer(Usage(100, 10, 0.0))
            await first
            asks = [asyncio.ensure_future(charged(bounded())) for _ in range(4)]
            await turn()
            # 110 are spent, and each call keeps 110 and 10 in reserve: one fits at a time.
            assert door.calls == 2
            door.answer(Usage(80, 5, 0.0))
            await turn()
            assert door.calls == 3
            door.answer(Usage(80, 5, 0.0))
            await turn()
            assert all(task.done() for task in asks)
            assert budget.tokens == 280

        run(main())

    def test_one_at_a_time_until_something_is_known(self):
        async def main():
            door, budget = Door(), Budget(max_cost=100.0)
            charged = layer(budget, door)
            asks = [asyncio.ensure_future(charged(REQUEST)) for _ in range(5)]
            await turn()
            assert door.calls == 1
            door.answer()
            await turn()
            assert door.calls == 5
            while door.waiting:
                door.answer()
            await asyncio.gather(*asks)

        run(main())

    def test_what_was_really_charged_counts_more_than_the_list(self):
        async def main():
            door, budget = Door(), Budget(max_cost=2.5)
            charged = layer(budget, door, Price(0.0, 0.0))
            first = asyncio.ensure_future(charged(REQUEST))
            await turn()
            door.answer(Usage(1, 1, 1.0))
            await first
            asks = [asyncio.ensure_future(charged(REQUEST)) for _ in range(3)]
            await turn()
            assert door.calls == 2
            door.answer(Usage(1, 1, 1.0))
            await turn()
            assert all(isinstance(task.exception(), BudgetExceeded) for task in asks[1:])
            assert budget.cost == 2.0

        run(main())

    def test_an_unknown_cost_is_taken_to_be_its_reserve(self):
        async def main():
            door, budget = Door(), Budget(max_cost=10.0)
            ask = asyncio.ensure_future(layer(budget, door)(bounded(100)))
            await turn()
            door.answer(Usage(0, 0, None))
            await ask
            assert budget.cost == pytest.approx((100 + 100) / 1000)

        run(main())

    def test_unknown_tokens_are_taken_to_be_their_reserve(self):
        async def main():
            door, budget = Door(), Budget(max_tokens=1000)
            ask = asyncio.ensure_future(layer(budget, door)(bounded(100)))
            await turn()
            door.answer(Usage(0, 0, None))
            await ask
            assert budget.tokens == 100 + 100

        run(main())

    def test_the_message_tells_what_is_on_its_way(self):
        async def main():
            door, budget = Door(), Budget(max_calls=3)
            asks = [asyncio.ensure_future(layer(budget, door)(REQUEST)) for _ in range(4)]
            await turn()
            door.fail(LMTimeoutError("not finished"))
            door.waiting.pop().set_exception(LMTimeoutError("not finished"))
            door.answer()
            await turn()
            assert "3 calls are spent" in str(asks[3].exception())
            over = Budget(max_calls=2)
            over.start_at(1, 0, 0.0)
            asks = [asyncio.ensure_future(layer(over, door)(REQUEST)) for _ in range(2)]
            await turn()
            over._refuse(Amount(1))
            assert "1 calls are spent, 1 calls are kept for calls on their way, and" in str(over.refused)
            door.answer()
            await turn()

        run(main())

    def test_a_model_without_a_price_is_refused_beforehand(self):
        with pytest.raises(LMConfigurationError, match=r"price of m, .*--prices"):
            Charged(Door(), Budget(max_cost=1.0), Meter("m", None))

    @pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "5", True])
    def test_limits_are_numbers(self, wrong):
        with pytest.raises(ConfigurationError, match="max_tokens"):
            Budget(max_tokens=wrong)

    @settings(max_examples=60)
    @given(
        st.integers(0, 3000),
        st.lists(st.tuples(st.integers(1, 120), st.integers(0, 40)), min_size=1, max_size=30),
        st.randoms(use_true_random=False),
    )
    def test_bounded_calls_never_pass_the_limit(self, limit, calls, rng):
        """Answers come back in any order, and none takes more than was kept for it."""

        async def main():
            door, budget = Door(), Budget(max_tokens=limit)
            charged = layer(budget, door)
            asks = [
                asyncio.ensure_future(charged(Request.of("scripted/model", "x" * 4 * size, max_tokens=40)))
                for size, _ in calls
            ]
            await turn(3)
            while door.waiting:
                assert budget.tokens + budget._reserved.tokens <= limit
                door.waiting.rotate(rng.randrange(len(door.waiting)))
                door.answer(Usage(1, rng.choice(calls)[1], 0.0))
                await turn(3)
            assert all(task.done() for task in asks)
            assert budget.tokens <= limit
            assert (budget._reserved.calls, len(budget._waiting)) == (0, 0)
            assert door.calls == sum(task.exception() is None for task in asks)

        run(main())


CHARGED = [
    LMTimeoutError("not finished within 5 s"),
    LMTransportError("broken"),
    LMIncompleteError("cut short", status=200),
    LMProviderError("the answer is longer than 8 MB and was not read on"),
]
FREE = [
    LMRateLimitError("429", status=429),
    LMServerError("500", status=500),
    LMInvalidRequestError("400", status=400),
    LMTimeoutError("408", status=408),
    LMUnavailableError("its circuit is open"),
]


class TestAttempts:
    @pytest.mark.parametrize(
        ("error", "charged"), [*((e, True) for e in CHARGED), *((e, False) for e in FREE)]
    )
    def test_what_may_have_been_charged(self, error, charged):
        async def main():
            door, budget = Door(), Budget(max_calls=9)
            ask = asyncio.ensure_future(layer(budget, door)(REQUEST))
            await turn()
            door.fail(error)
            with pytest.raises(type(error)):
                await ask
            assert budget.calls == int(charged)

        run(main())

    def test_a_connection_that_was_never_made_is_free(self):
        error = LMTransportError("connection refused")
        error.sent = False

        async def main():
            door, budget = Door(), Budget(max_calls=9)
            ask = asyncio.ensure_future(layer(budget, door)(REQUEST))
            await turn()
            door.fail(error)
            with pytest.raises(LMTransportError):
                await ask
            assert budget.calls == 0

        run(main())

    @pytest.mark.parametrize("limit", range(1, 6))
    def test_repeated_attempts_take_places_of_their_own(self, limit):
        """The client gave up three times; the server may have done the work each time."""
        lm = ScriptedLM([LMTimeoutError("t")] * 3 + ["yes"], num_retries=5)

        def ask():
            with Budget(max_calls=limit) as budget:
                try:
                    return lm("x"), budget
                except BudgetExceeded as error:
                    return error, budget

        answer, budget = ask()
        assert lm.call_count == min(limit, 4)
        assert budget.calls == lm.call_count
        if limit >= 4:
            assert answer == ["yes"]
        else:
            assert isinstance(answer, BudgetExceeded)
            assert isinstance(answer.__cause__, LMTimeoutError)


class TestOverSockets:
    """What a real server did, and what is counted for it."""

    @pytest.mark.parametrize(
        ("first", "counted"),
        [
            (Reply(declared=5000, end="close"), 2),  # it did the work, and the answer was cut short
            (Reply(declared=5000, end="reset"), 2),
            (Reply(status=503, body=b"{}"), 1),
            (Reply(status=429, body=b"{}"), 1),
        ],
    )
    def test_both_are_counted_where_the_server_did_the_work(self, first, counted):
        async def main():
            async with ModelServer(first, then=lambda _seen: Reply()) as server:
                lm = LM("openai/gpt-4o-mini", api_base=server.url, api_key="k", num_retries=3)
                budget = Budget(max_calls=9, max_cost=1.0)
                charged = Charged(lm.connect(), budget, meter_of(lm))
                response = await charged(lm.request("Capital of France?", max_tokens=50))
                await charged.aclose()
                keys = {seen.headers["idempotency-key"] for seen in server.seen}
                return response, budget, len(server.seen), keys

        response, budget, seen, keys = asyncio.run(main())
        assert response.text == "Paris"
        assert (seen, len(keys)) == (2, 1)
        assert budget.calls == counted
        assert budget.cost >= response.usage.cost

    def test_a_refused_connection_is_free(self):
        with Budget(max_calls=1) as budget, pytest.raises(LMTransportError):
            LM("openai/x", api_base="http://127.0.0.1:1/v1", api_key="k", num_retries=1)("x")
        assert budget.calls == 0


class TestInAScript:
    def test_around_calls_and_programs(self):
        lm = ScriptedLM(lambda _request: {"answer": "yes"}, cache=True)
        predict = Predict("question -> answer")
        predict.lm = lm
        with Budget(max_calls=3) as budget:
            predict(question="a")
            predict(question="a")
            asyncio.run(predict.acall(question="b"))
            lm("directly")
            with pytest.raises(BudgetExceeded, match="of at most 3 calls"):
                predict(question="c")
            predict(question="a")
        assert (budget.calls, lm.call_count) == (3, 3), "what the journal answers is free"
        predict(question="c")
        assert repr(budget) == "Budget(max_calls=3, spent=3 calls, 0 tokens, $0.0000)"

    def test_within_one_another_the_tighter_one_holds(self):
        lm = ScriptedLM("x", cache=False)
        with Budget(max_calls=3) as outer:
            with Budget(max_calls=1, max_tokens=10_000) as inner:
                lm("a")
                with pytest.raises(BudgetExceeded, match="at most 1 calls"):
                    lm("b")
            lm("c"), lm("d")
            with pytest.raises(BudgetExceeded, match="at most 3 calls"):
                lm("e")
        assert (outer.calls, inner.calls) == (3, 1)

    def test_money_needs_a_price(self):
        lm = LM("openai/nobody-knows", api_base="http://127.0.0.1:9/v1", num_retries=0)
        with Budget(max_cost=1.0), pytest.raises(LMConfigurationError, match="nobody-knows"):
            lm("x")

    def test_a_model_of_its_own_price(self):
        lm = LM("openai/my", api_base="http://127.0.0.1:9/v1", prices={"openai/my": Price(1, 2)})
        assert lm.price() == Price(1, 2)


class TestJudging:
    def test_bytes_are_counted_once_for_the_constant_part(self):
        first = Request.of("m", (Message("user", "é"),), tools=[{"type": "function"}])
        assert request_bytes(first) == len('[{"type":"function"}]') + 16 + 2
        assert "bytes of the head" in first.head.memo

    def test_pictures_count_as_a_page(self):
        block = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
        request = Request.of("m", (Message("user", ({"type": "text", "text": "what?"}, block)),))
        assert request_bytes(request) == 16 + 5 + 4000

    def test_the_limit_of_an_answer(self):
        assert answer_limit({"max_completion_tokens": 7, "max_tokens": 9}) == 7
        assert answer_limit({"max_tokens": "many"}) is None

    def test_learns_the_language(self):
        gauge, request = Gauge(), Request.of("m", "x" * 384)
        assert gauge.expect(request) == (100, 256)
        for _ in range(3):
            gauge.learn(request, Usage(300, 50, 0.5))
        assert gauge.expect(request) == (330, 101)
        assert gauge.mean_cost == 0.5

    def test_answers_without_counts_teach_nothing(self):
        gauge, request = Gauge(), Request.of("m", "x" * 384)
        gauge.learn(request, Usage(0, 0, None))
        assert (gauge.known, gauge.expect(request)) == (True, (100, 256))
        gauge.learn(request, Usage(300, 50, 0.5))
        assert (gauge.expect(request), gauge.mean_cost) == ((330, 101), 0.5)


def test_without_limits_it_only_counts():
    lm = ScriptedLM(Response((Choice("x"),), Usage(5, 1, 0.25)) for _ in range(20))

    async def main():
        budget = Budget()
        charged = Charged(lm.connect(), budget, Meter("m", None))
        await asyncio.gather(*[charged(REQUEST) for _ in range(20)])
        return budget

    budget = runtime.run(main())
    assert (budget.calls, budget.tokens, budget.cost, budget.left("max_calls")) == (20, 120, 5.0, None)
