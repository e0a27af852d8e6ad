"""How often what the code in worker processes holds may be started again: counted over all workers. Pure."""

from __future__ import annotations

from dspy_stream.modules.supervisor import Supervisor

__all__ = ["Incidents"]


class Incidents:
    """Failures of resources that modules hold within a part, each worker one of its own.

    Workers that find out one after the other that the same thing is gone have met one incident: a failure
    counts where its worker has got its resource after the incident before.

    >>> incidents = Incidents()
    >>> incidents.failed("search", "gone", since=0.0, now=1.0)
    True
    >>> incidents.failed("search", "gone", since=0.0, now=1.1)  # in another worker, open since the beginning
    False
    >>> incidents.failed("search", "gone", since=1.1, now=2.0)
    True
    """

    def __init__(self) -> None:
        self._supervisors: dict[str, Supervisor] = {}
        self._latest: dict[str, float] = {}

    def failed(self, part: str, reason: str, *, since: float, now: float) -> bool:
        """Hear that ``part``, open in its worker ``since`` then, has failed ``now``; True where it counts.

        Raises:
            RestartsExceeded: it was one failure too many for all workers together.
        """
        if since < self._latest.get(part, since):
            return False
        self._supervisors.setdefault(part, Supervisor((part,))).failed(part, reason, now=now)
        self._latest[part] = now
        return True
