"""``dspy-stream dlq``: review, export, retry and resolve dead letters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from dspy_stream.cli.money import MaxCalls, MaxCost, Prices
from dspy_stream.cli.show import clean, rows_table, summary
from dspy_stream.errors import EXIT_DATA, FlowError, LMNotConfiguredError

__all__ = ["app"]

app = typer.Typer(help="Review, export, retry and resolve dead letters.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The state folder, such as .dspy_stream/banking.")]
Ref = Annotated[str, typer.Argument(help="A row id, or run/number as `list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
Stage = Annotated[str | None, typer.Option("--stage", help="Only letters of this stage.")]
Code = Annotated[str | None, typer.Option("--code", help="Only letters with this error code.")]


@contextmanager
def _box(folder: Path, *, read_only: bool = True) -> Iterator[Any]:
    from dspy_stream.state.dead_letters import DeadLetterBox
    from dspy_stream.state.store import Store

    with Store.open(folder, read_only=read_only, create=False) as store:
        yield DeadLetterBox(store)


def _reason(message: str) -> str:
    """What is wrong with an answer that could not be read, without the words that all such errors share."""
    return message.rpartition("could not read the answer: ")[2].partition(". Expected to find output fields")[
        0
    ]


@app.command("list")
def list_(
    folder: Folder,
    stage: Stage = None,
    code: Code = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show at most so many.")] = 50,
    all: Annotated[bool, typer.Option("--all", help="Show resolved ones too.")] = False,
    json: AsJson = False,
) -> None:
    """List open dead letters, oldest first; also beside a running flow."""
    with _box(folder) as box:
        found = box.list(None, limit, stage=stage, code=code, resolved=all)
    if json:
        for filed in found:
            typer.echo(orjson.dumps(filed.to_json()))
        return
    if not found:
        typer.echo(
            f"no {'' if all else 'open '}dead letters{' of that kind' if stage or code else ''}", err=True
        )
        return
    columns = ("ref", "row id", "where", "stage", "code", "message")
    lines = (
        (
            f.ref,
            f.letter.row_id,
            f.letter.origin,
            f.letter.stage,
            f.letter.error["code"],
            _reason(f.letter.error["message"]),  # the code says the rest
        )
        for f in found
    )
    rows_table(Console(), columns, lines)


@app.command()
def show(folder: Folder, ref: Ref) -> None:
    """Show one dead letter whole, with the row as it was read."""
    with _box(folder) as box:
        filed = box.get(ref)
    if filed is None:
        raise FlowError(f"{folder} has no dead letter {ref!r}; see: dspy-stream dlq list {folder} --all")
    value = filed.to_json()
    value["row"] = clean(filed.letter.raw.decode("utf-8", "replace"), 20_000)
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


@app.command()
def export(
    folder: Folder,
    output: Annotated[str, typer.Argument(help="A new JSON Lines file, or - for standard output.")] = "-",
    stage: Stage = None,
    code: Code = None,
) -> None:
    """Write the open dead letters as JSON lines, one envelope each."""
    with _box(folder) as box:
        found = box.list(None, None, stage=stage, code=code)
        if output == "-":
            box.export(sys.stdout.buffer, found)
            return
        from dspy_stream.state.export_file import new_file

        with new_file(output) as file:
            count = box.export(file, found)
    typer.echo(f"{count} dead letters written to {output}", err=True)


@app.command()
def resolve(
    folder: Folder,
    ref: Ref,
    note: Annotated[str, typer.Option("--note", help="Why nothing more is to be done.")] = "",
) -> None:
    """Mark a dead letter as dealt with."""
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with _box(folder, read_only=False) as box:
        count = box.resolve(ref, stamp=stamp, note=note)
    if not count:
        raise FlowError(f"{folder} has no open dead letter {ref!r}")
    typer.echo(f"{count} resolved", err=True)


def _last_model(flow: Any, folder: Path, api_base: str | None) -> str | None:
    """The name of the model that the flow's last run was given, and says so.

    Raises:
        LMNotConfiguredError: it was asked at a server that is not named now.
    """
    from dspy_stream.stream.retry import last_model

    last = last_model(flow, folder)
    if last is None:
        return None
    if last.server and api_base is None:
        raise LMNotConfiguredError(
            f"run {last.run_id} asked {last.name} at {last.server}; an address is not taken from a file: "
            "give --api-base again, or --lm with another model"
        )
    typer.echo(f"the model is that of run {last.run_id}: {clean(last.name)}; --lm names another", err=True)
    return last.name


@app.command()
def retry(
    flow: Annotated[str, typer.Argument(help="The flow's file, as for `run`.")],
    refs: Annotated[
        list[str] | None, typer.Argument(help="Row ids or refs; all open ones by default.")
    ] = None,
    state: Annotated[Path | None, typer.Option("--state", help="State folder of the flow.")] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The output the flow wrote; rows that pass are added to it."),
    ] = None,
    lm: Annotated[str | None, typer.Option("--lm", help="The model.")] = None,
    api_base: Annotated[
        str | None, typer.Option("--api-base", help="URL of an OpenAI-compatible server.")
    ] = None,
    stage: Stage = None,
    code: Code = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    prices: Prices = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Feed dead letters through the flow again, under their old row ids.

    Rows that pass are added to the flow's output and their letters are resolved; rows that fail
    again get a new letter. Exit code 65 where any failed. The model is the one that the flow's last run
    was given, unless --lm names another.
    """
    from dspy_stream.cli.load import default_state_of, load_flow, model_of
    from dspy_stream.stream.retry import check_output, retry_letters

    found = load_flow(flow)
    if output is not None:
        found = found.writing(output)
    folder = state or default_state_of(found)
    if output is None:
        check_output(found, folder)
    model = model_of(lm or _last_model(found, folder, api_base), api_base)
    money = {"max_cost": max_cost, "max_calls": max_calls, "prices": prices}
    report = retry_letters(found, folder, refs=refs, stage=stage, code=code, lm=model, **money)
    if json:
        typer.echo(orjson.dumps(report.to_json()))
    else:
        summary(Console(stderr=True), report)
    if report.dead_letters:
        raise typer.Exit(EXIT_DATA)
