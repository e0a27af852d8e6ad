"""From an error response to the error tree; shared by every wire format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from dspy_stream.errors import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
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

# A provider's own code says more than its status.
_BY_CODE: Final[Mapping[str, type[LMProviderError]]] = {
    "insufficient_quota": LMBillingError,
    "billing_hard_limit_reached": LMBillingError,
    "billing_not_active": LMBillingError,
    "invalid_api_key": LMAuthError,
    "model_not_found": LMUnsupportedModelError,
    "context_length_exceeded": ContextWindowExceededError,
    "rate_limit_exceeded": LMRateLimitError,
    "server_error": LMServerError,
    "overloaded_error": LMServerError,
}

# Servers that speak the format without its codes say it in words.
_TOO_LONG: Final = re.compile(
    r"maximum context length|context window|context length|prompt is too long|too many (input )?tokens",
    re.IGNORECASE,
)
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SHOWN: Final = 300


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
    said, code = _said(body)
    kind = _kind(status, code, said)
    text = _UNPRINTABLE.sub(" ", said).strip()[:_SHOWN] or "no reason given"
    return kind(
        f"{status}: {text}" if not code else f"{status} {code}: {text}",
        status=status,
        provider_code=code,
        request_id=headers.get("x-request-id"),
        retry_after=retry_after(headers, now),
    )


def _kind(status: int, code: str | None, said: str) -> type[LMProviderError]:
    kind = _BY_CODE.get(code) if code is not None else None
    if kind is None:
        kind = _BY_STATUS.get(status)
    if kind is None:
        kind = LMServerError if status >= 500 or status < 400 else LMInvalidRequestError
    if kind is LMInvalidRequestError and _TOO_LONG.search(said):
        return ContextWindowExceededError
    return kind


def _said(body: bytes) -> tuple[str, str | None]:
    """The provider's message and code, from any of the shapes that are about."""
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[: 4 * _SHOWN].decode("utf-8", "replace"), None
    error: Any = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, str):
        return error, None
    if not isinstance(error, dict):
        return "", None
    message = error.get("message") or error.get("detail") or ""
    code = next((error[name] for name in ("code", "type") if isinstance(error.get(name), str)), None)
    if code is None or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", code):
        code = None
    return message if isinstance(message, str) else orjson.dumps(message).decode(), code
