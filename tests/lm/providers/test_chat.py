"""The chat-completions format: bytes out, and every kind of answer back."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_stream.errors import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMIncompleteError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMUnsupportedModelError,
)
from dspy_stream.lm.cost import PRICES, Price, price_of
from dspy_stream.lm.providers import locate
from dspy_stream.lm.providers.openai import ChatCompletions
from dspy_stream.types import Head, Message, Request
from tests.lm.server import completion

FORMAT = ChatCompletions("m", price=Price(1.0, 2.0, 0.5), now=lambda: 0.0)


def answer(**message: Any) -> bytes:
    return completion(choices=[{"message": {"role": "assistant", **message}, "finish_reason": "stop"}])


def refused(status: int, body: bytes = b"", **headers: str) -> LMError:
    with pytest.raises(LMError) as raised:
        FORMAT.decode(status, headers, body)
    return raised.value


# --------------------------------------------------------------------------------------- requests


def test_head_and_tail_make_one_body() -> None:
    head = Head(
        "openai/m", (Message("system", "Be brief"), Message("user", "1+1"), Message("assistant", "2"))
    )
    bodies = [FORMAT.encode(Request(head, (Message("user", text),))) for text in ("2+2", 'say "ü"')]
    assert [json.loads(body)["messages"][-1]["content"] for body in bodies] == ["2+2", 'say "ü"']
    assert [message["role"] for message in json.loads(bodies[0])["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_the_constant_part_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head("openai/m", (Message("system", "s" * 1000),), {"temperature": 0.5})
    FORMAT.encode(Request(head, (Message("user", "a"),)))
    written: list[Any] = []
    dumps = orjson.dumps
    monkeypatch.setattr(
        orjson, "dumps", lambda value, **options: written.append(value) or dumps(value, **options)
    )
    FORMAT.encode(Request(head, (Message("user", "b"),)))
    assert written == [{"role": "user", "content": "b"}]


def test_two_models_can_share_a_head() -> None:
    head = Head("openai/m")
    request = Request(head, (Message("user", "a"),))
    assert json.loads(FORMAT.encode(request))["model"] == "m"
    assert json.loads(ChatCompletions("other").encode(request))["model"] == "other"
    assert json.loads(FORMAT.encode(request))["model"] == "m"


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_every_text_arrives_as_it_was(earlier: list[str], last: str) -> None:
    head = Head("openai/m", tuple(Message("user", text) for text in earlier))
    sent = json.loads(FORMAT.encode(Request(head, (Message("user", last),))))
    assert [message["content"] for message in sent["messages"]] == [*earlier, last]


def test_a_text_that_is_not_unicode_is_the_row_s_fault() -> None:
    with pytest.raises(LMInvalidRequestError):
        FORMAT.encode(Request.of("openai/m", "\ud800"))


def test_blocks_are_sent_as_they_are() -> None:
    blocks = ({"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:,"}})
    sent = json.loads(FORMAT.encode(Request.of("openai/m", (Message("user", blocks),))))
    assert sent["messages"][0]["content"] == list(blocks)


@pytest.mark.parametrize(
    "model", ["o1", "o1-mini", "o3-mini", "o4-mini", "gpt-5", "gpt-5-nano", "org/gpt-5.1", "gpt-6.1-sol"]
)
def test_reasoning_models_take_other_options(model: str) -> None:
    request = Request.of("openai/x", "hi", temperature=0.2, max_tokens=50, seed=1)
    sent = json.loads(ChatCompletions(model).encode(request))
    assert (sent["max_completion_tokens"], sent["seed"]) == (50, 1)
    assert "temperature" not in sent
    assert "max_tokens" not in sent


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5-chat-latest", "o2-large-model", "octopus"])
def test_other_models_do_not(model: str) -> None:
    sent = json.loads(
        ChatCompletions(model).encode(Request.of("openai/x", "hi", temperature=0.2, max_tokens=50))
    )
    assert (sent["max_tokens"], sent["temperature"]) == (50, 0.2)


# ---------------------------------------------------------------------------------------- answers


def test_a_good_answer() -> None:
    response = FORMAT.decode(200, {"x-request-id": "r-9"}, completion("Paris"))
    assert (response.text, response.request_id, response.model) == ("Paris", "r-9", "gpt-4o-mini-2024")
    assert response.choices[0].finish_reason == "stop"
    assert response.choices[0].extra is None
    assert response.usage.cost == pytest.approx((12 + 2 * 3) / 1e6)


def test_cached_prompt_tokens_are_cheaper() -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 400}}
    assert FORMAT.decode(200, {}, completion(usage=usage)).usage.cost == pytest.approx((600 + 200) / 1e6)


def test_several_choices_and_a_cut_one() -> None:
    choices = [
        {"message": {"content": "a"}, "finish_reason": "stop"},
        {"message": {"content": "b"}, "finish_reason": "length"},
    ]
    response = FORMAT.decode(200, {}, completion(choices=choices))
    assert [(choice.text, choice.finish_reason) for choice in response.choices] == [
        ("a", "stop"),
        ("b", "length"),
    ]


@pytest.mark.parametrize(
    ("message", "text", "extra"),
    [
        ({"content": None, "refusal": "I will not"}, "", {"refusal": "I will not"}),
        ({"content": ""}, "", None),
        ({}, "", None),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab", None),
        ({"content": "x", "reasoning_content": "hm"}, "x", {"reasoning_content": "hm"}),
        (
            {
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                    {"function": {"name": "f", "arguments": {"a": 1}}},
                    {"id": "x", "type": "custom", "custom": {"name": "g", "input": "free"}},
                    {"id": "no call"},
                    None,
                ],
            },
            "",
            {
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                    {"id": "x", "type": "custom", "custom": {"name": "g", "input": "free"}},
                ]
            },
        ),
    ],
)
def test_unusual_messages(message: dict[str, Any], text: str, extra: Any) -> None:
    choice = FORMAT.decode(200, {}, answer(**message)).choices[0]
    assert (choice.text, choice.extra) == (text, extra)


@pytest.mark.parametrize("count", [-1, 1e30, 10**30 // 10**12, "12", 2.5, True])
def test_token_counts_that_cannot_be_true_are_zero_and_flagged(count: Any) -> None:
    response = FORMAT.decode(200, {}, completion(usage={"prompt_tokens": count, "completion_tokens": 5}))
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (0, 5)
    assert response.usage.cost is None
    assert response.choices[0].extra == {"usage_invalid": True}


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": 50}])
def test_missing_counts_are_just_missing(usage: Any) -> None:
    response = FORMAT.decode(200, {}, completion(usage=usage))
    assert (response.usage.total_tokens, response.usage.cost) == (0, None)
    assert response.choices[0].extra is None


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        (b"\\ud83d", "no low surrogate"),
        (b"\\udc00", "surrogate"),
        (b"\xff", "UTF-8"),
        (b'", "logprob": NaN, "x": "', "unexpected character"),
    ],
)
def test_a_whole_answer_that_no_json_may_hold_is_not_asked_for_again(piece: bytes, says: str) -> None:
    with pytest.raises(LMProviderError, match=f"the answer is whole, but no valid JSON: .*{says}") as raised:
        FORMAT.decode(200, {}, completion("XX").replace(b"XX", piece))
    assert not raised.value.retryable


def test_a_mark_of_utf_8_before_the_answer_is_nothing() -> None:
    assert FORMAT.decode(200, {}, b"\xef\xbb\xbf" + completion("x")).text == "x"


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (b"", {}, "empty"),
        (b"  \n", {}, "empty"),
        (b"<!DOCTYPE html><html>Login</html>", {}, "web page"),
        (b"Login", {"content-type": "text/html; charset=utf-8"}, "web page"),
        (completion()[:-1], {}, "not complete JSON"),
        (b'"\\ud800"', {}, "not complete JSON"),
        (b"[" * 100_000, {}, "not complete JSON"),
        (b"null", {}, "no choices"),
        (b"{}", {}, "no choices"),
        (b'{"choices":[]}', {}, "no choices"),
        (b'{"choices":[{}]}', {}, "no message"),
        (b'{"choices":["x"]}', {}, "no message"),
    ],
)
def test_a_success_that_is_no_answer_is_incomplete(body: bytes, headers: dict[str, str], says: str) -> None:
    with pytest.raises(LMIncompleteError, match=says) as raised:
        FORMAT.decode(200, headers, body)
    assert raised.value.retryable


@given(
    st.binary()
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_whatever_comes_back_only_lm_errors_are_raised(body: bytes) -> None:
    for status in (200, 400, 500):
        with pytest.raises(LMError):
            FORMAT.decode(status, {}, body)


@given(st.integers(0, 400))
def test_no_beginning_of_an_answer_is_an_answer(cut: int) -> None:
    body = completion("Paris is the capital")
    with pytest.raises(LMIncompleteError):
        FORMAT.decode(200, {}, body[: min(cut, len(body) - 1)])


# ----------------------------------------------------------------------------------------- errors


def said(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, said("bad"), LMInvalidRequestError),
        (400, said("long", code="context_length_exceeded"), ContextWindowExceededError),
        (400, said("This model's maximum context length is 4096 tokens"), ContextWindowExceededError),
        (400, said("x", code="model_not_found"), LMUnsupportedModelError),
        (401, said("who", code="invalid_api_key"), LMAuthError),
        (402, b"", LMBillingError),
        (403, said("no"), LMAuthError),
        (404, b"not here", LMUnsupportedModelError),
        (408, b"", LMTimeoutError),
        (413, b"", LMInvalidRequestError),
        (418, b"", LMInvalidRequestError),
        (422, said("bad"), LMInvalidRequestError),
        (429, said("slow"), LMRateLimitError),
        (429, said("pay", code="insufficient_quota"), LMBillingError),
        (429, said("pay", type="insufficient_quota"), LMBillingError),
        (500, b"<html>", LMServerError),
        (502, b"", LMServerError),
        (503, said("down"), LMServerError),
        (529, said("overloaded", type="overloaded_error"), LMServerError),
        (302, b"", LMConfigurationError),
        (200, said("late", code="server_error"), LMServerError),
        (200, said("late", code="rate_limit_exceeded"), LMRateLimitError),
    ],
)
def test_what_an_error_status_means(status: int, body: bytes, kind: type[LMError]) -> None:
    error = refused(status, body)
    assert type(error) is kind
    assert (error.status, str(status) in str(error)) == (status, True)


def test_an_error_says_what_the_provider_said() -> None:
    error = refused(
        429, said("slow down", code="rate_limit_exceeded"), **{"x-request-id": "r-1", "retry-after": "3"}
    )
    assert (error.request_id, error.retry_after, error.provider_code) == ("r-1", 3.0, "rate_limit_exceeded")
    assert str(error) == "429 rate_limit_exceeded: slow down"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error":"plain"}', "plain"),
        (b'{"message":"top"}', "top"),
        (b'{"detail":"fast"}', "fast"),
        (b'{"detail":[{"loc":["x"]}]}', '[{"loc":["x"]}]'),
        (b"just text", "just text"),
        (b"\xff\x00\x1b[31mred", "\ufffd [31mred"),
        (b"", "no reason given"),
    ],
)
def test_every_shape_of_error_body_is_read(body: bytes, says: str) -> None:
    assert str(refused(500, body)) == f"500: {says}"


def test_a_long_or_wild_reason_is_cut_and_a_wild_code_dropped() -> None:
    error = refused(500, said("x" * 10_000, code="a\nb"))
    assert len(str(error)) < 320
    assert error.provider_code is None


# ------------------------------------------------------------------------------------------ costs


def test_prices_are_found_overridden_and_unknown() -> None:
    assert price_of("openai/gpt-4o-mini") is PRICES["openai/gpt-4o-mini"]
    assert price_of("openai/unheard-of") is None
    own = Price(9.0, 9.0)
    assert price_of("openai/gpt-4o", {"openai/gpt-4o": own}) is own
    assert price_of("x", lambda model: own if model == "x" else None) is own
    assert price_of("openai/gpt-4o", lambda model: None) is PRICES["openai/gpt-4o"]


def test_a_long_prompt_costs_more() -> None:
    """Above 272,000 tokens OpenAI charges twice the prompt and half as much again for the answer."""
    names = ("gpt-6.2-astra", "gpt-6.2-sol", "gpt-6.1-sol", "gpt-6.1-terra", "gpt-6-astra", "gpt-6-sol")
    for name in (*names, "gpt-6-luna", "gpt-5.6", "gpt-5.6-sol", "gpt-5.6-terra"):
        short = PRICES[f"openai/{name}"]
        assert short.of(272_000, 0) == pytest.approx(272_000 * short.prompt / 1e6)
        long = short.of(300_000, 1000, 100_000, 100_000)
        plain = Price(short.prompt, short.completion * 0.75, short.cached, short.written)
        assert long == pytest.approx(2 * plain.of(300_000, 1000, 100_000, 100_000)), name


def test_prices_that_rose_on_a_day_are_those_of_today() -> None:
    assert PRICES["gemini/gemini-4-carbon"].prompt == PRICES["gemini/gemini-4-argon"].prompt == 4.0
    assert PRICES["gemini/gemini-4-hydrogen"].completion == 7.5


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_cost_is_never_negative_and_a_cache_never_dearer(prompt: int, completed: int, cached: int) -> None:
    for price in PRICES.values():
        assert 0.0 <= price.of(prompt, completed, cached) <= price.of(prompt, completed) + 1e-6


# --------------------------------------------------------------------------------------- dialects


def body_of(model: str, *messages: Message, **options: Any) -> Any:
    prefix = model.partition("/")[0]
    target = locate(model, has_key=True, api_base="http://127.0.0.1" if prefix in OWN else None, environ={})
    return json.loads(
        target.make(target.model, now=lambda: 0.0).encode(Request.of(model, messages, **options))
    )


OWN = ("hosted_vllm", "azure")
HI = Message("user", "hi")


def test_each_server_is_told_in_its_own_words() -> None:
    assert body_of("openrouter/a/b", HI, reasoning_effort="low")["reasoning"] == {"effort": "low"}
    assert body_of("xai/grok-3-mini", HI, reasoning_effort="low")["reasoning_effort"] == "low"
    assert body_of("mistral/m", HI, seed=3)["random_seed"] == 3
    assert body_of("fireworks_ai/llama", HI)["model"] == "accounts/fireworks/models/llama"
    assert body_of("fireworks_ai/accounts/x/models/y", HI)["model"] == "accounts/x/models/y"
    assert "prompt_cache" not in body_of("openai/m", HI, prompt_cache=True)
    developer = Message("developer", "be brief")
    assert body_of("openai/m", developer)["messages"][0]["role"] == "developer"
    assert body_of("groq/m", developer)["messages"][0]["role"] == "system"


def test_deepseek_s_models_think_unless_they_are_told_not_to() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    # While they think they refuse every word on which tool to call.
    for choice in ("auto", "required", {"type": "function", "function": {"name": "f"}}):
        body = body_of("deepseek/deepseek-flash", HI, tools=[tool], tool_choice=choice)
        assert "tool_choice" not in body
        assert body["tools"] == [tool]
    assert "tools" not in body_of("deepseek/deepseek-flash", HI, tools=[tool], tool_choice="none")
    body = body_of(
        "deepseek/deepseek-v4-pro", HI, tools=[tool], tool_choice="required", reasoning_effort="none"
    )
    assert body["thinking"] == {"type": "disabled"}
    assert body["tool_choice"] == "required"
    assert "reasoning_effort" not in body
    body = body_of("deepseek/deepseek-v4-pro", HI, reasoning_effort="max")
    assert body["reasoning_effort"] == "max"


@pytest.mark.parametrize(
    ("counts", "cost"),
    [
        ({"cost": 0.0125}, 0.0125),
        ({"cost": 0}, 0.0),
        # With a key of the user's own the router charges its fee only.
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 0.021),
        ({"cost": 0.001, "is_byok": True}, None),
        ({"cost": "0.1"}, None),
        ({}, None),
    ],
)
def test_what_a_router_says_it_charged_is_the_cost(counts: dict[str, Any], cost: float | None) -> None:
    target = locate("openrouter/some/model", has_key=True, environ={})
    usage = {"prompt_tokens": 3, "completion_tokens": 2, **counts}
    body = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    for price, told in ((None, cost), (Price(1e6, 1e6), 5.0)):
        format = target.make(target.model, price=price, now=lambda: 0.0)
        answer = format.decode(200, {}, json.dumps(body).encode())
        assert answer.usage.cost == (pytest.approx(told) if told is not None else None)


def test_reasoning_goes_back_only_where_it_is_wanted() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    blocks = [{"type": "reasoning.text", "text": "hm"}]
    turn = Message(
        "assistant", "", {"tool_calls": [call], "reasoning_content": "hm", "reasoning_blocks": blocks}
    )
    plain = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert body_of("openai/m", HI, turn)["messages"][1] == plain
    assert body_of("openrouter/a/b", HI, turn)["messages"][1] == {**plain, "reasoning_details": blocks}
    assert body_of("deepseek/m", HI, turn)["messages"][1] == {**plain, "reasoning_content": "hm"}
    said = Message("assistant", "x", {"reasoning_content": "hm"})
    assert body_of("deepseek/m", HI, said)["messages"][1] == {"role": "assistant", "content": "x"}


def test_a_reasoning_model_that_may_not_reason_takes_a_temperature() -> None:
    assert body_of("openai/gpt-5.1", HI, reasoning_effort="none", temperature=0.5)["temperature"] == 0.5
    assert "top_p" not in body_of("openai/gpt-5.1", HI, top_p=0.5)


@pytest.mark.parametrize(
    ("message", "extra"),
    [
        ({"content": "x", "reasoning": "hm"}, {"reasoning_content": "hm"}),
        (
            {"content": "x", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
            {"reasoning_blocks": [{"type": "reasoning.text", "text": "hm"}]},
        ),
        (
            {"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": "x"}]},
            {"reasoning_content": "hm"},
        ),
        (
            {"content": "x", "annotations": [{"type": "url_citation"}]},
            {"annotations": [{"type": "url_citation"}]},
        ),
    ],
)
def test_reasoning_has_one_name_whoever_sent_it(message: dict[str, Any], extra: dict[str, Any]) -> None:
    choice = FORMAT.decode(200, {}, answer(**message)).choices[0]
    assert (choice.text, choice.extra) == ("x", extra)


def test_sources_beside_the_answer_and_logprobs_are_kept() -> None:
    body = json.loads(completion("x"))
    body["citations"] = ["https://a.example"]
    body["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": -0.1}]}
    choice = FORMAT.decode(200, {}, json.dumps(body).encode()).choices[0]
    assert choice.extra == {
        "citations": ["https://a.example"],
        "logprobs": {"content": [{"token": "x", "logprob": -0.1}]},
    }


@pytest.mark.parametrize(
    ("finish", "known"),
    [("eos", "stop"), ("function_call", "tool_calls"), ("model_length", "length"), ("odd", None), (7, None)],
)
def test_why_an_answer_ended_in_one_set_of_words(finish: Any, known: str | None) -> None:
    choices = [{"message": {"content": "x"}, "finish_reason": finish}]
    assert FORMAT.decode(200, {}, completion(choices=choices)).choices[0].finish_reason == known


def test_an_answer_that_the_server_broke_off_is_asked_for_again() -> None:
    for finish in ("error", "insufficient_system_resource"):
        choices = [{"message": {"content": "half"}, "finish_reason": finish}]
        with pytest.raises(LMIncompleteError, match=finish):
            FORMAT.decode(200, {}, completion(choices=choices))
    broken = [{"message": {"content": ""}, "error": {"code": 429, "message": "slow"}}]
    with pytest.raises(LMRateLimitError):
        FORMAT.decode(200, {}, completion(choices=broken))


def test_all_that_was_counted_is_told() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 40},
        "completion_tokens_details": {"reasoning_tokens": 30},
    }
    told = FORMAT.decode(200, {}, completion(usage=usage)).usage
    assert (told.cached_tokens, told.reasoning_tokens) == (40, 30)


def test_choices_come_in_the_order_of_their_numbers() -> None:
    choices = [
        {"index": number, "message": {"content": text}, "finish_reason": "stop"}
        for number, text in ((2, "c"), (0, "a"), (1, "b"))
    ]
    response = FORMAT.decode(200, {}, completion(choices=choices))
    assert [choice.text for choice in response.choices] == ["a", "b", "c"]


def test_a_choice_that_a_filter_took_away_is_one_all_the_same() -> None:
    choices = [{"index": 0, "message": None, "finish_reason": "content_filter"}]
    (choice,) = FORMAT.decode(200, {}, completion(choices=choices)).choices
    assert (choice.text, choice.finish_reason) == ("", "content_filter")


@pytest.mark.parametrize(
    ("usage", "counted", "cost"),
    [
        ({"prompt_tokens": 3}, (3, 0), None),
        ({"prompt_tokens": 3, "completion_tokens": None}, (3, 0), None),
        ({"total_tokens": 5}, (0, 0), None),
        ({"prompt_tokens": 3, "completion_tokens": 0}, (3, 0), 3e-6),
        (
            {  # reasoning beside the completion
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 115,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            (10, 105),
            220e-6,
        ),
        (
            {  # and as a part of it
                "prompt_tokens": 10,
                "completion_tokens": 105,
                "total_tokens": 115,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            (10, 105),
            220e-6,
        ),
    ],
)
def test_a_cost_is_known_where_all_counts_are(
    usage: dict[str, Any], counted: tuple[int, int], cost: float | None
) -> None:
    used = FORMAT.decode(200, {}, completion(usage=usage)).usage
    assert used[:2] == counted
    assert used.cost == (cost if cost is None else pytest.approx(cost))
