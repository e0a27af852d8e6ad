"""The circuit of one endpoint: whether it is asked at all, decided from how it has answered.

The pattern is Nygard's (Release It!, 2nd edition 2018, chapter 5, "Circuit Breaker"), the names of
the states and the single trial call are those of Microsoft's Cloud Design Patterns. Pure decisions:
time comes in as an argument, chance as a generator.

    closed      every call is made, results are counted
      | so many failures in a row, or most of the calls in a window
    open        no call is made
      | the pause is over and somebody asks
    half open   one call is made, all others are refused
      | it failed: open again, for longer          | it passed: closed
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final, Literal
from weakref import WeakValueDictionary

from dspy_stream.clock import Clock
from dspy_stream.errors import (
    LMConfigurationError,
    LMError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)

__all__ = ["BreakerPolicy", "Circuit", "circuit_for", "speaks_of_the_server"]

_MOST: Final = 50.0
_LEARNT: Final = 0.125
# So many times the usual failures without an answer, and it is no longer as usual, but down.
_UNUSUAL: Final = 20.0
# So many pauses after an answer, so many times more failures are wanted.
_FRESH: Final = 5.0

State = Literal["closed", "open", "half open"]


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a circuit opens, for how long, and what closes it.

    It opens after ``failures`` in a row, or where at least ``ratio`` of the calls of about the last
    ``window`` seconds failed, of which there must have been ``least``. It stays open for half to
    all of ``pause`` seconds, twice as long after every failed trial call, and never longer than
    ``longest``; ``successes`` trial calls, one after the other, close it.

    A server that fails most calls but not all is not down. Where of late one call in ten has passed,
    ten failures say as much as one does elsewhere: it takes ten times as many in a row to open the
    circuit, a tenth of the pause before a trial call, and ten failed trials to double it, until twenty times
    the usual number have failed without an answer: then it is down. It takes five times as many failures
    while the last answer is less than five times ``pause`` ago. A lower ``ratio`` leaves such a
    server alone, for the sake of ``fallbacks`` or of what it charges.

    Raises:
        LMConfigurationError: a number is out of range.

    >>> BreakerPolicy(failures=3).pause
    1.0
    """

    failures: int = 10
    ratio: float = 0.98
    least: int = 100
    window: float = 30.0
    pause: float = 1.0
    longest: float = 30.0
    successes: int = 1

    def __post_init__(self) -> None:
        whole = min(self.failures, self.least, self.successes) >= 1 and 0.0 < self.ratio <= 1.0
        if not whole or not self.window > 0.0 or not 0.0 < self.pause <= self.longest:
            raise LMConfigurationError(
                f"{self}: failures, least and successes are at least 1, ratio is above 0 and at most 1, "
                "window and pause are above 0, and longest is not below pause"
            )


def speaks_of_the_server(error: LMError) -> bool:
    """True for a failure that says that the server is unwell: 5xx, no or half an answer, silence.

    Whatever it answers below 500 shows that it is there: a bad request, a bad key, a full quota.
    """
    if not isinstance(error, (LMServerError, LMTimeoutError, LMTransportError)):
        return False
    return error.status is None or not 400 <= error.status < 500


class Circuit:
    """One endpoint's state; used on one event loop only.

    A call asks :meth:`admit` first, and says afterwards how it went, with the number it was given.
    What becomes of calls that were admitted before the state last changed is of no account.

    >>> circuit = Circuit(BreakerPolicy(failures=2), random.Random(0))
    >>> for _ in range(2):
    ...     circuit.failed(circuit.admit(0.0), 0.0, "503")
    >>> circuit.state, circuit.admit(0.1), circuit.reason
    ('open', None, '503')
    """

    __slots__ = (
        *("policy", "reason", "state", "_rng", "_era", "_until", "_openings", "_closed_at"),
        *("_passed", "_run", "_good", "_bad", "_good_before", "_bad_before", "_turn"),
        *("_answered", "_since", "_usual", "__weakref__"),
    )

    def __init__(self, policy: BreakerPolicy, rng: random.Random) -> None:
        self.policy = policy
        self.state: State = "closed"
        self.reason = ""  # what the last failure said
        self._rng = rng
        self._era = 0
        self._until = 0.0
        self._openings = 0.0  # since it was last closed for a while
        self._answered = -math.inf  # when the last answer came, in whichever state, and the failures since
        self._since = 0
        self._usual = 0.0  # failures from one answer to the next, in the mean of late
        self._closed_at = 0.0
        self._passed = 0
        self._turn = 0.0
        self._reset()

    def _reset(self) -> None:
        self._run = self._good = self._bad = self._good_before = self._bad_before = 0

    # ------------------------------------------------------------------------------------- asking

    def admit(self, now: float) -> int | None:
        """A number, where a call may be made; None where it must not.

        In an open circuit whose pause is over, the first who asks makes the trial call, and the
        circuit is half open until it is told of it.
        """
        if self.state == "closed":
            return self._era
        if self.state == "half open" or now < self._until:
            return None
        self.state = "half open"
        self._era += 1
        return self._era

    def ready(self, now: float) -> bool:
        """True where :meth:`admit` would let a call pass."""
        return self.state == "closed" or (self.state == "open" and now >= self._until)

    def wait(self, now: float) -> float:
        """Seconds until it is worth asking again."""
        if self.state == "half open":
            return self.policy.pause / self._unless_down  # nobody knows how long the trial call takes
        return max(0.0, self._until - now) if self.state == "open" else 0.0

    # ------------------------------------------------------------------------------------ telling

    def succeeded(self, admission: int, now: float) -> None:
        """The call was answered, be it by a refusal."""
        if admission != self._era:
            self._learn(now)
            if self.state == "open":  # it is not down
                self._until = min(self._until, now)
            return
        if self.state == "closed":
            self._roll(now)
            self._learn(now)
            self._run = 0
            self._good += 1
            return
        self._since = 0  # an outage's failures say nothing of how many fail otherwise
        self._answered = now
        self._passed += 1
        self._leave("open", now)  # for no time: the next who asks makes the next trial call
        if self._passed >= self.policy.successes:
            self._leave("closed", now)
            self._closed_at = now
            self._reset()

    def failed(self, admission: int, now: float, reason: str, retry_after: float | None = None) -> None:
        """The call failed in a way that speaks of the server."""
        self._since += 1
        if admission != self._era:
            return
        self.reason = reason
        if self.state != "closed":
            self._open(now, retry_after)
            return
        self._roll(now)
        self._run += 1
        self._bad += 1
        bad = self._bad + self._bad_before
        calls = bad + self._good + self._good_before
        policy = self.policy
        fresh = _FRESH if now - self._answered < _FRESH * policy.pause else 1.0
        in_a_row = self._run >= policy.failures * self._weight * fresh
        if in_a_row or (calls >= policy.least and bad >= policy.ratio * calls):
            if now - self._closed_at > policy.window or self._good + self._good_before >= policy.failures:
                self._openings = 0.0  # it was well for a while: an outage of its own
            self._open(now, retry_after)

    def released(self, admission: int, now: float) -> None:
        """The call was given up, and says nothing; a trial call is somebody else's to make."""
        if admission == self._era and self.state == "half open":
            self._leave("open", now)

    def postponed(self, admission: int, now: float) -> None:
        """The trial call was not made because a health check had failed: check again in a while."""
        if admission == self._era and self.state == "half open":
            self._leave("open", now + self._jitter(self.policy.pause))

    # ---------------------------------------------------------------------------------- inside

    @property
    def _weight(self) -> float:
        """How many failures say as much as one does at a server that answers."""
        return min(max(1.0, self._usual), _MOST)

    @property
    def _unless_down(self) -> float:
        """The same, but for one that has failed for longer than it ever would."""
        weight = self._weight
        return weight if self._since <= _UNUSUAL * weight else 1.0

    def _learn(self, now: float) -> None:
        self._answered = now
        if self._since != self._usual:
            self._usual += (self._since - self._usual) * _LEARNT
            self._since = 0

    def _open(self, now: float, retry_after: float | None) -> None:
        weight = self._unless_down
        pause = self.policy.pause / weight * 2.0 ** min(self._openings, 32.0)
        self._openings += 1.0 / weight
        pause = self._jitter(min(pause, self.policy.longest))
        self._passed = 0
        self._leave("open", now + max(pause, retry_after or 0.0))

    def _jitter(self, pause: float) -> float:
        return pause * self._rng.uniform(0.5, 1.0)

    def _leave(self, state: Literal["closed", "open"], until: float) -> None:
        self.state = state
        self._era += 1
        self._until = until

    def _roll(self, now: float) -> None:
        """Forget what is older than the window, half a window at a time."""
        if now < self._turn:
            return
        half = self.policy.window / 2
        recent = now < self._turn + half
        self._good_before, self._bad_before = (self._good, self._bad) if recent else (0, 0)
        self._good = self._bad = 0
        self._turn = now + half


_Place = tuple[str, str, BreakerPolicy, Clock]
# Weak, because a circuit matters only to those who ask through it.
_circuits: Final[WeakValueDictionary[_Place, Circuit]] = WeakValueDictionary()


def circuit_for(url: str, model: str, policy: BreakerPolicy, *, clock: Clock, rng: random.Random) -> Circuit:
    """The circuit of a model at an address: one in a process, whoever asks and with whichever key."""
    place = (url, model, policy, clock)
    found = _circuits.get(place)
    if found is None:
        found = _circuits[place] = Circuit(policy, rng)
    return found
