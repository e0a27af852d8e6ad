"""From an error response to the error tree; shared by every wire format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

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
from dspy_stream.lm.retry_after import retry_after

__all__ = ["refusal"]

_BY_STATUS: Final[Mapping[int, type[LMProviderError]]] = {
    400: LMInvalidRequestError,
    401: LMAuthError,
    402: LMBillingError,
    403: LMAuthError,
    404: LMUnsupportedModelError,
    408: LMTimeoutError,
    409: LMServerError,  # providers use it for "try again"
    413: LMInvalidRequestError,
    422: LMInvalidRequestError,
    425: LMServerError,
    429: LMRateLimitError,
}

# A provider's own code says more than its status, and all there is in the middle of a stream.
_BY_CODE: Final[Mapping[str, type[LMError]]] = {
    "insufficient_quota": LMBillingError,
    "billing_hard_limit_reached": LMBillingError,
    "billing_not_active": LMBillingError,
    # OpenAI's and Anthropic's money, with the status of a limit that a minute's wait helps with
    "credit_balance_exhausted": LMBillingError,
    "organization_usage_limit_exceeded": LMBillingError,
    "organization_spend_limit_exceeded": LMBillingError,
    "project_spend_limit_exceeded": LMBillingError,
    "enforced_spend_limit_reached": LMBillingError,
    "invalid_api_key": LMAuthError,
    "model_not_found": LMUnsupportedModelError,
    "context_length_exceeded": ContextWindowExceededError,
    "rate_limit_exceeded": LMRateLimitError,
    "server_error": LMServerError,
    # What a response of OpenAI's that failed says of the row, with the status of a success
    **dict.fromkeys(
        (
            *("invalid_prompt", "bio_policy", "cyber_policy", "content_policy_violation"),
            *("invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url"),
            *("image_too_large", "image_too_small", "image_parse_error", "image_content_policy_violation"),
            *("invalid_image_mode", "image_file_too_large", "unsupported_image_media_type"),
            *("empty_image_file", "failed_to_download_image", "image_file_not_found"),
        ),
        LMInvalidRequestError,
    ),
    "data_residency_mismatch": LMConfigurationError,
    # Anthropic
    "invalid_request_error": LMInvalidRequestError,
    "authentication_error": LMAuthError,
    "billing_error": LMBillingError,
    "permission_error": LMAuthError,
    "not_found_error": LMUnsupportedModelError,
    "request_too_large": LMInvalidRequestError,
    "rate_limit_error": LMRateLimitError,
    "timeout_error": LMTimeoutError,
    "api_error": LMServerError,
    "overloaded_error": LMServerError,
    # Google
    "API_KEY_INVALID": LMAuthError,
    "API_KEY_SERVICE_BLOCKED": LMAuthError,
    "INVALID_ARGUMENT": LMInvalidRequestError,
    "FAILED_PRECONDITION": LMBillingError,  # not in this country without billing
    "UNAUTHENTICATED": LMAuthError,
    "PERMISSION_DENIED": LMAuthError,
    "NOT_FOUND": LMUnsupportedModelError,
    "RESOURCE_EXHAUSTED": LMRateLimitError,
    "INTERNAL": LMServerError,
    "UNAVAILABLE": LMServerError,
    "CANCELLED": LMServerError,
    "DEADLINE_EXCEEDED": LMTimeoutError,
    # Azure
    "DeploymentNotFound": LMUnsupportedModelError,
    "OperationNotSupported": LMUnsupportedModelError,
    "content_filter": LMInvalidRequestError,
    # Groq, Mistral, Moonshot, Together
    "capacity_exceeded": LMServerError,
    "json_validate_failed": LMIncompleteError,  # the model did not keep to the form; it may the next time
    "tool_use_failed": LMIncompleteError,
    "model_decommissioned": LMUnsupportedModelError,
    "invalid_model": LMUnsupportedModelError,
    "exceeded_current_quota_error": LMBillingError,
    "model_not_available": LMUnsupportedModelError,
}
# Codes that are used for anything, so that another status than 400 says more.
_VAGUE: Final = frozenset({"invalid_request_error", "api_error"})

# Servers that speak the format without its codes say it in words.
_TOO_LONG: Final = re.compile(
    r"maximum context length|context window|context length|prompt is too long|too many (input )?tokens"
    r"|input token count.*(exceeds|only supports)|exceed context limit|context size|input is too long"
    r"|maximum (prompt|model) length|exceeded model token limit|`inputs`.*must (be <=|have less than)"
    r"|'(messages|input)\b[^']*': string too long",
    re.IGNORECASE,
)
_NEVER_FITS: Final = re.compile(r"request too large", re.IGNORECASE)
_NO_CREDIT: Final = re.compile(
    r"credit balance is too low|insufficient (balance|credits)|spending (limit|cap)"
    r"|(all available|more) credits|run out of credits|credits are depleted|have any credits"
    r"|reached your specified (\w+ )?api usage limits",
    re.IGNORECASE,
)
# Some answer 400 where the model is none of theirs.
_NO_MODEL: Final = re.compile(
    r"model not exist|not a valid model\b|invalid model( name|:| id|[ =]['\"`])|unknown model\b"
    r"|\bmodel\b[^.]{0,100}\b(does not exist|not found|no longer (supported|available)|decommissioned)",
    re.IGNORECASE,
)
# A moderator's no, with the status of a wrong key.
_MODERATED: Final = re.compile(
    r"usage guidelines|content (policy|policies|filter)|moderation|safety[ _]check|flagged", re.IGNORECASE
)
_NO_SETTING: Final = re.compile(
    r"^(temperature|top_[kp]|max_tokens|stop_sequences|thinking|tool_choice|output_config)\b[.:\w]*: "
    r"|^[\"`](temperature|top_[kp]|thinking)\b[.\w]*[\"`] is (not supported|deprecated)"
    r"|^\w+: extra inputs are not permitted|\"extra_forbidden\",\"loc\":\[\"body\",\"\w+\"\]"
    r"|unsupported parameter|unrecognized request argument|unknown name \"|^unknown parameter: '\w+'"
    r"|not a supported thinking level|thinking budget is not supported|does not support this tool_choice",
    re.IGNORECASE,
)
# Where these are refused, they are for every row.
_SETTINGS: Final = frozenset(
    {
        *("temperature", "top_p", "top_k", "n", "stop", "seed", "logprobs", "top_logprobs", "logit_bias"),
        *("presence_penalty", "frequency_penalty", "max_tokens", "max_completion_tokens", "verbosity"),
        *("max_output_tokens", "reasoning_effort", "reasoning", "service_tier", "parallel_tool_calls"),
        *("text", "tool_choice", "prompt_cache_retention"),
    }
)
_BAD_KEY: Final = re.compile(r"api key not valid|invalid api key|incorrect api key", re.IGNORECASE)
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DELAY: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SHOWN: Final = 300
_REQUEST_IDS: Final = ("x-request-id", "request-id", "apim-request-id")


class _Said(NamedTuple):
    """What a body says of its error; ``status`` and ``wait`` where they are in it, ``limit`` a router's."""

    text: str
    code: str | None = None
    status: int | None = None
    wait: str | None = None
    flagged: bool = False
    request_id: str | None = None
    param: str = ""
    page: bool = False
    limit: str = ""


def refusal(status: int, headers: Mapping[str, str], body: bytes, now: float) -> LMError:
    """The error that a response with an error status, or an error object in its body, stands for.

    ``now`` is the wall clock, for ``retry-after`` dates. The message holds the status and at most
    300 characters of what the provider said, without control characters.
    """
    if 300 <= status < 400:
        return LMConfigurationError(
            f"the server answered {status} and points elsewhere; redirects are not followed: "
            "set api_base to the final address",
            status=status,
        )
    said = _said(body)
    code = said.code
    if status < 300 and said.status is not None:  # the status line was sent before it went wrong
        status = said.status
    text = _UNPRINTABLE.sub(" ", said.text).strip()[:_SHOWN] or "no reason given"
    if status == 403 and said.page:
        text = f"a web page, perhaps of a firewall, and no answer of the provider's: {text}"
    if status == 404 and code is None and "model" not in text.lower():
        text += " (perhaps of the address and not the model: with most servers api_base ends in /v1)"
    wait = retry_after(headers, now)
    if wait is None and said.wait is not None:
        wait = retry_after({"retry-after": said.wait}, now)
    return _kind(status, said)(
        f"{status}: {text}" if not code else f"{status} {code}: {text}",
        status=status,
        provider_code=code,
        request_id=next((headers[n] for n in _REQUEST_IDS if headers.get(n)), None) or said.request_id,
        retry_after=wait,
    )


def _kind(status: int, said: _Said) -> type[LMError]:
    if status == 403 and said.page:  # providers write JSON: whose page it is, it says nothing of the key
        return LMServerError
    if status == 402 or (said.limit and status == 403):  # money, but for a router's calls in flight
        return LMRateLimitError if said.limit.endswith("_in_flight_budget") else LMBillingError
    if said.flagged or (status == 403 and _MODERATED.search(said.text)):
        return LMInvalidRequestError
    by_status = _BY_STATUS.get(status)
    kind: type[LMError] | None = _BY_CODE.get(said.code) if said.code is not None else None
    if kind is None or (said.code in _VAGUE and status >= 400):
        kind = by_status or kind
    if kind is None:
        kind = LMServerError if status >= 500 or status < 400 else LMInvalidRequestError
    if kind in (LMInvalidRequestError, LMRateLimitError, LMServerError, LMAuthError):
        return _in_words(kind, status, said)
    return kind


def _in_words(kind: type[LMError], status: int, said: _Said) -> type[LMError]:
    """Nearer kinds of a bad request, and of a limit that waiting does not help with."""
    if _NEVER_FITS.search(said.text) and status in (413, 429):
        return LMInvalidRequestError
    if kind is not LMServerError and _NO_CREDIT.search(said.text):
        return LMBillingError
    if kind in (LMRateLimitError, LMAuthError):
        return kind
    if _TOO_LONG.search(said.text):
        return ContextWindowExceededError
    if kind is LMServerError:
        return kind
    if _BAD_KEY.search(said.text):
        return LMAuthError
    if _NO_MODEL.search(said.text):
        return LMUnsupportedModelError
    refused = said.param in _SETTINGS or _NO_SETTING.search(said.text)
    return LMConfigurationError if refused else kind


def _said(body: bytes) -> _Said:
    """The provider's message and code, from any of the shapes that are about."""
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _Said(body[: 4 * _SHOWN].decode("utf-8", "replace"), page=body.lstrip()[:1] == b"<")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    error: Any = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, str):
        return _Said(error)
    if not isinstance(error, dict):
        return _Said("")
    message = error.get("message") or error.get("detail") or ""
    text = message if isinstance(message, str) else orjson.dumps(message).decode()
    metadata = error.get("metadata")
    nested = metadata if isinstance(metadata, dict) else {}  # of a router: what the provider behind it said
    if nested.get("raw"):
        raw = nested["raw"] if isinstance(nested["raw"], str) else orjson.dumps(nested["raw"]).decode()
        text = f"{text}: {raw}"
    number = error.get("code")
    reason, wait = _details(error.get("details"))
    request_id, param = value.get("request_id"), error.get("param")
    return _Said(
        text,
        reason or _code(error),
        number if type(number) is int and 400 <= number < 600 else None,
        wait,
        bool(nested.get("reasons") or nested.get("flagged_input")),
        request_id if isinstance(request_id, str) and _CODE.fullmatch(request_id) else None,
        re.split(r"[.\[]", param, maxsplit=1)[0] if isinstance(param, str) else "",
        limit=str(nested.get("limit_source") or ""),
    )


def _code(error: dict[str, Any]) -> str | None:
    for name in ("code", "type", "status"):
        code = error.get(name)
        if isinstance(code, str) and not code.isdigit():
            return code if _CODE.fullmatch(code) else None
    return None


def _details(details: Any) -> tuple[str | None, str | None]:
    """Reason and seconds to wait among Google's details; Anthropic's hold a code only."""
    if isinstance(details, dict):
        code = details.get("error_code")
        return (code, None) if isinstance(code, str) and code in _BY_CODE else (None, None)
    reason = wait = None
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        if isinstance(said := detail.get("reason"), str) and said in _BY_CODE:
            reason = said
        if isinstance(delay := detail.get("retryDelay"), str) and (found := _DELAY.fullmatch(delay)):
            wait = found.group(1)
    return reason, wait
