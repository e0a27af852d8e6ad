"""Data as a person sees it: text made harmless, and tables of it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["clean", "rows_table"]

_NAMES = 2  # columns of names, refs and ids, which come first
_WIDE = 300


def clean(text: str, limit: int = 200) -> str:
    """Text from data without control characters, so that no row can drive the terminal."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def rows_table(
    console: Console,
    columns: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    numbers: bool = False,
    limit: int = 80,
) -> None:
    """A table of cells of at most ``limit`` characters; ``numbers`` stand behind two columns of names."""
    columns = tuple(columns)
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for place, name in enumerate(columns):
        named = place < _NAMES
        # Refs and ids are copied into other commands: never cut them.
        table.add_column(
            name,
            justify="right" if numbers and not named else "left",
            no_wrap=named and not numbers,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(clean(str(cell), limit)) for cell in row))
    # As wide as it is: a narrow terminal breaks its lines, not its cells.
    wide = Console(file=io.StringIO(), width=_WIDE, highlight=False, force_terminal=False)
    with wide.capture() as made:
        wide.print(table)
    for line in made.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)
