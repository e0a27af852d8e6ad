"""What each provider's errors mean, in the shapes that they come in."""

from __future__ import annotations

import json
from typing import Any

import pytest

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
    LMUnsupportedModelError,
)
from dspy_stream.lm.providers.refusals import refusal

INVALID_KEY = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
RETRY = [
    {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{}]},
    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"},
]


def anthropic(kind: str, message: str = "no") -> Any:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def google(code: int, status: str, message: str = "no", details: Any = None) -> Any:
    return {"error": {"code": code, "message": message, "status": status, "details": details or []}}


def openai(message: str, **more: Any) -> Any:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        # Anthropic, by status and, in a stream, by type alone
        (400, anthropic("invalid_request_error"), LMInvalidRequestError),
        (400, anthropic("invalid_request_error", "prompt is too long: 2 > 1"), ContextWindowExceededError),
        (400, anthropic("invalid_request_error", "Your credit balance is too low to use it"), LMBillingError),
        (401, anthropic("authentication_error"), LMAuthError),
        (402, anthropic("billing_error"), LMBillingError),
        (403, anthropic("permission_error"), LMAuthError),
        (404, anthropic("not_found_error"), LMUnsupportedModelError),
        (413, anthropic("request_too_large"), LMInvalidRequestError),
        (429, anthropic("rate_limit_error"), LMRateLimitError),
        (500, anthropic("api_error"), LMServerError),
        (504, anthropic("timeout_error"), LMTimeoutError),
        (529, anthropic("overloaded_error"), LMServerError),
        (200, anthropic("overloaded_error"), LMServerError),
        (200, anthropic("rate_limit_error"), LMRateLimitError),
        (200, anthropic("invalid_request_error"), LMInvalidRequestError),
        # Google
        (400, google(400, "INVALID_ARGUMENT"), LMInvalidRequestError),
        (400, google(400, "INVALID_ARGUMENT", "API key not valid.", INVALID_KEY), LMAuthError),
        (400, google(400, "INVALID_ARGUMENT", "API key not valid. Pass one."), LMAuthError),
        (
            400,
            google(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum (8)"),
            ContextWindowExceededError,
        ),
        (400, google(400, "FAILED_PRECONDITION"), LMBillingError),
        (403, google(403, "PERMISSION_DENIED"), LMAuthError),
        (404, google(404, "NOT_FOUND"), LMUnsupportedModelError),
        (429, google(429, "RESOURCE_EXHAUSTED"), LMRateLimitError),
        (429, [google(429, "RESOURCE_EXHAUSTED")], LMRateLimitError),
        (200, google(429, "RESOURCE_EXHAUSTED"), LMRateLimitError),
        (500, google(500, "INTERNAL"), LMServerError),
        (503, google(503, "UNAVAILABLE"), LMServerError),
        (504, google(504, "DEADLINE_EXCEEDED"), LMTimeoutError),
        # Azure
        (404, openai("no such", code="DeploymentNotFound"), LMUnsupportedModelError),
        (400, openai("filtered", code="content_filter", status=400), LMInvalidRequestError),
        (400, openai("no", code="OperationNotSupported"), LMUnsupportedModelError),
        (401, openai("Access denied", code="401"), LMAuthError),
        (429, openai("slow", code="429"), LMRateLimitError),
        # OpenRouter
        (200, openai("Provider returned error", code=502, metadata={"raw": "x"}), LMServerError),
        (200, openai("Provider returned error", code=429, metadata={"raw": "x"}), LMRateLimitError),
        (402, openai("Insufficient credits", code=402), LMBillingError),
        (403, openai("flagged", code=403, metadata={"reasons": ["x"]}), LMInvalidRequestError),
        (
            400,
            openai("bad", code=400, metadata={"raw": "maximum context length"}),
            ContextWindowExceededError,
        ),
        # Others
        (
            429,
            openai("Request too large for m on tokens per min", code="rate_limit_exceeded"),
            LMInvalidRequestError,
        ),
        (413, openai("Request too large for m", code="rate_limit_exceeded"), LMInvalidRequestError),
        (402, openai("Insufficient Balance", code="invalid_request_error"), LMBillingError),
        (401, openai("no", type="invalid_request_error"), LMAuthError),
        # The context is too long, in the words of those who have no code for it
        *(
            (status, openai(words), ContextWindowExceededError)
            for status, words in (
                (400, "This model's maximum prompt length is 131072 but the request contains 180000 tokens."),
                (400, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193."),
                (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"),
                (400, "the request exceeds the available context size. try increasing the context size"),
                (500, "the request exceeds the available context size. try increasing the context size"),
                (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
                (400, "Invalid request: Your request exceeded model token limit: 8192"),
                (400, "Input is too long for requested model."),
                (400, "Unable to submit request: the input token count is 9 but model only supports up to 8"),
                (400, "Invalid 'messages[1].content': string too long. Expected at most 10485760."),
            )
        ),
        (400, openai("Invalid 'user': string too long.", param="user"), LMInvalidRequestError),
        # No money is left, which waiting does not help with
        (
            429,
            openai("You exceeded your current quota", type="insufficient_quota", code=None),
            LMBillingError,
        ),
        (
            429,
            {
                "code": "Some resource has been exhausted",
                "error": "Your team has either used all available credits or hit its monthly spending limit.",
            },
            LMBillingError,
        ),
        (429, openai("Your account is suspended", type="exceeded_current_quota_error"), LMBillingError),
        (412, openai("Account x is suspended, possibly due to reaching the spending limit"), LMBillingError),
        (
            400,
            anthropic("invalid_request_error", "You have reached your specified API usage limits."),
            LMBillingError,
        ),
        (
            429,
            google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan"),
            LMRateLimitError,
        ),
        # No such model, with the status of a bad request
        *(
            (400, body, LMUnsupportedModelError)
            for body in (
                openai("Model Not Exist", type="invalid_request_error", code="invalid_request_error"),
                openai("foo/bar is not a valid model ID", code=400),
                {"object": "error", "message": "Invalid model: foo", "type": "invalid_model", "code": "1500"},
                {"error": "/chat/completions: Invalid model name passed in model=foo. Call `/v1/models`"},
                openai("Invalid model 'foo'. Permitted models can be found", type="invalid_model", code=400),
                openai("The model `x` has been decommissioned", code="model_decommissioned"),
            )
        ),
        (400, openai("Invalid modelling instructions"), LMInvalidRequestError),
        # A moderator's no concerns one row
        (
            403,
            {
                "code": "The caller does not have permission to execute the specified operation",
                "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO",
            },
            LMInvalidRequestError,
        ),
        (403, openai("Your project has no access"), LMAuthError),
        # A setting that the model does not take is so for every row
        (
            400,
            openai("Unsupported parameter", param="temperature", code="unsupported_parameter"),
            LMConfigurationError,
        ),
        (
            400,
            openai("Unknown parameter: 'foo'.", param="foo", code="unknown_parameter"),
            LMConfigurationError,
        ),
        (
            400,
            openai("Unsupported value", param="text.verbosity", code="unsupported_value"),
            LMConfigurationError,
        ),
        (
            422,
            {"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "foo"], "msg": "Extra"}]}},
            LMConfigurationError,
        ),
        *(
            (
                400,
                {"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}},
                LMConfigurationError,
            )
            for said in (
                "'minimal' is not a supported thinking level for this model.",
                "Thinking budget is not supported for this model.",
            )
        ),
        # The row's picture or words, of which a response says so that had begun with a success
        *(
            (200, openai("no", code=code), LMInvalidRequestError)
            for code in ("invalid_image_url", "image_too_large", "bio_policy", "cyber_policy")
        ),
        (200, openai("later", code="vector_store_timeout"), LMServerError),
        # A router keeps back so much for the calls in flight, which is free again in seconds
        *(
            (
                status,
                {"error": {"code": status, "message": "no", "metadata": {"limit_source": limit}}},
                wanted,
            )
            for status, limit, wanted in (
                (402, "openrouter_in_flight_budget", LMRateLimitError),
                (402, "openrouter_credits", LMBillingError),
                (403, "openrouter_key_limit", LMBillingError),
                (403, "openrouter_guardrail_budget", LMBillingError),
            )
        ),
        # Money that is gone, with the status of a limit: waiting does not bring it back
        *(
            (429, openai("You exceeded your current quota.", code=code, type="insufficient_quota"), wanted)
            for code, wanted in (
                ("credit_balance_exhausted", LMBillingError),
                ("organization_usage_limit_exceeded", LMBillingError),
                ("organization_spend_limit_exceeded", LMBillingError),
                ("project_spend_limit_exceeded", LMBillingError),
                ("slow_down", LMRateLimitError),
            )
        ),
        *(
            (
                429,
                {
                    "type": "error",
                    "error": {"type": "rate_limit_error", "message": "no", "details": {"error_code": code}},
                },
                wanted,
            )
            for code, wanted in (
                ("enforced_spend_limit_reached", LMBillingError),
                ("another", LMRateLimitError),
                (None, LMRateLimitError),
            )
        ),
        (402, google(402, "RESOURCE_EXHAUSTED"), LMBillingError),
        (
            429,
            {
                "error": {
                    "code": 429,
                    "message": "The project has exceeded its monthly spending cap.",
                    "status": "RESOURCE_EXHAUSTED",
                }
            },
            LMBillingError,
        ),
        # A key that is right, and an account that is empty
        *(
            (403, {"code": "permission-denied", "error": said}, LMBillingError)
            for said in (
                "Your team has either used all available credits or reached its monthly spending limit.",
                "You have run out of credits or need a subscription.",
                "Your newly created team doesn't have any credits or licenses yet.",
            )
        ),
        (
            429,
            {
                "error": {
                    "code": 429,
                    "message": "Your prepayment credits are depleted.",
                    "status": "RESOURCE_EXHAUSTED",
                }
            },
            LMBillingError,
        ),
        (400, openai("array too long", param="stop", code="array_above_max_length"), LMConfigurationError),
        *(
            (400, {"type": "error", "error": {"type": "invalid_request_error", "message": said}}, wanted)
            for said, wanted in (
                (
                    'tool_choice: type "tool" and "any" are not supported for this model.',
                    LMConfigurationError,
                ),
                ('"thinking.type.enabled" is not supported for this model.', LMConfigurationError),
                ("`temperature` is deprecated for this model.", LMConfigurationError),
                ("foo: Extra inputs are not permitted", LMConfigurationError),
                ("messages.0.foo: Extra inputs are not permitted", LMInvalidRequestError),
                ("Thinking mode does not support this tool_choice", LMConfigurationError),
                (
                    "messages.1.content.0: The block is bound to a different conversation",
                    LMInvalidRequestError,
                ),
            )
        ),
        (400, openai("Invalid value", param="reasoning.effort", code="invalid_value"), LMConfigurationError),
        (
            400,
            openai("max_tokens is too large: the maximum context length is 4096", param="max_tokens"),
            ContextWindowExceededError,
        ),
        (400, openai("Unrecognized request argument supplied: reasoning_effort"), LMConfigurationError),
        (
            400,
            anthropic("invalid_request_error", "max_tokens: 100000 > 8192, which is the maximum"),
            LMConfigurationError,
        ),
        (
            400,
            anthropic("invalid_request_error", "thinking.budget_tokens: Input should be at least 1024"),
            LMConfigurationError,
        ),
        (400, anthropic("invalid_request_error", "messages.0.content: no"), LMInvalidRequestError),
        (
            400,
            google(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Unknown name \"foo\" at 'x'"),
            LMConfigurationError,
        ),
        (400, openai("no image", param="messages[0].content", code="invalid_value"), LMInvalidRequestError),
        # What may pass
        (400, openai("Failed to generate JSON", code="json_validate_failed"), LMIncompleteError),
        (400, openai("Failed to call a function", code="tool_use_failed"), LMIncompleteError),
        (498, openai("busy", code="capacity_exceeded"), LMServerError),
        (499, google(499, "CANCELLED"), LMServerError),
        (422, {"object": "error", "message": "bad", "type": "invalid_request_error"}, LMInvalidRequestError),
        (
            404,
            {"object": "error", "message": "The model does not exist", "code": 404},
            LMUnsupportedModelError,
        ),
    ],
)
def test_what_an_error_means(status: int, body: Any, kind: type[LMError]) -> None:
    error = refusal(status, {}, json.dumps(body).encode(), 0.0)
    assert type(error) is kind


def test_how_long_to_wait_is_found_in_the_body_too() -> None:
    body = json.dumps(google(429, "RESOURCE_EXHAUSTED", details=RETRY)).encode()
    assert refusal(429, {}, body, 0.0).retry_after == 34.5
    assert refusal(429, {"retry-after": "2"}, body, 0.0).retry_after == 2.0
    far = json.dumps(google(429, "RESOURCE_EXHAUSTED", details=[{"retryDelay": "86400s"}])).encode()
    assert refusal(429, {}, far, 0.0).retry_after == 60.0
    wild = json.dumps(google(429, "RESOURCE_EXHAUSTED", details=[{"retryDelay": "soon"}, 5, None])).encode()
    assert refusal(429, {}, wild, 0.0).retry_after is None


def test_the_request_s_name_is_found_wherever_it_is() -> None:
    body = json.dumps(anthropic("api_error")).encode()
    assert refusal(500, {"request-id": "req_9"}, body, 0.0).request_id == "req_9"
    assert refusal(500, {}, body, 0.0).request_id == "req_1"
    assert refusal(500, {"apim-request-id": "a-1"}, b"{}", 0.0).request_id == "a-1"


def test_what_the_provider_behind_a_router_said_is_told() -> None:
    body = openai(
        "Provider returned error", code=502, metadata={"raw": "upstream is down", "provider_name": "X"}
    )
    error = refusal(200, {}, json.dumps(body).encode(), 0.0)
    assert str(error) == "502: Provider returned error: upstream is down"


@pytest.mark.parametrize(
    "page", [b"<html><title>Access denied</title>", b"\n<!DOCTYPE html><h1>Blocked</h1>"]
)
def test_the_page_of_a_firewall_says_nothing_of_the_key(page: bytes) -> None:
    error = refusal(403, {}, page, 0.0)
    assert type(error) is LMServerError
    assert error.retryable
    assert str(error).startswith("403: a web page, perhaps of a firewall, and no answer of the provider's: <")
    assert type(refusal(403, {}, b"Forbidden", 0.0)) is LMAuthError


@pytest.mark.parametrize(
    "body", [b"404: Not Found", b'{"detail":"Not Found"}', b"<html>no such page</html>", b""]
)
def test_a_404_that_names_no_model_may_be_of_the_address(body: bytes) -> None:
    error = refusal(404, {}, body, 0.0)
    assert isinstance(error, LMUnsupportedModelError)
    assert "api_base ends in /v1" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(openai("no such", code="model_not_found")).encode(),
        b'{"error":"model \'x\' not found, try pulling it first"}',
    ],
)
def test_a_404_of_a_model_says_nothing_of_the_address(body: bytes) -> None:
    assert "api_base" not in str(refusal(404, {}, body, 0.0))
