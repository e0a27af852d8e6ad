"""Servers with limits, and rows that go through a controller to them: all of it in virtual time."""

from __future__ import annotations

import bisect
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from dspy_stream.errors import LMRateLimitError
from dspy_stream.lm.controller import Controller
from dspy_stream.lm.retry import pause

GRAIN = 0.001  # what a timer rounds up to
JITTER = 0.0005  # of the way to the server


class Server(Protocol):
    """Says at ``t`` whether it takes one more call, and if not, when it will."""

    rate: float

    def admit(self, t: float) -> bool: ...

    def wait(self, t: float) -> float: ...


class Unlimited:
    rate = math.inf

    def admit(self, t: float) -> bool:
        return True

    def wait(self, t: float) -> float:
        return 0.0


class Bucket:
    """A token bucket."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.level, self.at = burst, 0.0

    def admit(self, t: float) -> bool:
        self.level = min(self.burst, self.level + (t - self.at) * self.rate)
        self.at = t
        if self.level < 1.0 - 1e-9:
            return False
        self.level -= 1.0
        return True

    def wait(self, t: float) -> float:
        return (1.0 - self.level) / self.rate


class FixedWindow:
    """So many a window; the first one began ``phase`` seconds ago."""

    def __init__(self, rate: float, width: float = 1.0, phase: float = 0.3) -> None:
        self.rate, self.width, self.phase = rate, width, phase
        self.window, self.count = -1, 0

    def admit(self, t: float) -> bool:
        window = int((t + self.phase) // self.width)
        if window != self.window:
            self.window, self.count = window, 0
        if self.count >= round(self.rate * self.width):
            return False
        self.count += 1
        return True

    def wait(self, t: float) -> float:
        return self.width - (t + self.phase) % self.width


class SlidingWindow:
    """So many in any second."""

    def __init__(self, rate: float, width: float = 1.0) -> None:
        self.rate, self.width = rate, width
        self.taken: deque[float] = deque()

    def admit(self, t: float) -> bool:
        while self.taken and self.taken[0] <= t - self.width:
            self.taken.popleft()
        if len(self.taken) >= round(self.rate * self.width):
            return False
        self.taken.append(t)
        return True

    def wait(self, t: float) -> float:
        return self.taken[0] + self.width - t


class Flaky:
    """Refuses a share of the calls by chance, whatever the rate, and asks to wait ``pause`` seconds then."""

    def __init__(self, inner: Server, share: float, seed: int, pause: float = 0.0) -> None:
        self.inner, self.share, self.pause = inner, share, pause
        self.rng = random.Random(seed)
        self.by_chance = False

    @property
    def rate(self) -> float:
        return self.inner.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self.inner.rate = rate

    def admit(self, t: float) -> bool:
        self.by_chance = self.rng.random() < self.share
        return not self.by_chance and self.inner.admit(t)

    def wait(self, t: float) -> float:
        return self.pause if self.by_chance else self.inner.wait(t)


class Storm:
    """Refuses nine of ten until it is over, whatever the rate."""

    rate = math.inf

    def __init__(self, seconds: float, seed: int = 1) -> None:
        self.seconds, self.rng = seconds, random.Random(seed)

    def admit(self, t: float) -> bool:
        return t > self.seconds or self.rng.random() > 0.9

    def wait(self, t: float) -> float:
        return 1.0


def latencies(name: float | str, seed: int = 3) -> Callable[[], float]:
    """Constant, or drawn from a log-normal distribution with mean 0.2 s and 99th percentile 2 s."""
    if not isinstance(name, str):
        return lambda: float(name)
    rng = random.Random(seed)
    sigma = 2.3263 - math.sqrt(2.3263**2 - 2 * math.log(10))
    mu = math.log(0.2) - sigma**2 / 2
    return lambda: min(20.0, rng.lognormvariate(mu, sigma))


@dataclass
class Outcome:
    """What happened: when which calls were taken and refused, attempts by row, and the most in flight."""

    control: Controller
    taken: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    attempts: dict[int, int] = field(default_factory=dict)
    peak: int = 0
    full_at: float = math.inf
    done: int = 0
    ended: float = 0.0

    def rate(self, begin: float, end: float) -> float:
        """Taken a second in a stretch of time."""
        return sum(begin <= t < end for t in self.taken) / (end - begin)

    @property
    def wasted(self) -> float:
        """The share of all calls that were refused."""
        return len(self.refused) / max(1, len(self.refused) + len(self.taken))


class Simulation:
    """``capacity`` rows at a time, for ``seconds`` or until ``rows`` are done; refused ones come again.

    ``refusal`` is how long a refusal takes, None for as long as an answer. ``hint`` is what it says
    of the time to wait: nothing, exactly how long, or in whole seconds. ``changes`` are rates to come.
    In ``stalls``, from one moment to another, our side does nothing.
    """

    def __init__(
        self,
        server: Server,
        latency: Callable[[], float],
        *,
        refusal: float | None = 0.002,
        hint: str = "",
        capacity: int = 256,
        rows: float = math.inf,
        changes: Iterable[tuple[float, float]] = (),
        stalls: Iterable[tuple[float, float]] = (),
        seed: int = 1,
    ) -> None:
        self.stalls = sorted(stalls)
        self.server, self.latency, self.refusal, self.hint = server, latency, refusal, hint
        self.capacity, self.rows = capacity, rows
        self.control = Controller()
        self.out = Outcome(self.control)
        self.rng = random.Random(seed)
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.now = 0.0
        self.again: deque[int] = deque()
        self.row = 0
        self.idle = capacity
        self.wake = math.inf
        for at, rate in changes:
            self.at(at, self.change, rate)

    def run(self, seconds: float) -> Outcome:
        self.send()
        while self.events and self.events[0][0] <= seconds and self.out.done < self.rows:
            self.now, _, what, details = heapq.heappop(self.events)
            what(*details)
            if self.awake(self.now) == self.now:
                self.send()
        self.out.ended = self.now
        return self.out

    def at(self, time: float, what: Callable[..., None], *details: Any) -> None:
        self.count += 1
        ours = what not in (self.arrived, self.change)
        heapq.heappush(self.events, (self.awake(time) if ours else time, self.count, what, details))

    def awake(self, time: float) -> float:
        """When our side gets to what happens at ``time``."""
        last = bisect.bisect_right(self.stalls, (time, math.inf)) - 1
        return max(time, self.stalls[last][1]) if last >= 0 else time

    @property
    def pressed(self) -> bool:
        return bool(self.again) or (self.idle > 0 and self.row < self.rows)

    def send(self) -> None:
        while self.pressed:
            number = self.control.take(self.now)
            if not number:
                at = (
                    self.now + math.ceil(self.control.delay(self.now) / GRAIN) * GRAIN
                    if self.soon
                    else math.inf
                )
                if at < self.wake - 1e-9:
                    self.wake = at
                    self.at(at, self.woken, at)
                return
            if self.again:
                row = self.again.popleft()
            else:
                self.row += 1
                self.idle -= 1
                row = self.row
            in_flight = self.control.window.in_flight
            self.out.peak = max(self.out.peak, in_flight)
            if in_flight >= self.capacity:
                self.out.full_at = min(self.out.full_at, self.now)
            self.at(self.now + JITTER * self.rng.random(), self.arrived, number, self.now, row)

    @property
    def soon(self) -> bool:
        return self.control.delay(self.now) < math.inf

    def woken(self, at: float) -> None:
        if at == self.wake:
            self.wake = math.inf

    def change(self, rate: float) -> None:
        self.server.rate = rate

    def arrived(self, number: int, sent: float, row: int) -> None:
        if self.server.admit(self.now):
            self.out.taken.append(self.now)
            self.at(self.now + self.latency(), self.answered, number, sent)
            return
        self.out.refused.append(self.now)
        wait = self.server.wait(self.now) if self.hint else 0.0
        if self.hint == "seconds":
            wait = float(max(1, math.ceil(wait)))
        took = self.latency() if self.refusal is None else self.refusal
        self.at(self.now + took, self.denied, number, sent, row, wait)

    def answered(self, number: int, sent: float) -> None:
        self.idle += 1
        self.out.done += 1
        self.control.succeeded(self.now, number, sent, pressed=self.pressed)

    def denied(self, number: int, sent: float, row: int, wait: float) -> None:
        self.control.failed(self.now, number, sent, LMRateLimitError("slow down", retry_after=wait))
        failures = self.out.attempts[row] = self.out.attempts.get(row, 0) + 1
        self.at(self.now + pause(failures, wait, self.rng), self.again.append, row)
