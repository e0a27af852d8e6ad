"""What a flow is expected to take, as data: for the table of a dry run, for ``--json``, and for tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["Between", "Estimate", "StepEstimate"]


class Between(NamedTuple):
    """A number that is expected, and the range in which it may well come out."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Between) -> Between:  # type: ignore[override]
        return Between(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, factor: float) -> Between:
        """All three, ``factor`` times."""
        return Between(self.low * factor, self.expected * factor, self.high * factor)


_NOTHING = Between(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class StepEstimate:
    """What one step is expected to take of one model.

    ``calls`` includes those ``from_journal``, which cost nothing. ``prompt_tokens`` and
    ``completion_tokens`` are those of the calls to be paid; ``cost`` is in US dollars, None where the
    price is unknown. ``basis`` says what answers are judged by: ``observed`` in the journal or an
    earlier run, or ``assumed`` from the signature.
    """

    step: str
    model: str
    calls: float
    from_journal: float
    prompt_tokens: Between
    completion_tokens: Between
    cost: Between | None
    basis: Literal["observed", "assumed"]

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            **asdict(self),
            "calls": round(self.calls),
            "from_journal": round(self.from_journal),
            "prompt_tokens": _whole(self.prompt_tokens),
            "completion_tokens": _whole(self.completion_tokens),
            "cost": self.cost._asdict() if self.cost is not None else None,
        }


@dataclass(frozen=True)
class Estimate:
    """What a flow is expected to take, from a sample of its rows; nothing was asked and nothing written.

    ``counted`` says whether the rows were counted, or estimated from the size of the input.
    """

    flow: str
    rows: int
    counted: bool
    sampled: int
    steps: tuple[StepEstimate, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def calls(self) -> float:
        """Calls to be paid."""
        return sum(step.calls - step.from_journal for step in self.steps)

    @property
    def from_journal(self) -> float:
        """Calls that the journal answers."""
        return sum(step.from_journal for step in self.steps)

    @property
    def prompt_tokens(self) -> Between:
        """Tokens of all prompts to be paid."""
        return sum((step.prompt_tokens for step in self.steps), _NOTHING)

    @property
    def completion_tokens(self) -> Between:
        """Tokens of all answers to be paid."""
        return sum((step.completion_tokens for step in self.steps), _NOTHING)

    @property
    def cost(self) -> Between | None:
        """US dollars of the steps whose price is known; None where there are calls, and none has a price."""
        known = [step.cost for step in self.steps if step.cost is not None]
        return sum(known, _NOTHING) if known or not self.steps else None

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Models whose price is not known."""
        return tuple(dict.fromkeys(step.model for step in self.steps if step.cost is None))

    def to_json(self) -> dict[str, Any]:
        """The estimate as one JSON object."""
        return {
            "flow": self.flow,
            "rows": self.rows,
            "counted": self.counted,
            "sampled": self.sampled,
            "calls": round(self.calls),
            "from_journal": round(self.from_journal),
            "prompt_tokens": _whole(self.prompt_tokens),
            "completion_tokens": _whole(self.completion_tokens),
            "cost": self.cost._asdict() if self.cost is not None else None,
            "models_without_price": list(self.unpriced),
            "steps": [step.to_json() for step in self.steps],
            "notes": list(self.notes),
        }


def _whole(between: Between) -> dict[str, int]:
    return {name: round(value) for name, value in between._asdict().items()}
