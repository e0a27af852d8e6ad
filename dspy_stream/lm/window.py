"""How many calls may be in flight at once: additive increase, multiplicative decrease, slow start.

A server that is overloaded says so (503, 529, a refused connection, no answer in time), and its window
shrinks by a share once a round trip, and grows by a little while all is well (Chiu and Jain,
"Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", Computer Networks and
ISDN Systems 17, 1989). Until the first sign of a limit it grows as in TCP's slow start, paced so
that a limit is heard of before much has been sent in vain.

A server that says nothing but slows down is noticed by the gradient of its latencies, as in Netflix's
concurrency-limits (Gradient2Limit, 2018). But latency alone is not believed, because a model's
answers take as long as they are long: the window is shrunk on trial, and stays so only where fewer
calls in flight bring as many answers a second.

Nor are failures believed for ever. Where half the calls in flight have not made a smaller share of
them fail, it was not their number: the window goes back to what it was, and stays so for a while
whatever fails (see doubt.py).
"""

from __future__ import annotations

import math
from typing import Final

from dspy_stream.lm.doubt import Doubt

__all__ = ["START", "Window"]

START: Final = 24
_GROWTH: Final = 3.0
_ROOMY: Final = 512.0  # a window from which calls are not spread any more
_ROUND: Final = 0.1  # a round trip is not taken for shorter, so that fast servers are not flooded
_SHRINK: Final = 0.7
_TROUBLE: Final = 0.1  # the share of failures that is more than bad luck
_MEMORY: Final = 1.0 / 32.0
_SAMPLE: Final = 100
_SHORTEST: Final = 0.5
_SLOWER: Final = 3.0  # so many times longer than before is not how answers vary
_AS_MANY: Final = 0.9
_HOLD: Final = 5.0


class Window:
    """The number of calls that may be in flight, and of those that are.

    ``limit`` is never above ``ceiling``. ``gap`` is the time by which calls are spread while the window
    grows fast, zero otherwise. The owner counts ``in_flight`` up and down, and says with ``paced`` that
    calls are held back by more than the window.
    """

    __slots__ = (
        *("ceiling", "gap", "in_flight", "latency", "limit", "paced", "threshold", "trouble"),
        *("_base", "_began", "_calm", "_calm_until", "_count", "_cut", "_drained", "_held", "_holds"),
        *("_doubt", "_slower", "_took", "_tried", "_before"),
    )

    def __init__(self) -> None:
        self.ceiling = math.inf
        self.limit = float(START)
        self.in_flight = 0
        self.threshold = math.inf  # below it the window grows by multiplication
        self.gap = _ROUND / START
        self.latency = 0.0
        self.paced = False  # something else than the window decides how much is sent
        self.trouble = 0.0
        self._before: float | None = None  # the threshold before the server had a limit
        self._calm = 0
        self._cut = 0
        self._doubt = Doubt()
        self._began = 0.0
        self._count = 0
        self._took = 0.0
        self._base = math.inf  # how long an answer takes when all is well
        self._tried: tuple[float, float] | None = (
            None  # goodput and limit before the window was shrunk to see
        )
        self._drained = False
        self._slower = _SLOWER
        self._held = -math.inf  # no trial before then
        self._calm_until = -math.inf  # no growth before then
        self._holds = 0

    def cap(self, ceiling: float) -> None:
        """Never more than ``ceiling`` from now on."""
        self.ceiling = min(self.ceiling, ceiling)
        self.limit = min(self.limit, self.ceiling)

    def answered(self, now: float, sent: float, pressed: bool) -> None:
        """A call came back with an answer, still counted as in flight; ``pressed``: others wait to go."""
        took = now - sent
        self.latency += (took - self.latency) * (0.1 if self.latency else 1.0)
        if self.trouble:
            self.trouble -= self.trouble * _MEMORY
            self._doubted(self._doubt.answered(now, sent))
            if self.trouble < _TROUBLE / 2.0:
                self._doubt.calm()
        in_flight = self.in_flight
        self._took += took
        self._count += 1
        if self._count >= (_SAMPLE if self._base < math.inf else START):
            self._sampled(now, pressed)
        limit = self.limit
        full = in_flight + in_flight >= limit
        if limit < self.threshold and not self._doubt.active:
            if (full or pressed) and limit < self.ceiling:
                self.limit = limit = min(limit + _GROWTH, self.ceiling)
                roomy = limit >= min(_ROOMY, self.threshold)  # above the threshold nothing would take it back
                self.gap = 0.0 if roomy else max(self.latency, _ROUND) / (1.25 * limit)
            elif self.gap and not pressed:
                self._calmed()
        elif full and limit < self.ceiling and now >= self._calm_until and not self._on_trial:
            self.limit = min(limit + 1.0 / math.sqrt(limit), self.ceiling)

    def _calmed(self) -> None:
        self._calm += 1
        if self._calm > 2 * self.limit:
            self.gap = 0.0

    def limited(self) -> None:
        """The server has a limit: no more growth by multiplication, and it is the pace that counts."""
        if self._tried is not None:
            self.limit, self._tried = self._tried[1], None
        if self._before is None:
            self._before = self.threshold
        self.threshold = min(self.threshold, self.limit)
        self.gap = 0.0
        self.paced = True

    def free(self) -> None:
        """It has none after all."""
        if self._before is not None:
            self.threshold, self._before = self._before, None
        self.paced = False

    @property
    def _on_trial(self) -> bool:
        return self._tried is not None or self._doubt.active

    def _doubted(self, limit: float) -> None:
        """Go back to a window that was shrunk for nothing."""
        if limit > self.limit:
            self.limit = min(limit, self.ceiling)

    def overloaded(self, now: float, number: int, newest: int, sent: float) -> None:
        """Call ``number`` failed as calls to an overloaded server do; ``newest`` is the last one sent."""
        self.trouble += (1.0 - self.trouble) * _MEMORY
        doubt = self._doubt
        self._doubted(doubt.failed(now, sent))
        if self.trouble < _TROUBLE or number <= self._cut or doubt.active or now < doubt.until:
            return
        self._cut = newest
        whole, used = self.limit, min(self.limit, self.in_flight + 1.0)
        self.limit = max(1.0, _SHRINK * used)
        doubt.cut(now, whole, used, self.limit)
        # In an outage, where all fail, nothing is learned about how many are too many.
        if self.trouble < 3 * _TROUBLE:
            self.threshold = self.limit
        self.gap = 0.0

    # ------------------------------------------------------------------------------ goodput

    def _sampled(self, now: float, pressed: bool) -> None:
        """So many answers have come since the last time: what they say of the server."""
        took = self._took / self._count
        lasted = now - self._began
        if self._base < math.inf and not lasted > max(_SHORTEST, took):
            return
        goodput = self._count / lasted
        self._began, self._count, self._took = now, 0, 0.0
        if self._tried is not None:
            self._judge(now, goodput, took, pressed)
        elif took < self._base * self._slower or (took < _SHORTEST and self._slower == _SLOWER):
            self._base = min(self._base * 1.01, took)
        elif now >= self._held and self.limit > 1.0 and not self.paced:
            self._try(goodput, took)

    def _try(self, goodput: float, took: float) -> None:
        """Answers take far longer than they did: see whether fewer calls in flight bring as many."""
        limit = min(self.limit, self.in_flight + 1.0)
        self._tried = (goodput, self.limit)
        self._drained = False
        self.limit = max(1.0, limit * min(max(1.5 * self._base / took, 0.25), _SHRINK))
        self.threshold = min(self.threshold, self.limit)
        self.gap = 0.0

    def _judge(self, now: float, goodput: float, took: float, pressed: bool) -> None:
        """Go on as long as that is so; otherwise back to what it was before, for a good while."""
        assert self._tried is not None
        if self.in_flight > self.limit + 1.0:
            return  # those sent before are still in flight
        if not self._drained:
            self._drained = True  # and those sent since have only begun to come back
            return
        before, limit = self._tried
        self._tried = None
        self._holds = min(self._holds + 1, 5)
        self._calm_until = self._held = now + _HOLD * 2.0**self._holds
        if goodput < _AS_MANY * before or not pressed:  # or it was not the window that held calls back
            self.limit = limit
            if self._slower == _SLOWER:  # the answers are longer, that is all
                self._base = took
        else:
            self._slower = _SLOWER / 2.0
            if took > self._base * self._slower and self.limit > 1.0:
                self._try(max(goodput, before), took)
