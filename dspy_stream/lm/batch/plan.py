"""What the batch lane decides, without I/O: when a batch is full, when to ask how it is, what an
error means for a request, and which of a provider's batches is ours. Time and chance are arguments.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dspy_stream.errors import FlowError, LMBatchError, LMBatchHalted, LMError
from dspy_stream.lm.batch.codec import Limits, State

__all__ = ["BatchOptions", "Collector", "Outage", "adopt", "backoff", "candidates", "interval", "judge"]

_GROWTH: Final = 1.5
_JITTER: Final = (0.9, 1.1)
# The longest pause between two attempts at a call to the batch API that failed.
_LONGEST: Final = 60.0
# How far two clocks may differ: a batch made a little before we meant to is still looked at.
_SKEW: Final = 300.0


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """When the batch lane sends, asks and gives up.

    Args:
        linger: a batch is sent when no request has come for so many seconds,
        age: or when its first one has waited so long,
        max_requests: or when it has so many; at most, and by default, what the provider takes;
        max_bytes: or so many bytes, likewise. They are held in memory while they are uploaded.
        poll: seconds between two looks at a batch: at first, and in the end.
        attempts: batches a request may be in before it becomes a dead letter.
        doubt: seconds after which a batch that a call of unknown fate should have created, and that the
            provider does not list, was not created.

    Raises:
        FlowError: a number is out of range.
    """

    linger: float = 10.0
    age: float = 600.0
    max_requests: int | None = None
    max_bytes: int | None = None
    poll: tuple[float, float] = (5.0, 300.0)
    attempts: int = 3
    doubt: float = 60.0

    def __post_init__(self) -> None:
        counts = (self.max_requests, self.max_bytes, self.attempts)
        whole = all(count is None or count >= 1 for count in counts)
        if not whole or min(self.linger, self.age, self.doubt) < 0 or not 0 < self.poll[0] <= self.poll[1]:
            raise FlowError(f"{self}: counts are at least 1, seconds are not negative, poll is (short, long)")


class Collector:
    """Requests that wait to be sent, in the order they came; decides when they are a batch.

    >>> collector = Collector(BatchOptions(linger=10), Limits(2, 1000))
    >>> collector.add(b"a", 50, now=0.0); collector.take(5.0), collector.wake()
    ([], 10.0)
    >>> collector.add(b"b", 50, now=6.0); collector.add(b"c", 50, now=6.0); collector.take(6.0)
    [b'a', b'b']
    >>> collector.wake(), collector.take(16.0), collector.wake()
    (16.0, [b'c'], None)
    """

    def __init__(self, options: BatchOptions, limits: Limits) -> None:
        self._options = options
        self._most = min(options.max_requests or limits.requests, limits.requests)
        self._bytes = min(options.max_bytes or limits.bytes, limits.bytes)
        self._waiting: dict[bytes, tuple[int, float]] = {}
        self._size = 0
        self._last = 0.0
        self._held = float("-inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: bytes) -> bool:
        return key in self._waiting

    def add(self, key: bytes, size: int, now: float) -> None:
        """A request of ``size`` bytes has come."""
        self.remove(key)
        self._waiting[key] = (size, now)
        self._size += size
        self._last = now

    def remove(self, key: bytes) -> None:
        """Nobody wants it any more."""
        size, _ = self._waiting.pop(key, (0, 0.0))
        self._size -= size

    def take(self, now: float) -> list[bytes]:
        """The requests of the next batch, where one is due; else none."""
        if not self._due(now):
            return []
        taken: list[bytes] = []
        size = 0
        for key, (each, _) in self._waiting.items():
            if taken and (len(taken) == self._most or size + each > self._bytes):
                break
            taken.append(key)
            size += each
        for key in taken:
            self.remove(key)
        return taken

    def wake(self) -> float | None:
        """When :meth:`take` has to be asked again, on the same clock; None while nothing waits."""
        if not self._waiting:
            return None
        return max(self._held, self._ripe())

    def _due(self, now: float) -> bool:
        return bool(self._waiting) and now >= max(self._held, self._ripe())

    def _ripe(self) -> float:
        if len(self._waiting) >= self._most or self._size >= self._bytes:
            return float("-inf")
        first = next(iter(self._waiting.values()))[1]
        return min(self._last + self._options.linger, first + self._options.age)

    def hold(self, until: float) -> None:
        """Send nothing before ``until``: the provider has enough for now."""
        self._held = max(self._held, until)

    def release(self) -> None:
        """There may be room again."""
        self._held = float("-inf")

    def halve(self, count: int) -> bool:
        """A batch of ``count`` was too large: make smaller ones. False where one request is."""
        self._most = max(1, min(self._most, count // 2))
        return count > 1


class Outage:
    """How long a provider may fail to answer before the flow ends.

    The time counts from the first failure after a success, so that a long pause between two looks
    at a batch is none.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._since: float | None = None
        self.failures = 0

    def passed(self) -> None:
        """The provider has answered."""
        self._since, self.failures = None, 0

    def failed(self, error: LMError, now: float) -> None:
        """It has not.

        Raises:
            LMBatchHalted: it has not for too long.
        """
        self.failures += 1
        if self._since is None:
            self._since = now
        elif now - self._since > self._longest:
            raise LMBatchHalted(
                f"the batch API has not answered for {now - self._since:.0f} s, or refused to: {error}; what "
                "is at the provider goes on there, and running the flow again takes it up",
                model=error.model,
                provider=error.provider,
                status=error.status,
            )


def interval(looks: int, options: BatchOptions, rng: random.Random) -> float:
    """Seconds until the next look at a batch that has been looked at so often: growing, with jitter."""
    short, long = options.poll
    return min(long, short * _GROWTH ** min(looks, 60)) * rng.uniform(*_JITTER)


def backoff(failures: int, retry_after: float | None, options: BatchOptions, rng: random.Random) -> float:
    """Seconds to wait after so many failures in a row; not less than the provider asked for."""
    grown = min(_LONGEST, options.poll[0] * 2.0 ** min(failures - 1, 30))
    return max(grown * rng.uniform(0.5, 1.0), retry_after or 0.0)


def judge(error: LMError, attempts: int, options: BatchOptions) -> LMError | None:
    """What to tell the row whose request failed in its ``attempts``-th batch; None: try a later one."""
    if not error.retryable:
        return error
    if attempts < options.attempts:
        return None
    where = "its only batch" if attempts == 1 else f"{attempts} batches, in the last one"
    made = LMBatchError(
        f"failed in {where} with: {error}",
        status=error.status,
        provider_code=error.provider_code,
        request_id=error.request_id,
    )
    made.attempts = attempts
    return made


def adopt(record_id: str, listed: Iterable[State]) -> State | None:
    """The listed batch that carries our name."""
    return next((state for state in listed if state.record_id == record_id), None)


def candidates(
    listed: Sequence[State], *, requests: int, tried: float, doubt: float, known: frozenset[str]
) -> list[State]:
    """Batches without a name that may be one of ``requests`` requests created about ``tried``.

    Those that have ended come first: what is in them can be seen at once.
    """
    fitting = [
        state
        for state in listed
        if state.batch_id not in known
        and state.total == requests
        and tried - _SKEW <= state.created <= tried + doubt + _SKEW
    ]
    return sorted(fitting, key=lambda state: state.phase == "running")


def too_old(state: State, tried: float) -> bool:
    """Whether a listed batch, and so all behind it, was created before ours can have been."""
    return state.created < tried - _SKEW
