"""How long a provider asks to wait, whatever form it says it in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["LONGEST_WAIT", "retry_after"]

LONGEST_WAIT: Final = 60.0


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, between 0 and 60; None where the provider did not say or made no sense.

    Reads ``retry-after-ms``, then ``retry-after`` as seconds or as an HTTP date. ``now`` is the
    wall clock in seconds since the epoch. Header names are looked up in lower case.

    >>> retry_after({"retry-after": "2"}, 0.0), retry_after({"retry-after": "1e9"}, 0.0)
    (2.0, 60.0)
    >>> retry_after({"retry-after": "-5"}, 0.0), retry_after({"retry-after": "soon"}, 0.0)
    (0.0, None)
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _clamp(milliseconds / 1000.0)
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = _number(text)
    if seconds is None:
        seconds = _until(text, now)
    return None if seconds is None else _clamp(seconds)


def _number(text: str | None) -> float | None:
    if text is None or len(text) > 40:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _until(text: str, now: float) -> float | None:
    try:
        return parsedate_to_datetime(text[:80]).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):  # the standard parser raises all four
        return None


def _clamp(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_WAIT)
