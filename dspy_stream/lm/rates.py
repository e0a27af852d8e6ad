"""What a provider says of its limits in the headers of an answer, whatever form it says it in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Final, NamedTuple

__all__ = ["Allowance", "Quota", "quota", "says_quota"]

_UNITS: Final = {
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_PART: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|us|µs|ns|d|h|m|s)", re.ASCII)
_STAMP: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,15}(?:\.\d{1,9})?", re.ASCII)
# Above this a number of seconds is a moment of the wall clock.
_EPOCH: Final = 1e9
_LONGEST: Final = 100 * 86400.0


class Allowance(NamedTuple):
    """How much is left: ``remaining`` of ``limit``, which is full again in ``reset`` seconds.

    ``reset`` is None where the provider does not say.

    >>> Allowance(5000.0, 4990.0, 0.12).refill
    83.33333333333334
    """

    limit: float
    remaining: float
    reset: float | None = None

    @property
    def refill(self) -> float | None:
        """What comes back in a second, where it comes back evenly; None where that cannot be told."""
        missing = self.limit - self.remaining
        return missing / self.reset if self.reset and missing > 0.0 else None


class Quota(NamedTuple):
    """The allowances of an answer, each None where nothing was said of it."""

    requests: Allowance | None = None
    tokens: Allowance | None = None
    input_tokens: Allowance | None = None
    output_tokens: Allowance | None = None


# One name that is there when the provider says anything at all, for each family of names.
_SIGNS: Final = (
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-tokens-remaining",
    "anthropic-ratelimit-input-tokens-remaining",
)


def says_quota(headers: Mapping[str, str]) -> bool:
    """Whether there is anything for :func:`quota` to read; cheaper than reading it."""
    return any(name in headers for name in _SIGNS)


def quota(headers: Mapping[str, str], now: float) -> Quota | None:
    """Read OpenAI's, Azure's, Groq's and Anthropic's headers; None where they say nothing that makes sense.

    ``now`` is the wall clock in seconds since the epoch. Header names are looked up in lower case.
    A limit below one and a remainder below zero, which stand for "not known", count as not said.

    >>> quota({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59",
    ...        "x-ratelimit-reset-requests": "1m6.5s"}, 0.0).requests
    Allowance(limit=60.0, remaining=59.0, reset=66.5)
    """
    said = Quota(
        *(
            _read(headers, f"x-ratelimit-{{}}-{kind}", now)
            or _read(headers, f"anthropic-ratelimit-{kind}-{{}}", now)
            for kind in ("requests", "tokens", "input-tokens", "output-tokens")
        )
    )
    return said if any(allowance is not None for allowance in said) else None


def _read(headers: Mapping[str, str], name: str, now: float) -> Allowance | None:
    limit = _amount(headers.get(name.replace("{}", "limit")))
    remaining = _amount(headers.get(name.replace("{}", "remaining")))
    if limit is None or remaining is None or limit < 1.0:
        return None
    return Allowance(limit, min(remaining, limit), seconds(headers.get(name.replace("{}", "reset")), now))


def _amount(text: str | None) -> float | None:
    if text is None or len(text) > 40:
        return None
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def seconds(text: str | None, now: float) -> float | None:
    """Seconds from ``now`` until a reset, said as a duration, a number or a moment; None where it is none.

    >>> seconds("250ms", 0.0), seconds("6m0s", 0.0), seconds("1970-01-01T00:01:40Z", 40.0)
    (0.25, 360.0, 60.0)
    """
    if text is None or len(text) > 60:
        return None
    text = text.strip()
    value = _amount(text)
    if value is not None:
        value = value - now if value >= _EPOCH else value
    elif _STAMP.fullmatch(text):
        value = _moment(text, now)
    else:
        value = _duration(text)
    return None if value is None or math.isnan(value) else min(max(value, 0.0), _LONGEST)


def _duration(text: str) -> float | None:
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _moment(text: str, now: float) -> float | None:
    # Python 3.10 reads neither a Z nor fractions of other lengths than three and six digits.
    stamp, zone = (text[:-1], "+00:00") if text[-1] in "Zz" else (text[:-6], text[-6:])
    whole, _, fraction = stamp.partition(".")
    try:
        read = datetime.fromisoformat(whole.upper().replace(" ", "T") + zone).astimezone(timezone.utc)
        return read.timestamp() + float(f"0.{fraction or 0}") - now
    except (ValueError, OverflowError):
        return None
