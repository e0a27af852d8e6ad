"""What a run did, as data: for the summary, for ``--json``, and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Report"]

Status = Literal["finished", "stopped"]


@dataclass(frozen=True)
class Report:
    """Totals of a run, over all its restarts.

    ``rows_in`` were read; each is in ``rows_out``, ``dead_letters`` or ``dropped`` (filtered out),
    unless a ``flat_map`` or ``batch`` changed their number. ``calls`` were paid for; ``hits`` were
    served by the journal, counted in this process only, as are ``seconds`` and ``rows_per_second``.
    ``cost`` is in US dollars, None where a price is unknown.
    """

    flow: str
    status: Status
    run_id: str = ""
    rows_in: int = 0
    rows_out: int = 0
    dead_letters: int = 0
    dropped: int = 0
    calls: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0
    rows_per_second: float = 0.0
    measures: Mapping[str, float] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    resumed: bool = False
    state: str = ""

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "flow": self.flow,
            "status": self.status,
            "run_id": self.run_id,
            "resumed": self.resumed,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "dead_letters": self.dead_letters,
            "dropped": self.dropped,
            "calls": self.calls,
            "hits": self.hits,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": self.cost,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
            "measures": {name: round(value, 6) for name, value in self.measures.items()},
            "outputs": list(self.outputs),
            "state": self.state,
        }
