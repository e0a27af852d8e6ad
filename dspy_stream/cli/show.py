"""What a person sees: the progress bar, the summary, and text from data made harmless."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dspy_stream.stream.held import figures

if TYPE_CHECKING:
    from dspy_stream.stream.job import Job
    from dspy_stream.stream.report import PartReport, Report

__all__ = ["clean", "progress", "rows_table", "summary", "unfolded"]

_TICK = 0.1
_WHOLE = 2
_WIDE = 300


def clean(text: str, limit: int = 200) -> str:
    """Text from data without control characters, so that no row can drive the terminal."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def progress(console: Console, rows: int | None, size: int | None) -> Callable[[Job], Callable[[], None]]:
    """A display of a running job, by rows where their number is known, else by bytes."""

    def watch(job: Job) -> Callable[[], None]:
        bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        task = bar.add_task(clean(job.flow, 40), total=rows or size, note="")
        done = threading.Event()

        def tick() -> None:
            while not done.wait(_TICK):
                out = sum(count.rows + count.dead + count.dropped for count in job.counts.values())
                dead = sum(count.dead for count in job.counts.values())
                flying = sum(pool.running for pool in job.pools.values())
                note = f"{out:,} rows, {dead:,} dead, {flying} in flight"
                if waiting := job.waiting():
                    more = f" and {len(waiting) - 1} more batches" if len(waiting) > 1 else ""
                    note = f"{out:,} rows, {dead:,} dead; {clean(str(waiting[0]))}{more}"
                bar.update(task, completed=out if rows else through(job, out), note=note)

        bar.start()
        thread = threading.Thread(target=tick, name="progress", daemon=True)
        thread.start()

        def close() -> None:
            done.set()
            thread.join()
            bar.stop()

        return close

    return watch


def through(job: Job, out: int) -> int:
    """Bytes of the input whose rows are out. What was read is more: of a small file, all, at once."""
    share = out / max(job.rows_in(), 1)
    return int(sum(job.bytes_read.values()) * min(share, 1.0))


def summary(console: Console, report: Report) -> None:
    """The totals of a run."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    # Imported here, because it shows its cells as this file does.
    from dspy_stream.cli.money import cost_of, usage_table

    lines = [
        ("rows in", f"{report.rows_in:,}"),
        ("rows out", f"{report.rows_out:,}"),
        ("dead letters", f"{report.dead_letters:,}"),
        ("of earlier runs", f"{report.left_open:,} more, still open" if report.left_open else ""),
        ("filtered out", f"{report.dropped:,}" if report.dropped else ""),
        ("with defaults", f"{report.defaulted:,}" if report.defaulted else ""),
        ("not asked for", f"{report.ignored:,} fields of answers" if report.ignored else ""),
        ("parts restarted", f"{report.restarts:,} times" if report.restarts else ""),
        ("worker processes lost", f"{report.worker_deaths:,}" if report.worker_deaths else ""),
        (
            "held back",
            "; ".join(
                f"about {figures(rate)} requests/s, by 429s of {host}" for host, rate in report.held.items()
            ),
        ),
        ("calls made", f"{report.calls:,}"),
        ("from the journal", f"{report.hits:,}"),
        ("without an answer", f"{report.lost:,} attempts" if report.lost else ""),
        ("tokens", f"{report.prompt_tokens:,} in, {report.completion_tokens:,} out"),
        ("cost", cost_of(report.cost, report.calls, report.priced)),
        ("rows/s", f"{report.rows_per_second:,.0f}"),
        *((name, f"{value:.4f}") for name, value in report.measures.items()),
        ("output", ", ".join(path for path in report.outputs if path)),
        ("at the provider", "; ".join(report.waiting)),
    ]
    for name, value in lines:
        if value:
            table.add_row(Text(name), Text(clean(value)))
    how = "stopped; run again to go on" if report.status == "stopped" else "finished"
    if report.reason == "budget":
        how = "stopped, its budget used up"
    console.print(Text(f"{clean(report.flow)}: {how}{' (resumed)' if report.resumed else ''}", style="bold"))
    console.print(table)
    usage_table(console, report)
    parts_table(console, report)
    if (report.dead_letters or report.left_open) and report.state:
        console.print(Text(f"why rows failed: dspy-stream dlq list {clean(report.state)}"))


def parts_table(console: Console, report: Report) -> None:
    """What each step made of its rows, where there is more than one."""
    if len(report.parts) < 2:
        return
    if report.resumed:
        console.print(Text("each step, since this run went on; the totals above are those of all of it:"))
    names = ("step", "in", "out", "failed", "retries", "restarts", "p50", "p95", "at once")
    rows_table(console, names, [_part_shown(part) for part in report.parts])


def _part_shown(part: PartReport) -> tuple[str, ...]:
    gone = {"dead": part.dead_letters, "skipped": part.skipped, "defaults": part.defaulted}
    failed = ", ".join(f"{n:,} {how}" for how, n in {**gone, "fallback": part.fallbacks}.items() if n)
    again = {"": part.restarts, " lost": part.worker_deaths}
    return (
        *(part.step, f"{part.rows_in:,}", f"{part.rows_out:,}", failed, f"{part.retries:,}"),
        ", ".join(f"{n:,}{how}" for how, n in again.items() if n),
        *(_seconds(part.p50), _seconds(part.p95), f"{part.most_in_flight:,} of {part.capacity:,}"),
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{figures(value * 1000)} ms" if value < 1 else f"{figures(value)} s"


def rows_table(console: Console, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table of data, a line for each row."""
    columns = tuple(columns)
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for place, name in enumerate(columns):  # refs and ids are copied into other commands: never cut them
        table.add_column(name, no_wrap=place < _WHOLE, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(str(cell), 80)) for cell in row))
    unfolded(console, table)


def unfolded(console: Console, table: Table) -> None:
    """Print a table as wide as it is, whatever the width of the terminal."""
    wide = Console(file=io.StringIO(), width=_WIDE, highlight=False, force_terminal=False)
    with wide.capture() as made:
        wide.print(table)
    for line in made.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)
