"""What a run did, as data: for the summary, for ``--json``, and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dspy_stream.state.spend import OTHERS, Account, Part, Spend
from dspy_stream.stream.meter import Meter

__all__ = ["PartReport", "Report", "StepUsage"]

Status = Literal["finished", "stopped"]
Reason = Literal["", "budget"]


@dataclass(frozen=True)
class StepUsage:
    """What one step used of one model, over all restarts of the run.

    ``calls`` were paid for, ``hits`` were answered by the journal. ``cost`` is in US dollars, that of
    the ``priced`` calls; None where the price of none is known. ``lost`` attempts were sent and got
    no answer: what they used is not known.
    """

    step: str
    model: str
    calls: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None
    priced: int = 0
    lost: int = 0

    @staticmethod
    def of(part: Part, spend: Spend) -> StepUsage:
        """The numbers of one part of an account."""
        return StepUsage(
            step=part[0],
            model=part[1],
            calls=spend.calls,
            hits=spend.hits,
            prompt_tokens=spend.prompt_tokens,
            completion_tokens=spend.completion_tokens,
            cached_tokens=spend.cached_tokens,
            reasoning_tokens=spend.reasoning_tokens,
            cost=known_cost(spend),
            priced=spend.priced,
            lost=spend.lost,
        )


@dataclass(frozen=True)
class PartReport:
    """What one step made of the rows that it was given, in this process.

    ``rows_in`` were begun. Of those that are through, ``rows_out`` went on (``fallbacks`` of them may
    be the answers of a fallback, ``defaulted`` ones have default outputs), ``dead_letters`` and
    ``skipped`` did not. ``retries`` are further attempts. Times are in seconds, from a row's beginning to
    its end: ``seconds`` of all rows together, ``p50`` and ``p95`` to about a tenth; None before the first
    row. At most ``most_in_flight`` of ``capacity`` rows were at work at once. The part was started again
    ``restarts`` times, and ``worker_deaths`` of its worker processes ended by themselves.
    """

    step: str
    rows_in: int = 0
    rows_out: int = 0
    dead_letters: int = 0
    skipped: int = 0
    defaulted: int = 0
    fallbacks: int = 0
    retries: int = 0
    restarts: int = 0
    worker_deaths: int = 0
    seconds: float = 0.0
    p50: float | None = None
    p95: float | None = None
    most_in_flight: int = 0
    capacity: int = 0

    @staticmethod
    def of(step: str, meter: Meter, capacity: int) -> PartReport:
        """The counts of a step."""
        restarts, deaths = meter.mishaps()
        return PartReport(
            step=step,
            rows_in=meter.taken,
            rows_out=meter.settled - meter.dead_letters - meter.skipped,
            dead_letters=meter.dead_letters,
            skipped=meter.skipped,
            defaulted=meter.defaulted,
            fallbacks=meter.fallbacks,
            retries=meter.retries,
            restarts=restarts,
            worker_deaths=deaths,
            seconds=meter.seconds,
            p50=meter.quantile(0.5),
            p95=meter.quantile(0.95),
            most_in_flight=meter.most,
            capacity=capacity,
        )


def known_cost(spend: Spend) -> float | None:
    """US dollars; None where there were calls and nobody knows what one of them cost."""
    return None if spend.calls and not spend.priced else spend.cost


def usage_of(account: Account) -> tuple[StepUsage, ...]:
    """An account by step and model, in the order of the steps; what belongs to none comes last."""
    parts = sorted(item for item in account if item[0] != OTHERS)
    rest = account.rest() + account.parts.get(OTHERS, Spend())
    if rest.calls:
        parts.append((("(other)", ""), rest))
    return tuple(StepUsage.of(part, spend) for part, spend in parts)


@dataclass(frozen=True)
class Report:
    """Totals of a run, over all its restarts.

    ``rows_in`` were read; each is in ``rows_out``, ``dead_letters`` or ``dropped`` (filtered out),
    unless a ``flat_map`` or ``batch`` changed their number. ``calls`` were paid for; ``hits`` were
    served by the journal, counted in this process only, as are ``seconds`` and ``rows_per_second``.
    ``cost`` is in US dollars, that of the ``priced`` calls, None where the price of none is known;
    ``usage`` is the same by step and model. ``lost`` attempts were sent and got no answer: what they
    used is not known. ``reason`` says why a run stopped by itself: ``budget``. ``waiting`` says
    which batches are still at a provider; the next run fetches them. ``defaulted`` rows failed in a
    step and went on with its default outputs, answers held ``ignored`` fields that nobody had asked for,
    parts were started again ``restarts`` times, and ``worker_deaths`` worker processes of parts ended by
    themselves; like ``hits`` these are counted in this process only. ``parts`` says what each step made
    of its rows. ``left_open`` dead letters of earlier runs are open still: their records did not come
    again. ``held`` says to how many requests a second the 429s of which endpoints held this process at last.
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
    waiting: tuple[str, ...] = ()
    reason: Reason = ""
    priced: int = 0
    lost: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    usage: tuple[StepUsage, ...] = ()
    defaulted: int = 0
    restarts: int = 0
    worker_deaths: int = 0
    parts: tuple[PartReport, ...] = ()
    ignored: int = 0
    left_open: int = 0
    held: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "flow": self.flow,
            "status": self.status,
            "reason": self.reason,
            "run_id": self.run_id,
            "resumed": self.resumed,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "dead_letters": self.dead_letters,
            "dropped": self.dropped,
            "left_open": self.left_open,
            "defaulted": self.defaulted,
            "restarts": self.restarts,
            "worker_deaths": self.worker_deaths,
            "fields_ignored": self.ignored,
            "held_to": {host: round(rate, 3) for host, rate in self.held.items()},
            "calls": self.calls,
            "hits": self.hits,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cost": self.cost,
            "calls_with_known_cost": self.priced,
            "attempts_without_answer": self.lost,
            "usage": [asdict(part) for part in self.usage],
            "parts": [_rounded(asdict(part)) for part in self.parts],
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
            "measures": {name: round(value, 6) for name, value in self.measures.items()},
            "outputs": list(self.outputs),
            "state": self.state,
            "waiting": list(self.waiting),
        }


def _rounded(part: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in part.items()}
