"""What an HTTP library's error means: every failure of an exchange as an LM error, in one place."""

from __future__ import annotations

import re
from typing import Final

from dspy_stream.errors import (
    LMConfigurationError,
    LMError,
    LMIncompleteError,
    LMProviderError,
    LMTimeoutError,
    LMTransportError,
)

__all__ = ["CONNECTING", "READING", "WAITING", "hung_up", "mapped"]

WAITING: Final = "waiting for the answer"
READING: Final = "reading the answer"
CONNECTING: Final = "connecting"

_URL: Final = re.compile(r"\(?\bhttps?://\S+\)?")

# httpx's and aiohttp's names for a connection that broke; pyreqwest's is in its causes.
_BROKEN: Final = (
    "RemoteProtocolError",
    "ReadError",
    "WriteError",
    "ServerDisconnectedError",
    "ClientOSError",
)


def mapped(error: Exception, host: str, phase: str, seconds: float) -> LMError:
    """What a library's error means, with host and phase; never an empty message, never a query string.

    ``phase`` is how far the exchange had come, ``seconds`` how long it might take.
    """
    causes = _causes(error)
    text = " ".join(causes)
    phase = _phase(error, text, phase)
    where = f"{host}, {phase}"
    reason = _URL.sub("", causes[-1]).strip() if causes else type(error).__name__
    if _is(error, "TimeoutError", "TimeoutException"):
        return _sent(LMTimeoutError(f"{where}: not finished within {seconds:g} s"), phase)
    if "CaUsedAsEndEntity" in text:
        reason = "it is that of an authority; make one with basicConstraints=CA:FALSE for the server"
    if "certificate" in text.lower():
        return LMConfigurationError(f"{where}: the server's certificate is not trusted: {reason}")
    if "head is too large" in text or _is(error, "LineTooLong"):
        return LMProviderError(f"{where}: the headers of the answer are too many and were not read on")
    if phase == READING:
        return LMIncompleteError(f"{where}: the answer was cut short: {reason}")
    return _sent(LMTransportError(f"{where}: {reason}"), phase)


def _sent(error: LMError, phase: str) -> LMError:
    error.sent = phase != CONNECTING
    return error


def hung_up(error: Exception, phase: str) -> bool:
    """Whether the peer closed the connection before it answered anything."""
    text = " ".join(_causes(error))
    if _phase(error, text, phase) != WAITING or isinstance(error, TimeoutError):
        return False
    return "client error (SendRequest)" in text or _is(error, *_BROKEN)


def _causes(error: BaseException) -> list[str]:
    """What a library says went wrong, the deepest cause last; pyreqwest keeps a list of them."""
    details = getattr(error, "details", None)
    if isinstance(details, dict) and details.get("causes"):
        return [str(cause["message"]) for cause in details["causes"]]
    text = str(error)
    return [text] if text else []


def _phase(error: Exception, text: str, phase: str) -> str:
    # pyreqwest reads ahead, so that an error of the body may come before its response.
    if "reading a body" in text or "decoding response body" in text:
        return READING
    if "client error (Connect)" in text or _is(error, "ConnectTimeout", "ClientConnectorError"):
        return CONNECTING
    # pyreqwest gives the same name to any error of a connection.
    own = type(error).__module__.startswith("httpx") and _is(error, "ConnectError")
    return CONNECTING if own else phase


def _is(error: Exception, *names: str) -> bool:
    """By name, because a library that is not installed cannot be imported to ask."""
    return any(kind.__name__ in names for kind in type(error).__mro__)
