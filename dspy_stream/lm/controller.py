"""When the next call to an endpoint may go: window, learned pace and known rates together.

Sans-IO: every method is told the time. Each permit has a number; what becomes of the call is told with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from dspy_stream.errors import (
    LMConfigurationError,
    LMError,
    LMIncompleteError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)
from dspy_stream.lm.chance import Chance, Verdict
from dspy_stream.lm.pace import Pacer
from dspy_stream.lm.rates import Quota
from dspy_stream.lm.retry_after import LONGEST_WAIT
from dspy_stream.lm.throttle import Known, Sizes, Throttle
from dspy_stream.lm.window import Window
from dspy_stream.types import Request, Usage

__all__ = ["Controller", "LimitState", "Limits"]

# Seconds after which a pace is more than a first guess.
_HELD: Final = 3.0
# So many refusals without an answer between, over so many seconds, are no pace: the allowance is used up.
_BARREN: Final = (10, 2.0)
_OVERLOADED: Final = (502, 503, 504, 529)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is known beforehand of an endpoint's limits; None is found out while running.

    ``requests_per_minute`` and ``tokens_per_minute`` (prompt and completion together) are kept to as an
    even pace by each process; ``concurrency`` is the most calls in flight at once.

    Raises:
        LMConfigurationError: a limit is not above zero.

    >>> Limits(requests_per_minute=3000)
    Limits(requests_per_minute=3000, tokens_per_minute=None, concurrency=None)
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise LMConfigurationError(f"limits: {name} is a number above 0, not {value}")
        if self.concurrency is not None and self.concurrency < 1:
            raise LMConfigurationError(f"limits: concurrency is at least 1, not {self.concurrency}")

    def within(self, other: Limits) -> Limits:
        """The smaller of both, one by one."""
        return Limits(
            _least(self.requests_per_minute, other.requests_per_minute),
            _least(self.tokens_per_minute, other.tokens_per_minute),
            self.concurrency
            if other.concurrency is None
            else min(other.concurrency, self.concurrency or other.concurrency),
        )


def _least(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


@dataclass(frozen=True, slots=True)
class LimitState:
    """How an endpoint's limits stand at one moment.

    ``limit`` calls may be in flight, ``in_flight`` are, ``waiting`` want to be. ``rate`` is the pace in
    calls per second, None while none is known; ``refused`` and ``overloaded`` count calls so far; for
    ``paused`` more seconds none goes, because the server asked for that.
    """

    limit: int
    in_flight: int
    waiting: int
    rate: float | None
    refused: int
    overloaded: int
    paused: float


class Controller:
    """The state machine of one endpoint.

    A caller takes a permit with :meth:`take`, or asks :meth:`delay` when to try again, and gives it
    back with one of :meth:`succeeded`, :meth:`failed` and :meth:`dropped`.
    """

    __slots__ = (
        *("counts_tokens", "pacer", "window"),
        *(
            "_barren",
            "_barren_since",
            "_chance",
            "_limits",
            "_meters",
            "_overloaded",
            "_refused",
            "_paced_since",
            "_safe",
            "_sizes",
            "_throttles",
        ),
    )

    def __init__(self, limits: Limits = Limits()) -> None:
        self.window = Window()
        self.pacer = Pacer()
        self._chance = Chance()
        self._safe = 0.0  # the pace before it was raised
        self._paced_since = 0.0
        self._barren = 0  # refusals since the last answer, and when the first of them came
        self._barren_since = 0.0
        self.pacer.gap = self.window.gap
        self.counts_tokens = False
        self._limits = Limits()
        self._meters: list[tuple[Known | Throttle, _Kind]] = []
        self._throttles: dict[_Kind, Throttle] = {}
        self._sizes = Sizes()
        self._refused = self._overloaded = 0
        self.restrict(limits)

    def restrict(self, limits: Limits) -> None:
        """Keep to these limits too."""
        limits = self._limits.within(limits)
        if limits != self._limits:
            self._limits = limits
            self._measure()

    def _measure(self) -> None:
        limits = self._limits
        meters: list[tuple[Known | Throttle, _Kind]] = [
            (meter, kind) for kind, meter in self._throttles.items()
        ]
        if limits.requests_per_minute is not None:
            meters.append((Known(limits.requests_per_minute / 60.0), "requests"))
        if limits.tokens_per_minute is not None:
            meters.append((Known(limits.tokens_per_minute / 60.0), "tokens"))
        if limits.concurrency is not None:
            self.window.cap(limits.concurrency)
        self._meters = meters
        self.counts_tokens = any(kind != "requests" for _, kind in meters)

    # ------------------------------------------------------------------------------- permits

    def delay(self, now: float, tokens: float = 0.0) -> float:
        """Seconds until a call may go: zero for now, infinity until one comes back."""
        window = self.window
        if window.in_flight >= window.limit:
            return math.inf
        free_at = max(self.pacer.free_at, self._metered(tokens))
        return free_at - now if free_at > now else 0.0

    def _metered(self, tokens: float) -> float:
        completion = self._sizes.completion
        return max(
            (meter.free_at(self._units(kind, tokens, completion)) for meter, kind in self._meters),
            default=0.0,
        )

    def guess(self, request: Request) -> float:
        """Tokens that the prompt of a request will count as; zero while nobody counts."""
        return self._sizes.guess(request) if self.counts_tokens else 0.0

    def take(self, now: float, tokens: float = 0.0) -> int:
        """A permit's number, above zero; zero where :meth:`delay` is not."""
        window, pacer = self.window, self.pacer
        if window.in_flight >= window.limit or pacer.free_at > now:
            return 0
        if self._meters:
            if self._metered(tokens) > now:
                return 0
            for meter, kind in self._meters:
                meter.spend(now, self._units(kind, tokens, self._sizes.completion), pacer.newest + 1)
        window.in_flight += 1
        return pacer.sent(now)

    @staticmethod
    def _units(kind: _Kind, prompt: float, completion: float) -> float:
        if kind == "requests":
            return 1.0
        if kind == "tokens":
            return prompt + completion
        return prompt if kind == "input_tokens" else completion

    # -------------------------------------------------------------------------------- outcomes

    def succeeded(self, now: float, number: int, sent: float, *, pressed: bool = False) -> None:
        """The call was answered; ``pressed``: others are waiting for a permit."""
        window, pacer = self.window, self.pacer
        window.answered(now, sent, pressed)
        window.in_flight -= 1
        if self._throttles:
            self._closed(number)
        self._barren = 0
        if pacer.rate is None:
            pacer.gap = window.gap
            window.paced = pacer.probing or bool(self._meters)
        if pacer.probing:
            pacer.admitted(now, number)

    def learn(self, request: Request, tokens: float, usage: Usage) -> None:
        """What a call used whose prompt was guessed at."""
        completion = self._sizes.completion
        self._sizes.learn(request, usage)
        for meter, kind in self._meters:
            if isinstance(meter, Known):
                used = self._units(kind, usage.prompt_tokens, usage.completion_tokens)
                meter.correct(used - self._units(kind, tokens, completion))

    def failed(self, now: float, number: int, sent: float, error: LMError) -> None:
        """The call failed; what with says whether the server has a limit or is overloaded."""
        window, pacer = self.window, self.pacer
        wait = min(error.retry_after or 0.0, LONGEST_WAIT)
        window.in_flight -= 1
        refused = isinstance(error, LMRateLimitError)
        self._closed(number, refused=refused)
        if refused:
            self._refused += 1
            if not self._barren:
                self._barren_since = now
            self._barren += 1
            self._limited(now, number, sent, wait)
        elif _is_overload(error):
            self._overloaded += 1
            window.overloaded(now, number, pacer.newest, sent)
            if pacer.rate is None:
                pacer.gap = window.gap
            if wait:
                pacer.wait(now, wait)
                # Not all at once afterwards, but over the time that an answer takes.
                pacer.gap = pacer.gap or max(window.latency, 0.1) / window.limit

    def _limited(self, now: float, number: int, sent: float, wait: float) -> None:
        """A call was refused: is it the pace?"""
        chance, pacer = self._chance, self.pacer
        newest = pacer.newest
        if pacer.rate is None and not pacer.probing:
            self._paced_since = now
            if chance.climbing:  # it rose by itself until there was no pace
                chance.settled(now)
        if pacer.probing:
            chance.stands(newest)
            verdict: Verdict = "heed"
        elif chance.climbing:
            verdict = chance.raised(now, number, newest)
        elif pacer.rate is None:
            verdict = chance.free(now, number, newest)
        else:
            verdict = chance.paced(now, number, newest, pacer.quiet)
        if verdict == "scale":
            if chance.climbing:
                self._safe = 1.0 / pacer.gap
            if pacer.scale(chance.scale, chance.calls):
                chance.settled(now)
                self.window.free()
            return
        if verdict != "ignore":
            self.window.limited()
        if verdict == "back":
            pacer.back(now, number, self._safe)
        else:
            pacer.refused(now, number, sent, wait, heed=verdict == "heed")

    def dropped(self, number: int) -> None:
        """The call was given up, and nothing is known."""
        self.window.in_flight -= 1
        self._closed(number)

    def _closed(self, number: int, *, refused: bool = False) -> None:
        for throttle in self._throttles.values():
            throttle.closed(number, refused=refused)

    def heard(self, said: Quota, now: float, number: int = 0) -> None:
        """The provider has said what is left; it begins to count with the first time.

        ``number`` is the permit of the call that it answered, zero where that is not known.
        """
        window, sizes = self.window, self._sizes
        number = number or self.pacer.newest - window.in_flight
        for kind in _KINDS:
            allowance = getattr(said, kind)
            if allowance is None:
                continue
            throttle = self._throttles.get(kind)
            if throttle is None:
                units = self._units(kind, sizes.prompt, sizes.completion)
                throttle = self._throttles[kind] = Throttle(
                    units, self.pacer.newest, window.in_flight, rooms=kind in ("tokens", "output_tokens")
                )
                self._measure()
            throttle.heard(allowance, now, number, window.latency)

    def state(self, now: float, waiting: int) -> LimitState:
        """How it stands."""
        window, pacer = self.window, self.pacer
        rates = [meter.rate for meter, kind in self._meters if kind == "requests" and meter.rate < math.inf]
        if pacer.rate is not None:
            rates.append(pacer.rate)
        return LimitState(
            limit=int(max(window.limit, 1.0)),
            in_flight=window.in_flight,
            waiting=waiting,
            rate=min(rates, default=None),
            refused=self._refused,
            overloaded=self._overloaded,
            paused=self.paused(now),
        )

    def held(self, now: float) -> float | None:
        """Calls per second that refusals have held it to for a while; None where they do not."""
        pacer = self.pacer
        settled = pacer.rate is not None and not self._chance.climbing
        return 1.0 / pacer.gap if settled and now - self._paced_since >= _HELD else None

    def barren(self, now: float) -> bool:
        """Whether it has refused everything for a while: who can ask another model should not wait for it."""
        calls, seconds = _BARREN
        return self._barren >= calls and now - self._barren_since >= seconds

    def paused(self, now: float) -> float:
        """Seconds for which the server has asked that nothing is sent."""
        return max(0.0, self.pacer.until - now)


_Kind = Literal["requests", "tokens", "input_tokens", "output_tokens"]
_KINDS: Final[tuple[_Kind, ...]] = ("requests", "tokens", "input_tokens", "output_tokens")


def _is_overload(error: LMError) -> bool:
    """Whether it failed as calls to an overloaded server do."""
    if isinstance(error, LMServerError):
        return error.status in _OVERLOADED or error.provider_code == "overloaded_error"
    if isinstance(error, LMIncompleteError):
        return False
    return isinstance(error, (LMTimeoutError, LMTransportError))
