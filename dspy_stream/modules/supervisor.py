"""Which parts are started again when one has failed, and when it is no use any more: pure decisions.

The terms are those of OTP's supervisors (Erlang/OTP, *Supervisor Behaviour*): a strategy, and an
intensity of at most so many restarts within so many seconds. New here is the pause before each
restart but the first, which gives a server the time to come up again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Final, Literal, NamedTuple

from dspy_stream.errors import EXIT_UNAVAILABLE, ConfigurationError, DSPyStreamError, Scope

__all__ = ["STRATEGIES", "Intensity", "Restart", "RestartsExceeded", "Strategy", "Supervisor", "is_seconds"]

Strategy = Literal["one_for_one", "rest_for_one", "one_for_all"]
STRATEGIES: Final = ("one_for_one", "rest_for_one", "one_for_all")

_PAUSE: Final = 0.1  # seconds before the second restart within the window; doubled with each further one
_LONGEST: Final = 5.0


class RestartsExceeded(DSPyStreamError):
    """A part that holds a resource failed more often than it may be started again; stops the flow.

    The rows keep their place: run again to go on, once the resource is back.
    """

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_UNAVAILABLE
    code = "restarts_exceeded"


@dataclass(frozen=True)
class Intensity:
    """How many ``restarts`` within how many ``seconds`` are borne, of all parts of a program together.

    Restarts between which no row came to an end count together however long they take: an ``open`` that
    fails after a minute, each time, is given up as one that fails at once.
    """

    restarts: int = 3
    seconds: float = 5.0

    def __post_init__(self) -> None:
        whole = isinstance(self.restarts, Integral) and not isinstance(self.restarts, bool)
        if not whole or self.restarts < 0 or not is_seconds(self.seconds):
            raise ConfigurationError(
                f"{self}: restarts is a whole number, at least 0, and seconds a number, more than 0"
            )


def is_seconds(value: Any) -> bool:
    """True for a number of seconds that may pass; NaN, which compares to nothing, is none.

    >>> [is_seconds(value) for value in (0.5, float("inf"), 0, float("nan"), "5")]
    [True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) > 0


class Restart(NamedTuple):
    """What is to be done: close ``parts`` from the last to the first, wait, open them from the first on."""

    parts: tuple[str, ...]
    delay: float


class Supervisor:
    """Decides for the parts of one program, which are given in their order.

    >>> supervisor = Supervisor(["store", "search", "answer"], "rest_for_one")
    >>> supervisor.failed("search", "the connection is gone", now=0.0)
    Restart(parts=('search', 'answer'), delay=0.0)
    """

    def __init__(
        self, parts: Sequence[str], strategy: Strategy = "one_for_one", intensity: Intensity | None = None
    ) -> None:
        self._parts = tuple(parts)
        self._strategy = strategy
        self._intensity = intensity if intensity is not None else Intensity()
        self._restarts: deque[float] = deque()

    def failed(self, part: str, reason: str, *, now: float, working: bool = True) -> Restart:
        """Hear that a part has failed at ``now`` (seconds of a clock that never goes back).

        Not ``working``: nothing was done since the failure before, and so no time forgets that one.

        Raises:
            RestartsExceeded: it was one failure too many.
        """
        allowed = self._intensity
        since = now - allowed.seconds
        while working and self._restarts and self._restarts[0] <= since:
            self._restarts.popleft()
        if len(self._restarts) >= allowed.restarts:
            late = bool(self._restarts) and self._restarts[0] <= since
            span = f"within {allowed.seconds:g} s" if not late else "and no row came to its end meanwhile"
            raise RestartsExceeded(
                f"{part} failed ({reason}), and it was started again {len(self._restarts)} times {span}: "
                "mend the cause and run again to go on, or allow more with "
                "intensity=Intensity(restarts=..., seconds=...)"
            )
        earlier = len(self._restarts)
        self._restarts.append(now)
        delay = min(_LONGEST, _PAUSE * 2 ** min(earlier - 1, 10)) if earlier else 0.0
        return Restart(self._concerned(part), delay)

    def _concerned(self, part: str) -> tuple[str, ...]:
        if self._strategy == "one_for_one":
            return (part,)
        if self._strategy == "one_for_all":
            return self._parts
        return self._parts[self._parts.index(part) :]
