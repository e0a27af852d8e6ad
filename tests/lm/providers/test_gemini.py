"""Google's generateContent: bodies as its documentation shows them, and answers of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dspy_stream.errors import LMConfigurationError, LMIncompleteError, LMInvalidRequestError
from dspy_stream.lm.cost import Price
from dspy_stream.lm.providers.gemini import GenerateContent
from dspy_stream.types import Head, Message, Request
from tests.lm.providers import answers
from tests.lm.providers.conversations import CALLS, FORMAT, PDF, SCHEMA, SYSTEM, TOOL, TURNS, asked

FLASH = GenerateContent("gemini-2.5-flash")


def sent(request: Request, format: GenerateContent = FLASH) -> Any:
    return json.loads(format.encode(request))


def options(model: str, **chosen: Any) -> Any:
    body = sent(Request.of("x/m", "hi", **chosen), GenerateContent(model))
    del body["contents"]
    return body


def test_a_whole_conversation() -> None:
    head = Head(
        "x/m", (SYSTEM, *TURNS[:1]), {"max_tokens": 100, "temperature": 0.2, "stop": "END", "seed": 5}
    )
    assert sent(Request(head, TURNS[1:])) == {
        "generationConfig": {"stopSequences": ["END"], "maxOutputTokens": 100, "temperature": 0.2, "seed": 5},
        "systemInstruction": {"parts": [{"text": "Be brief"}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "What is it?"},
                    {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
                ],
            },
            {
                "role": "model",
                "parts": [
                    {"text": "Let me see"},
                    {"functionCall": {"name": "weather", "args": {"city": "Paris"}}},
                    {"functionCall": {"name": "clock", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "weather", "response": {"result": "18 degrees"}}},
                    {"functionResponse": {"name": "clock", "response": {"time": "noon"}}},
                    {"text": "And now?"},
                ],
            },
        ],
    }


def test_a_tool_s_answer_finds_its_call_in_the_head() -> None:
    head = Head("x/m", (Message("user", "q"), Message("assistant", "", {"tool_calls": CALLS})))
    for _ in range(2):
        body = sent(Request(head, (Message("tool", "noon", {"tool_call_id": "call_2"}),)))
        assert body["contents"][-1]["parts"][0]["functionResponse"]["name"] == "clock"
    with pytest.raises(LMInvalidRequestError, match="no call before it"):
        sent(Request(head, (Message("tool", "noon", {"tool_call_id": "call_9"}),)))


def test_files_and_sounds() -> None:
    given = (
        {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        {"type": "file", "file": {"file_id": "files/abc"}},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.JPG?b=1"}},
    )
    assert sent(asked(Message("user", given)))["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0="}},
        {"inlineData": {"mimeType": "audio/mp3", "data": "AAAA"}},
        {"fileData": {"fileUri": "files/abc"}},
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://x.example/a.JPG?b=1"}},
    ]
    with pytest.raises(LMInvalidRequestError, match="no content block of type 'video'"):
        sent(asked(Message("user", ({"type": "video"},))))


@pytest.mark.parametrize(
    ("model", "chosen", "wanted"),
    [
        ("gemini-2.5-flash", {}, {}),
        (
            "gemini-2.5-flash",
            {"n": 2, "top_k": 4, "logprobs": True, "top_logprobs": 3, "user": "u"},
            {"generationConfig": {"candidateCount": 2, "topK": 4, "responseLogprobs": True, "logprobs": 3}},
        ),
        (
            "gemini-2.5-flash",
            {"reasoning_effort": "medium"},
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": 8192, "includeThoughts": True}}},
        ),
        (
            "gemini-2.5-flash",
            {"reasoning_effort": "disable"},
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": 0}}},
        ),
        (
            "gemini-2.5-pro",
            {"reasoning_effort": "none"},
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": 128}}},
        ),
        (
            "gemini-3-pro-preview",
            {"reasoning_effort": "medium"},
            {"generationConfig": {"thinkingConfig": {"thinkingLevel": "high", "includeThoughts": True}}},
        ),
        (
            "gemini-3-flash",
            {"reasoning_effort": "medium"},
            {"generationConfig": {"thinkingConfig": {"thinkingLevel": "medium", "includeThoughts": True}}},
        ),
        (
            "gemini-2.5-flash",
            {"thinking": {"type": "enabled", "budget_tokens": 99}},
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": 99, "includeThoughts": True}}},
        ),
        (
            "gemini-2.5-flash",
            {"response_format": FORMAT},
            {"generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}},
        ),
        (
            "gemini-1.5-flash",
            {"response_format": {"type": "json_object"}, "safety_settings": [{"category": "c"}]},
            {
                "generationConfig": {"responseMimeType": "application/json"},
                "safetySettings": [{"category": "c"}],
            },
        ),
        (
            "gemini-2.5-flash",
            {"generationConfig": {"topK": 1}, "mediaResolution": "LOW", "cached_content": "cachedContents/1"},
            {"generationConfig": {"topK": 1, "mediaResolution": "LOW"}, "cachedContent": "cachedContents/1"},
        ),
    ],
)
def test_options(model: str, chosen: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert options(model, **chosen) == wanted


@pytest.mark.parametrize(
    ("model", "levels"),
    [
        ("gemini-3.6-flash", "minimal minimal low high high"),
        ("gemini-3.5-flash-lite", "minimal minimal low high high"),
        ("gemini-3.1-pro-preview", "low low low high high"),
        # These refuse "minimal".
        ("gemini-3.8-flash", "low low low high high"),
        ("gemini-flash-latest", "low low low high high"),
        ("gemini-4-argon", "low low low high high"),
        # And these have a level more.
        ("gemini-4-hydrogen", "low low low high xhigh"),
        ("gemini-4-neon", "low low low high xhigh"),
    ],
)
def test_each_model_is_told_a_level_that_it_has(model: str, levels: str) -> None:
    told = [
        options(model, reasoning_effort=effort)["generationConfig"]["thinkingConfig"]["thinkingLevel"]
        for effort in ("none", "minimal", "low", "high", "xhigh")
    ]
    assert told == levels.split()


def test_a_number_of_tokens_to_think_becomes_a_level() -> None:
    for thinking, level in (
        ({"type": "enabled", "budget_tokens": 512}, "low"),
        ({"type": "enabled", "budget_tokens": 4000}, "medium"),
        ({"type": "enabled", "budget_tokens": 50_000}, "high"),
        ({"type": "disabled"}, "low"),
    ):
        sent = options("gemini-4-neon", thinking=thinking)["generationConfig"]["thinkingConfig"]
        assert sent["thinkingLevel"] == level
        assert "thinkingBudget" not in sent
    body = options("gemini-2.5-flash", thinking={"type": "enabled", "budget_tokens": 512})
    assert body["generationConfig"]["thinkingConfig"]["thinkingBudget"] == 512


def test_models_that_draw_their_answers_themselves_are_not_told_how() -> None:
    for model in ("gemini-3.6-flash", "gemini-3.5-flash-lite", "gemini-4-carbon"):
        body = options(model, temperature=0.3, top_p=0.9, top_k=3, n=2, max_tokens=9)
        assert body == {"generationConfig": {"maxOutputTokens": 9}}
    body = options("gemini-3.5-flash", temperature=0.3, n=2)
    assert body == {"generationConfig": {"temperature": 0.3, "candidateCount": 2}}
    with pytest.raises(LMConfigurationError, match="presence_penalty"):
        options("gemini-4-carbon", presence_penalty=0.5)


def test_older_models_take_a_smaller_kind_of_schema() -> None:
    config = options("gemini-2.0-flash", response_format=FORMAT)["generationConfig"]
    assert config["responseSchema"] == {
        "type": "object",
        "properties": {"city": {"type": "string"}, "degrees": {"type": "integer", "minimum": -90}},
        "required": ["city", "degrees"],
    }


@pytest.mark.parametrize(
    ("chosen", "says"), [({"logit_bias": {"1": 2}}, "logit_bias"), ({"reasoning_effort": "x"}, "is one of")]
)
def test_what_it_cannot_be_told_is_refused(chosen: dict[str, Any], says: str) -> None:
    with pytest.raises(LMConfigurationError, match=says):
        options("gemini-2.5-flash", **chosen)


def test_tools() -> None:
    parameters = TOOL["function"]["parameters"]  # type: ignore[index]
    bare = {
        "type": "function",
        "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
    }
    body = options("gemini-2.5-flash", tools=[TOOL, bare, {"googleSearch": {}}], tool_choice="required")
    assert body == {
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": "weather",
                        "description": "Say what the weather is",
                        "parametersJsonSchema": parameters,
                    },
                    {"name": "clock", "description": "clock"},
                ]
            },
            {"googleSearch": {}},
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    }
    named = {"type": "function", "function": {"name": "weather"}}
    body = options("gemini-2.0-flash", tools=[TOOL], tool_choice=named)
    assert body["tools"][0]["functionDeclarations"][0]["parameters"] == parameters
    assert body["toolConfig"] == {
        "functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}
    }


def test_the_key_is_never_in_the_address() -> None:
    assert FLASH.headers("secret-key-0123456789")["x-goog-api-key"] == "secret-key-0123456789"
    assert (FLASH.path, FLASH.stream_path) == (
        "/models/gemini-2.5-flash:generateContent",
        "/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
    )
    for name in ("a?key=b", "../x", "a b", "a#b", ""):
        with pytest.raises(LMConfigurationError, match="part of an address"):
            GenerateContent(name)


# ---------------------------------------------------------------------------------------- answers


def test_an_answer_with_everything() -> None:
    format = GenerateContent("m", price=Price(10.0, 20.0, 1.0))
    response = format.decode(200, {}, json.dumps(answers.generated()).encode())
    (choice,) = response.choices
    assert (choice.text, choice.finish_reason) == (answers.TEXT, "tool_calls")
    assert choice.extra == {
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Paris","days":[1,2]}'},
            }
        ],
        "reasoning_content": answers.THOUGHT,
        "reasoning_blocks": answers.generated()["candidates"][0]["content"]["parts"][1:],
    }
    assert response.usage[:2] == (9, 5)
    assert (response.usage.cached_tokens, response.usage.reasoning_tokens) == (4, 3)
    assert response.usage.cost == pytest.approx((5 * 10 + 4 * 1 + 5 * 20) / 1e6)
    assert (response.model, response.request_id) == ("gemini-2.5-flash", "r-1")


def test_signed_parts_go_back_as_they_came() -> None:
    extra = FLASH.decode(200, {}, json.dumps(answers.generated()).encode()).choices[0].extra
    assert extra is not None
    turns = (
        Message("user", "q"),
        Message("assistant", answers.TEXT, dict(extra)),
        Message("tool", "18", {"tool_call_id": "call_0"}),
    )
    contents = sent(asked(*turns))["contents"]
    assert contents[1]["parts"] == answers.generated()["candidates"][0]["content"]["parts"][1:]
    assert contents[2]["parts"] == [{"functionResponse": {"name": "weather", "response": {"result": 18}}}]


def test_the_id_that_the_model_gave_a_call_goes_back_with_the_answer() -> None:
    calls = [
        {"functionCall": {"name": "weather", "args": {"city": city}, "id": name}, "thoughtSignature": "c2ln"}
        for city, name in (("Paris", "id-1"), ("Rome", "id-2"))
    ]
    answer = answers.generated()
    answer["candidates"][0]["content"]["parts"] = calls
    extra = FLASH.decode(200, {}, json.dumps(answer).encode()).choices[0].extra
    assert extra is not None
    results = [Message("tool", "18", {"tool_call_id": name}) for name in ("id-2", "id-1")]
    given = [{"id": name, "name": "weather", "response": {"result": 18}} for name in ("id-2", "id-1")]
    turns = (Message("user", "q"), Message("assistant", "", dict(extra)))
    for request in (asked(*turns, *results), Request(Head("x/m", turns), tuple(results))):
        assert [part["functionResponse"] for part in sent(request)["contents"][2]["parts"]] == given


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("OTHER", None), (None, None)],
)
def test_why_an_answer_ended(reason: Any, finish: str | None) -> None:
    value = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": reason}]}
    choice = FLASH.decode(200, {}, json.dumps(value).encode()).choices[0]
    assert (choice.text, choice.finish_reason) == ("x", finish)


def test_what_the_filters_stop_is_a_refusal() -> None:
    stopped = {"candidates": [{"finishReason": "SAFETY"}], "promptFeedback": {}}
    choice = FLASH.decode(200, {}, json.dumps(stopped).encode()).choices[0]
    assert choice.extra == {"refusal": "the provider's filters stopped the answer: SAFETY"}
    blocked = {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": {"promptTokenCount": 3},
    }
    response = FLASH.decode(200, {}, json.dumps(blocked).encode())
    assert response.choices[0] == (
        "",
        "content_filter",
        {"refusal": "the prompt was blocked: PROHIBITED_CONTENT"},
    )
    assert response.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [
        ("MALFORMED_FUNCTION_CALL", LMIncompleteError),
        ("TOO_MANY_TOOL_CALLS", LMIncompleteError),
        ("MISSING_THOUGHT_SIGNATURE", LMInvalidRequestError),  # the same request would fail again
    ],
)
def test_an_answer_that_failed_says_whether_to_ask_again(reason: str, wanted: type[Exception]) -> None:
    with pytest.raises(wanted):
        FLASH.decode(200, {}, json.dumps({"candidates": [{"finishReason": reason}]}).encode())


def test_several_candidates_with_logprobs() -> None:
    logprobs = {
        "chosenCandidates": [{"token": "a", "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "b", "logProbability": -0.7}]}],
    }
    candidate = {"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP", "logprobsResult": logprobs}
    response = FLASH.decode(200, {}, json.dumps({"candidates": [candidate, candidate]}).encode())
    assert [choice.text for choice in response.choices] == ["x", "x"]
    assert response.choices[1].extra == {
        "logprobs": {
            "content": [
                {
                    "token": "a",
                    "logprob": -0.5,
                    "bytes": None,
                    "top_logprobs": [{"token": "b", "logprob": -0.7, "bytes": None}],
                }
            ]
        }
    }


def test_a_turn_without_content_is_left_out() -> None:
    body = sent(asked(Message("user", "a"), Message("assistant", ""), Message("user", "b")))
    assert body["contents"] == [{"role": "user", "parts": [{"text": "a"}, {"text": "b"}]}]


def test_a_model_that_does_not_reason_is_not_told_how_hard() -> None:
    assert "generationConfig" not in options("gemini-2.0-flash", reasoning_effort="none")
    with pytest.raises(LMConfigurationError, match=r"2\.0 does not reason"):
        options("gemini-2.0-flash", reasoning_effort="low")


@pytest.mark.parametrize(
    ("model", "signed"),
    [("gemini-3-pro-preview", True), ("gemini-3.1-flash", True), ("gemini-2.5-flash", False)],
)
def test_the_calls_of_another_model_pass_without_a_signature(model: str, signed: bool) -> None:
    contents = sent(Request(Head("x/m", TURNS[:1]), TURNS[1:]), GenerateContent(model))["contents"]
    calls = [part for content in contents for part in content["parts"] if "functionCall" in part]
    # Of calls that were made at once the first one has the signature.
    dummy = "skip_thought_signature_validator" if signed else None
    assert [part.get("thoughtSignature") for part in calls] == [dummy, None]
