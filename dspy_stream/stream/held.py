"""Endpoints whose refusals hold a flow to a pace: told while it runs, and in its report."""

from __future__ import annotations

import logging

from dspy_stream.errors import LMError, LMRateLimitError

__all__ = ["HeldBack", "figures"]

_log = logging.getLogger("dspy_stream")
_WARN = 30.0


def figures(value: float) -> str:
    """A number of zero or more with three figures, or all that it has before the point.

    >>> figures(1013.4), figures(12.345), figures(0.5)
    ('1,013', '12.3', '0.5')
    """
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


class HeldBack:
    """The pace in calls per second to which the 429s of each endpoint hold us, as the last of them said."""

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}
        self._warned = -_WARN

    def failed(self, error: LMError, now: float) -> None:
        """Hear of an attempt that failed; warn where calls wait for a pace, at most twice a minute."""
        if not isinstance(error, LMRateLimitError) or error.held is None:
            return
        host, rate = error.held
        if rate is None:
            self.rates.pop(host, None)
            return
        self.rates[host] = rate
        if now - self._warned >= _WARN:
            self._warned = now
            _log.warning("held to about %s requests/s by 429s of %s", figures(rate), host)
