"""``dspy-stream state``: look into a state folder, check it, make room in it, save what is left of it."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console

from dspy_stream.cli.money import dollars
from dspy_stream.cli.show import clean, rows_table
from dspy_stream.errors import EXIT_CORRUPT, EXIT_DATA, StateError

if TYPE_CHECKING:
    from dspy_stream.state.rebuild import Rebuilt

__all__ = ["app"]

app = typer.Typer(help="Look into a state folder, check it, make room, rebuild it.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The state folder, such as .dspy_stream/banking.")]
_PICO = 1e12

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def inspect(folder: Folder, json: AsJson = False) -> None:
    """Show sizes, runs, journal and dead letters; also beside a running flow."""
    from dspy_stream.state.verify import inspect as look

    _print(look(folder).to_json(), json)


@app.command()
def verify(folder: Folder, json: AsJson = False) -> None:
    """Read everything and check it; exit code 76 where something is damaged."""
    from dspy_stream.state.verify import verify as check

    report = check(folder)
    _print(report.to_json(), json)
    if not report.ok:
        raise typer.Exit(EXIT_CORRUPT)


@app.command()
def rebuild(folder: Folder, json: AsJson = False) -> None:
    """Save what can be read of a damaged folder into a new store; the damaged one is kept aside.

    Exit code 65 where dead letters are lost, whose rows are then nowhere.
    """
    from dspy_stream.state.rebuild import rebuild as save

    found = save(folder)
    if json:
        typer.echo(orjson.dumps(found.to_json()))
    else:
        _print_rebuilt(found)
    if found.letters_lost:
        raise typer.Exit(EXIT_DATA)


def _print_rebuilt(found: Rebuilt) -> None:
    if not found.aside:
        typer.echo(f"{clean(found.path)} is sound; nothing was done")
        return
    console = Console()
    lines = [("kept", _said(found.kept)), ("not whole or missing", _said(found.unreadable))]
    lines += [("damaged places in tables", _said(found.places)), ("lost changes", f"{found.lost_changes:,}")]
    rows_table(console, ("", ""), [line for line in lines if line[1] != "0"])
    missing = sum(found.unreadable.values()) + sum(found.places.values()) + found.lost_changes
    if missing:
        typer.echo("calls that are missing are paid again when their rows come again")
    for note in (*(f"LOST: {said}" for said in found.letters_lost), *found.notes):
        typer.echo(clean(note, 1000))
    typer.echo(f"the damaged store is in {clean(found.aside)}; remove it when it is of no more use")


@app.command()
def gc(
    folder: Folder,
    ttl_days: Annotated[
        float | None, typer.Option("--ttl-days", min=0.0, help="Forget calls older than this.")
    ] = None,
    max_gb: Annotated[
        float | None, typer.Option("--max-gb", min=0.0, help="Keep at most so much of the journal.")
    ] = None,
    keep_runs: Annotated[int, typer.Option("--keep-runs", min=1, help="Runs of each flow to remember.")] = 20,
    json: AsJson = False,
) -> None:
    """Remove old journal entries and run records."""
    from dspy_stream.state.verify import gc as clear

    limits: dict[str, Any] = {"runs": keep_runs}
    if ttl_days is not None:
        limits["ttl"] = ttl_days * 86400
    if max_gb is not None:
        limits["max_bytes"] = int(max_gb * 1e9)
    _print(clear(folder, **limits).to_json(), json)


@app.command("forget-batch")
def forget_batch(
    folder: Folder, batch: Annotated[str, typer.Argument(help="Its id, as `inspect` shows it.")]
) -> None:
    """Give up a batch at a provider: its requests are paid again when a flow asks for them."""
    from dspy_stream.state import Store
    from dspy_stream.state.batches import Ledger

    with Store.open(folder, create=False) as store:
        ledger = Ledger(store)
        if all(record.id != batch for record in ledger.list()):
            raise StateError(f"{folder} has no batch {batch}; see: dspy-stream state inspect {folder}")
        ledger.close(batch)


def _run(record: dict[str, Any]) -> dict[str, Any]:
    """What a reader wants to know of a run; ``--json`` has the rest."""
    source, sink = (_places(record.get(name)) for name in ("source", "sink"))
    shown = {name: record.get(name) for name in ("run_id", "flow", "status", "reason", "started", "updated")}
    return {**shown, "source": source, "sink": sink, "totals": record.get("totals")}


def _batch(record: dict[str, Any]) -> dict[str, Any]:
    """A batch with its times as those of runs are."""
    times = {name: _moment(record[name]) for name in ("created", "tried") if record.get(name)}
    return {**record, **times}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _spent(spend: Any) -> Any:
    """A run's spend with its cost in dollars."""
    if not isinstance(spend, dict) or "cost_pico" not in spend:
        return spend
    rest = {name: item for name, item in spend.items() if name != "cost_pico"}
    cost = {"cost": dollars(spend["cost_pico"] / _PICO)} if spend["cost_pico"] else {}
    return {"calls": rest.pop("calls", 0), **cost, **rest}


def _places(described: Any) -> str:
    """Paths, or kinds, of the sources or sinks that a run record describes."""
    try:
        parts = orjson.loads(described)
        return ", ".join(map(_said_of, parts))
    except (orjson.JSONDecodeError, TypeError, AttributeError):  # written by another version
        return str(described)


def _said_of(part: dict[str, Any]) -> str:
    if "dead_letters" in part:  # the source of a retry
        return f"{len(part['dead_letters']):,} dead letters"
    return str(part.get("path") or part.get("name") or part.get("kind"))


def _said(value: Any) -> str:
    """``rows_in 5, rows_out 4`` for a mapping of numbers; what is zero or missing is left out."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {item}" for name, item in value.items() if item) or "0"


def _print(value: dict[str, Any], json: bool) -> None:
    if json:
        typer.echo(orjson.dumps(value))
        return
    console = Console()
    plain = [(name, item) for name, item in value.items() if not isinstance(item, (list, dict))]
    if ("verified", False) in plain:  # a look inside is no check that failed
        plain.remove(("verified", False))
    rows_table(console, ("", ""), plain)
    for name, item in value.items():
        if isinstance(item, dict) and item:
            console.print(f"\n[bold]{name}[/bold]")
            rows_table(console, ("", ""), [(key, _said(_spent(entry))) for key, entry in item.items()])
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            console.print(f"\n[bold]{name}[/bold]")
            tell = {"runs": _run, "batches": _batch}.get(name, dict)
            told = [tell(entry) for entry in item]
            rows_table(console, list(told[0]), [map(_said, entry.values()) for entry in told])
        elif isinstance(item, list) and item:
            console.print(f"\n[bold]{name}[/bold]")
            rows_table(console, ("",), [[entry] for entry in item])
