"""Providers that count tokens and say in their headers what is left: in virtual time, as in limit_servers."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dspy_stream.errors import LMRateLimitError
from dspy_stream.lm.controller import Controller
from dspy_stream.lm.rates import quota
from dspy_stream.lm.retry import pause
from dspy_stream.types import Head, Message, Request, Usage

Size = tuple[int, int]
"""Characters of a prompt, tokens of its answer."""

EPOCH = 1_700_000_000.0
_STAMP = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class Allowed:
    """So many a minute, that come back evenly or, with ``at_once``, at the end of the minute."""

    limit: float
    at_once: bool = False
    level: float = 0.0
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.limit

    def roll(self, t: float) -> None:
        if not self.at_once:
            self.level = min(self.limit, self.level + (t - self.at) * self.limit / 60.0)
        elif t // 60.0 > self.at // 60.0:
            self.level = self.limit
        self.at = t

    def reset(self, t: float) -> float:
        return 60.0 - t % 60.0 if self.at_once else (self.limit - self.level) / self.limit * 60.0


class OpenAI:
    """A quarter of the characters, and ``reserved`` tokens whatever the answer takes, or what it takes.

    With ``back`` it gives back with the answer what of them that did not take, in the same minute where all
    comes ``at_once``. Its headers say what is left when a call comes; ``late``: when it is answered.
    """

    answers = "tokens"

    def __init__(
        self,
        limit: float,
        *,
        reserved: int | None = None,
        at_once: bool = False,
        back: bool = False,
        late: bool = False,
    ) -> None:
        self.reserved, self.back, self.late = reserved, back, late
        self.kinds = {"requests": Allowed(100_000.0, at_once), "tokens": Allowed(limit, at_once)}

    def takes(self, size: Size) -> dict[str, float]:
        characters, answer = size
        return {"requests": 1.0, "tokens": characters / 4 + (self.reserved or answer)}

    def admit(self, t: float, size: Size) -> bool:
        takes = self.takes(size)
        for kind in self.kinds.values():
            kind.roll(t)
        if any(kind.level < takes[name] for name, kind in self.kinds.items()):
            return False
        for name, kind in self.kinds.items():
            kind.level -= takes[name]
        return True

    def settle(self, t: float, size: Size, came: float) -> None:
        """The call that came then is answered."""
        kind = self.kinds[self.answers]
        kind.roll(t)
        if self.back and self.reserved is not None and not (kind.at_once and came // 60.0 < t // 60.0):
            kind.level = min(kind.limit, kind.level + max(0, self.reserved - size[1]))

    def headers(self, t: float) -> dict[str, str]:
        said = {}
        for name, kind in self.kinds.items():
            said[f"x-ratelimit-limit-{name}"] = f"{kind.limit:.0f}"
            said[f"x-ratelimit-remaining-{name}"] = f"{math.floor(kind.level)}"
            said[f"x-ratelimit-reset-{name}"] = duration(kind.reset(t))
        return said


class Anthropic(OpenAI):
    """Input and output apart; what is left in thousands, and when it is full in whole seconds."""

    answers = "output-tokens"

    def __init__(
        self, inputs: float, outputs: float, *, reserved: int | None = None, late: bool = False
    ) -> None:
        super().__init__(1.0, reserved=reserved, back=True, late=late)
        self.kinds = {
            "requests": Allowed(4000.0),
            "input-tokens": Allowed(inputs),
            "output-tokens": Allowed(outputs),
        }

    def takes(self, size: Size) -> dict[str, float]:
        return {
            "requests": 1.0,
            "input-tokens": size[0] / 4,
            "output-tokens": float(self.reserved or size[1]),
        }

    def headers(self, t: float) -> dict[str, str]:
        said = {}
        for name, kind in self.kinds.items():
            left = kind.level if name == "requests" else round(kind.level / 1000.0) * 1000.0
            full = datetime.fromtimestamp(math.ceil(EPOCH + t + kind.reset(t)), timezone.utc)
            said[f"anthropic-ratelimit-{name}-limit"] = f"{kind.limit:.0f}"
            said[f"anthropic-ratelimit-{name}-remaining"] = f"{math.floor(left)}"
            said[f"anthropic-ratelimit-{name}-reset"] = full.strftime(_STAMP)
        return said


def duration(seconds: float) -> str:
    """As Go writes it."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60.0)
    return f"{minutes:.0f}m{rest:.3f}s" if minutes else f"{rest:.3f}s"


def most(
    server: OpenAI,
    size: Callable[[random.Random], Size],
    latency: Callable[[random.Random], float],
    seconds: float,
) -> list[float]:
    """When calls would go, 128 at a time, if one could look inside the server."""
    rng, t = random.Random(1), 0.0
    flying: list[tuple[float, int, Size, float]] = []
    taken: list[float] = []
    row = size(rng)
    while t < seconds:
        while flying and flying[0][0] <= t:
            at, _, done, came = heapq.heappop(flying)
            server.settle(at, done, came)
        while len(flying) < 128 and server.admit(t, row):
            taken.append(t)
            heapq.heappush(flying, (t + latency(rng), len(taken), row, t))
            row = size(rng)
        t += 0.01
    return taken


class Traffic:
    """128 rows at a time; those that are refused come again. ``taken`` says when each went, and its size."""

    def __init__(
        self, server: OpenAI, size: Callable[[random.Random], Size], latency: Callable[[random.Random], float]
    ) -> None:
        self.server, self.size, self.latency = server, size, latency
        self.control = Controller()
        self.rng = random.Random(1)
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.now = 0.0
        self.waiting: deque[tuple[Request, Size, int]] = deque()
        self.wake = math.inf
        self.taken: list[tuple[float, Size]] = []
        self.refused = 0
        for _ in range(128):
            self.enter()

    def run(self, seconds: float) -> None:
        self.send()
        while self.events[0][0] <= seconds:
            self.now, _, what, details = heapq.heappop(self.events)
            what(*details)
            self.send()

    def at(self, time: float, what: Callable[..., None], *details: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, what, details))

    def enter(self) -> None:
        size = self.size(self.rng)
        self.waiting.append((Request(Head("m"), (Message("user", "x" * size[0]),)), size, 0))

    def send(self) -> None:
        while self.waiting:
            tokens = self.control.guess(self.waiting[0][0])
            number = self.control.take(self.now, tokens)
            if not number:
                delay = max(self.control.delay(self.now, tokens), 0.001)
                if self.now + delay < self.wake:
                    self.wake = self.now + delay
                    self.at(self.wake, self.woken, self.wake)
                return
            row = self.waiting.popleft()
            self.at(self.now + 0.001 * self.rng.random(), self.arrived, number, self.now, tokens, row)

    def woken(self, at: float) -> None:
        if at == self.wake:
            self.wake = math.inf

    def arrived(self, number: int, sent: float, tokens: float, row: tuple[Request, Size, int]) -> None:
        passed = self.server.admit(self.now, row[1])
        headers = self.server.headers(self.now)
        if passed:
            self.taken.append((self.now, row[1]))
            came = self.now
            self.at(came + self.latency(self.rng), self.answered, number, sent, tokens, row, headers, came)
        else:
            self.at(self.now + 0.02, self.denied, number, sent, row, headers)

    def hear(self, headers: dict[str, str], number: int) -> None:
        said = quota(headers, EPOCH + self.now)
        assert said is not None
        self.control.heard(said, self.now, number)

    def answered(
        self,
        number: int,
        sent: float,
        tokens: float,
        row: tuple[Request, Size, int],
        headers: dict[str, str],
        came: float,
    ) -> None:
        self.server.settle(self.now, row[1], came)
        self.hear(self.server.headers(self.now) if self.server.late else headers, number)
        self.control.succeeded(self.now, number, sent, pressed=bool(self.waiting))
        self.control.learn(row[0], tokens, Usage(row[1][0] // 4, row[1][1]))
        self.enter()

    def denied(
        self, number: int, sent: float, row: tuple[Request, Size, int], headers: dict[str, str]
    ) -> None:
        self.refused += 1
        self.hear(headers, number)
        self.control.failed(self.now, number, sent, LMRateLimitError("no"))
        request, size, failures = row
        again = (request, size, failures + 1)
        self.at(self.now + pause(failures + 1, None, self.rng), self.waiting.appendleft, again)
