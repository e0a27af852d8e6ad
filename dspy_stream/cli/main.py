"""``dspy-stream``: run flows, look into their state, and deal with dead letters."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from dspy_stream import __version__
from dspy_stream.cli.money import MaxCalls, MaxCost, Prices, estimated
from dspy_stream.cli.show import progress, summary
from dspy_stream.cli.table import clean
from dspy_stream.errors import (
    EXIT_DATA,
    EXIT_IO,
    EXIT_UNAVAILABLE,
    BudgetExceeded,
    ConfigurationError,
    DSPyStreamError,
    LMAuthError,
)
from dspy_stream.lm.secret import masked

__all__ = ["app", "main"]

app = typer.Typer(
    name="dspy-stream",
    help="Run language-model programs over data, without losing a row or paying for a call twice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

_LAST_STANDARD = 2

StateOption = Annotated[
    Path | None, typer.Option("--state", help="State folder; .dspy_stream/NAME by default.")
]
InputOption = Annotated[
    str | None,
    typer.Option("--input", "-i", help="Read this instead of the flow's own input; - is standard input."),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--input-format", help="jsonl, csv, tsv or parquet, where no suffix of --input tells."),
]
OutputOption = Annotated[
    str | None, typer.Option("--output", "-o", help="Write here instead; - is standard output.")
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object instead of text; with -o - on standard error."),
]


def main() -> None:
    """The console script: errors become one line on standard error and an exit code."""
    _occupy()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except DSPyStreamError as error:
        fail(error)
    except BrokenPipeError:
        # The reader has gone, as with `| head`; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_IO) from None
    except OSError as error:
        # What is left of the text cannot be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
        tell(f"cannot write standard output, or another file: {clean(str(error))}")
        raise SystemExit(EXIT_IO) from None


def _occupy() -> None:
    """Put nothing in the place of closed standard streams: their numbers would be given to files."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process


def fail(error: DSPyStreamError) -> None:
    """Print an error for its reader and leave with its code."""
    text = clean(masked(str(error)), 2000)
    if isinstance(error, LMAuthError) and error.status is not None:
        text += f"; the key is api_key=...{_variables(error.model)}"
    if error.exit_code == EXIT_UNAVAILABLE:
        text += "; what is done is kept: run again to go on"
    tell(text)
    raise SystemExit(error.exit_code)


def _variables(model: str | None) -> str:
    """Where the environment may hold the key of a model."""
    from dspy_stream.lm.providers import known_provider  # much to import, and only wanted here

    provider = known_provider((model or "").partition("/")[0])
    return f" or in {provider.key_env[0]}" if provider is not None and provider.key_env else ""


def tell(text: str) -> None:
    """One line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"dspy-stream: {text}", markup=False)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    flow: Annotated[str, typer.Argument(help="A Python file that defines `flow`, or path.py:name.")],
    input: InputOption = None,
    output: OutputOption = None,
    input_format: FormatOption = None,
    lm: Annotated[
        str | None, typer.Option("--lm", help="The model, such as openai/gpt-4o-mini or local/nearest.")
    ] = None,
    api_base: Annotated[
        str | None, typer.Option("--api-base", help="URL of an OpenAI-compatible server.")
    ] = None,
    state: StateOption = None,
    capacity: Annotated[
        int | None, typer.Option("--capacity", min=1, help="Rows in flight, for every step.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, help="Read at most so many rows.")] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Worker threads of the engine.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    accept_program_change: Annotated[
        bool, typer.Option("--accept-program-change", help="Resume although the program was edited.")
    ] = False,
    max_consecutive: Annotated[
        int | None, typer.Option("--max-consecutive", min=1, help="Stop after so many failed rows in a row.")
    ] = None,
    max_failed: Annotated[
        float | None,
        typer.Option("--max-failed", min=0.0, max=1.0, help="Stop when this part of 200 or more failed."),
    ] = None,
    grace: Annotated[
        float, typer.Option("--grace", min=0.0, help="Seconds for calls in flight after a stop.")
    ] = 10.0,
    max_cost: MaxCost = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=0, help="Tokens that the run may use.")
    ] = None,
    max_calls: MaxCalls = None,
    prices: Prices = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate calls, tokens and cost from a sample; call nothing.")
    ] = False,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Rows that a dry run looks at.")] = 20,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
) -> None:
    """Run a flow; resume it if it was interrupted.

    Exit codes: 0 done, 2 usage, 65 too many bad rows, 69 model or part unavailable, 74 input or output,
    75 state in use, 76 state damaged, 77 budget used up, 78 configuration, 143 stopped cleanly.
    """
    from dspy_stream.cli.load import load_flow, model_of
    from dspy_stream.stream.run import exit_code

    found = elsewhere(load_flow(flow), input, input_format, output)
    if max_consecutive is not None or max_failed is not None:
        found = found.limiting(consecutive=max_consecutive, ratio=max_failed)
    console = Console(stderr=True)
    options: dict[str, Any] = {
        "lm": model_of(lm, api_base),
        "fresh": fresh,
        "workers": workers,
        "grace": grace,
    }
    options |= {"capacity": capacity, "limit": limit, "accept_program_change": accept_program_change}
    options |= {"max_cost": max_cost, "max_tokens": max_tokens, "max_calls": max_calls, "prices": prices}
    if state is not None:
        options["state"] = state
    if dry_run:
        estimate(found, sample, options, json)
        return
    if not (quiet or json) and console.is_terminal:
        source = found.source()
        options["watch"] = progress(console, limit or source.size(), source.bytes_total())
    if sys.stdin.isatty() and console.is_terminal and not json:
        options["ask"] = lambda question: typer.confirm(question, err=True)
    try:
        report = found.run(**options)
    except BudgetExceeded as error:
        if error.report is not None:
            show(console, error.report, json, quiet)
        raise
    show(console, report, json, quiet)
    code = exit_code(report)
    if quiet and not json and code:
        why = "stopped; run again to go on"
        if code == EXIT_DATA:
            why = f"none of {report.dead_letters:,} rows passed; see: dspy-stream dlq list {report.state}"
        tell(f"{clean(report.flow)}: {why}")
    raise typer.Exit(code)


def elsewhere(flow: Any, source: str | None, format: str | None, sink: str | None) -> Any:
    """The flow with the input and the output that the options name.

    Raises:
        ConfigurationError: a format of no input.
    """
    if format is not None and source is None:
        raise ConfigurationError("--input-format says how to read --input, which is not given")
    if source is not None:
        flow = flow.reading(source, format=format)
    return flow if sink is None else flow.writing(sink)


def show(console: Console, report: Any, json: bool, quiet: bool) -> None:
    """The totals of a run, for a person or a program; beside rows on standard output, on the other one."""
    if json:
        out = sys.stderr if "-" in report.outputs else sys.stdout
        out.buffer.write(orjson.dumps(report.to_json()) + b"\n")
    elif not quiet:
        summary(console, report)


def estimate(flow: Any, sample: int, options: dict[str, Any], json: bool) -> None:
    """What the flow is expected to take, on standard output."""
    found = flow.dry_run(sample=sample, **options)
    if json:
        typer.echo(orjson.dumps(found.to_json()))
    else:
        estimated(Console(), found)


def _add_verbs() -> None:
    from dspy_stream.cli import dlq, state

    app.add_typer(state.app, name="state")
    app.add_typer(dlq.app, name="dlq")


_add_verbs()
