"""Prices: what a call costs, whose price counts, and what comes with the package."""

import re

import orjson
import pytest

from dspy_stream.configuration import configure, context
from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.cost import PRICES, Price, load_prices, price_of, shipped_prices


class TestOfACall:
    def test_parts_of_the_prompt_have_prices_of_their_own(self):
        price = Price(10.0, 100.0, cached=1.0, written=20.0)
        assert price.of(1_000_000, 0) == 10.0
        assert price.of(1_000_000, 10_000, 400_000, 100_000) == pytest.approx(5.0 + 0.4 + 2.0 + 1.0)

    def test_without_one_they_cost_as_the_rest(self):
        assert Price(10.0, 0.0).of(1000, 0, 400, 100) == Price(10.0, 0.0).of(1000, 0)

    def test_more_parts_than_there_are_change_nothing(self):
        price = Price(10.0, 0.0, cached=1.0, written=20.0)
        assert price.of(100, 0, 900, 900) == price.of(100, 0, 100)

    def test_batches_are_cheaper(self):
        assert Price(10.0, 100.0, batch=0.5).of(1000, 100, batch=True) == pytest.approx(0.01)

    def test_a_long_prompt_makes_the_whole_call_dearer(self):
        price = Price(1.0, 10.0, batch=0.5, above=1000, long=Price(2.0, 15.0))
        assert price.of(1000, 1000) == pytest.approx(0.011)
        assert price.of(1001, 1000) == pytest.approx((1001 * 2 + 15_000) / 1e6)
        assert price.of(1001, 1000, batch=True) == pytest.approx((1001 * 2 + 15_000) / 2e6)


class TestWhose:
    def test_a_snapshot_has_the_price_of_its_family(self):
        for name, family in (
            ("openai/gpt-4o-2024-08-06", "openai/gpt-4o"),
            ("openai/gpt-4.1-mini-2025-04-14", "openai/gpt-4.1-mini"),
            ("anthropic/claude-3-5-haiku-20241022", "anthropic/claude-3-5-haiku"),
            ("anthropic/claude-3-5-haiku-latest", "anthropic/claude-3-5-haiku"),
            ("mistral/mistral-small-2506", "mistral/mistral-small"),
            ("gemini/gemini-2.0-flash-001", "gemini/gemini-2.0-flash"),
            ("gemini/gemini-2.5-flash-preview-09-2025", "gemini/gemini-2.5-flash"),
            ("xai/grok-4-0709", "xai/grok-4"),
        ):
            assert price_of(name) is PRICES[family], name

    def test_unless_it_has_one_of_its_own(self):
        assert price_of("openai/gpt-4o-2024-05-13").prompt == 5.0
        assert price_of("openai/gpt-4o").prompt == 2.5

    def test_a_size_is_no_date(self):
        assert price_of("groq/llama-3.1-8b-instant") is not None
        assert price_of("openai/gpt-4o-16384k") is None

    def test_unknown_is_not_free(self):
        assert price_of("openai/unheard-of") is None
        assert price_of("hosted_vllm/llama") is None

    def test_models_in_process_are_free(self):
        assert price_of("local/nearest") == price_of("scripted/any") == Price(0.0, 0.0)

    def test_the_users_own_goes_before(self):
        own = Price(9.0, 9.0)
        assert price_of("openai/gpt-4o", {"openai/gpt-4o": own}) is own
        assert price_of("openai/gpt-4o-2024-08-06", {"openai/gpt-4o": own}) is own
        assert price_of("x", lambda model: own if model == "x" else None) is own
        assert price_of("openai/gpt-4o", lambda model: None) is PRICES["openai/gpt-4o"]
        with context(prices={"openai/gpt-4o": own, "local/nearest": own}):
            assert price_of("openai/gpt-4o") is own
            assert price_of("local/nearest") is own
            assert price_of("openai/gpt-4o", {"openai/gpt-4o": Price(1, 1)}).prompt == 1
        configure(prices=lambda model: own)
        try:
            assert price_of("anything") is own
        finally:
            configure(prices=None)


class TestFile:
    def write(self, tmp_path, value):
        path = tmp_path / "prices.json"
        path.write_bytes(value if isinstance(value, bytes) else orjson.dumps(value))
        return path

    def test_is_read(self, tmp_path):
        path = self.write(
            tmp_path,
            {"openai/my": {"prompt": 1, "completion": 2.5, "cached": 0.1, "batch": 0.5, "as_of": "2026-11"}},
        )
        assert load_prices(path) == {"openai/my": Price(1, 2.5, 0.1, batch=0.5, as_of="2026-11")}

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (b"{", "are not JSON"),
            ([], "an object of models"),
            ({"m": 1}, "m: a price looks like"),
            ({"m": {"prompt": 1}}, "m: 'completion' is missing"),
            ({"m": {"prompt": -1, "completion": 1}}, "prompt is -1"),
            ({"m": {"prompt": "1", "completion": 1}}, "prompt is '1'"),
            ({"m": {"prompt": True, "completion": 1}}, "prompt is True"),
            ({"m": {"prompt": None, "completion": 1}}, "prompt is None"),
            ({"m": {"prompt": 1, "completion": 1, "input": 3}}, "has no 'input'"),
            ({"m": {"prompt": 1, "completion": 1, "above": 5}}, "belong together"),
            (
                {"m": {"prompt": 1, "completion": 1, "above": 5, "long": {"prompt": 1}}},
                "long: 'completion' is missing",
            ),
        ],
    )
    def test_says_what_is_wrong_with_it(self, tmp_path, value, words):
        path = self.write(tmp_path, value)
        with pytest.raises(ConfigurationError, match=re.escape(words)) as caught:
            load_prices(path)
        assert str(path) in str(caught.value)

    def test_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigurationError, match="No such file"):
            load_prices(tmp_path / "none.json")


class TestShipped:
    def test_every_price_is_dated_and_makes_sense(self):
        assert len(PRICES) > 100
        for name, price in PRICES.items():
            assert re.fullmatch(r"20\d\d-[01]\d", price.as_of), name
            assert 0 < price.prompt < 200, name
            assert price.prompt <= price.completion < 1000, name
            assert price.cached is None or price.cached <= price.prompt, name
            assert price.written is None or price.written >= price.prompt, name
            assert price.batch in (0.5, 1.0), name
            if price.long is not None:
                assert price.above >= 100_000, name
                assert price.long.prompt > price.prompt, name

    def test_the_providers(self):
        providers = {name.split("/")[0] for name in PRICES}
        assert providers == {"openai", "anthropic", "gemini", "mistral", "groq", "deepseek", "xai"}

    def test_an_announced_change_comes_into_force_on_its_day(self):
        old, new = {"prompt": 1.0, "completion": 1.0}, {"prompt": 2.0, "completion": 2.0}
        data = {
            "providers": {"p": {"as_of": "2026-11", "models": {"m": old}, "from": {"2027-01-01": {"m": new}}}}
        }
        assert shipped_prices(data, "2026-12-31")["p/m"].prompt == 1.0
        assert shipped_prices(data, "2027-01-01")["p/m"].prompt == 2.0


def test_a_model_asked_by_responses_costs_what_it_costs() -> None:
    assert price_of("openai/responses/gpt-4o-mini") == price_of("openai/gpt-4o-mini")
    mine = {"openai/gpt-4o-mini": Price(7.0, 8.0), "openai/responses/gpt-5-mini": Price(9.0, 9.0)}
    assert price_of("openai/responses/gpt-4o-mini-2024-07-18", mine) == mine["openai/gpt-4o-mini"]
    assert price_of("openai/responses/gpt-5-mini", mine) == mine["openai/responses/gpt-5-mini"]
