"""Calls, tokens and cost as a person sees them: what a run used, and what a dry run expects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from dspy_stream.cli.table import clean, rows_table

if TYPE_CHECKING:
    from dspy_stream.stream.estimate import Between, Estimate, StepEstimate
    from dspy_stream.stream.report import Report

__all__ = ["MaxCalls", "MaxCost", "Prices", "cost_of", "dollars", "estimated", "usage_table"]

MaxCost = Annotated[
    float | None, typer.Option("--max-cost", min=0.0, help="US dollars that the run may spend on calls.")
]
MaxCalls = Annotated[int | None, typer.Option("--max-calls", min=0, help="Calls that the run may make.")]
Prices = Annotated[
    Path | None, typer.Option("--prices", help="A JSON file of prices, before the package's own list.")
]


def dollars(amount: float) -> str:
    """US dollars, to the hundredth of a cent where they are few."""
    return f"${amount:,.2f}" if amount >= 100 else f"${amount:.4f}"


def cost_of(cost: float | None, calls: int, priced: int) -> str:
    """A cost, and for how many of the calls it is known; what is unknown is never shown as nothing."""
    if cost is None:
        return f"unknown for all {calls:,} calls"
    if priced < calls:
        return f"{dollars(cost)} for {priced:,} of {calls:,} calls, unknown for the others"
    return dollars(cost)


def usage_table(console: Console, report: Report) -> None:
    """What each step used of each model, where there is more than one."""
    if len(report.usage) < 2:
        return
    names = ("step", "model", "calls", "journal", "tokens in", "cached", "tokens out", "reasoning", "cost")
    rows = [
        (
            *(part.step, part.model, f"{part.calls:,}", f"{part.hits:,}"),
            *(f"{part.prompt_tokens:,}", f"{part.cached_tokens:,}"),
            *(f"{part.completion_tokens:,}", f"{part.reasoning_tokens:,}"),
            cost_of(part.cost, part.calls, part.priced),
        )
        for part in report.usage
    ]
    rows_table(console, names, rows, numbers=True, limit=200)


def estimated(console: Console, estimate: Estimate) -> None:
    """The table of a dry run."""
    how = "counted" if estimate.counted else "estimated from the size of the input"
    console.print(
        Text(
            f"{clean(estimate.flow)}: {estimate.rows:,} rows ({how}), {estimate.sampled:,} of them looked "
            "at; nothing was called or written",
            style="bold",
        )
    )
    names = (
        "step",
        "model",
        "calls",
        "journal",
        "tokens in",
        "tokens out",
        "cost",
        "likely range",
        "answers",
    )
    rows = [_step(step) for step in estimate.steps]
    if len(rows) > 1:
        rows.append(
            (
                *("all", "", f"{round(estimate.calls + estimate.from_journal):,}"),
                *(f"{round(estimate.from_journal):,}", _count(estimate.prompt_tokens)),
                *(_count(estimate.completion_tokens), *_range(estimate.cost), ""),
            )
        )
    rows_table(console, names, rows, numbers=True, limit=200)
    if estimate.unpriced:
        unknown = ", ".join(map(clean, estimate.unpriced))
        console.print(
            Text(f"no price is known for {unknown}, so the sum is without it; give one with --prices FILE")
        )
    for note in estimate.notes:
        console.print(Text(clean(note, 400)))


def _step(step: StepEstimate) -> tuple[str, ...]:
    return (
        *(step.step, step.model, f"{round(step.calls):,}", f"{round(step.from_journal):,}"),
        *(_count(step.prompt_tokens), _count(step.completion_tokens), *_range(step.cost), step.basis),
    )


def _count(between: Between) -> str:
    return f"{round(between.expected):,}"


def _range(cost: Between | None) -> tuple[str, str]:
    if cost is None:
        return "unknown", ""
    return dollars(cost.expected), f"{dollars(cost.low)} to {dollars(cost.high)}"
