"""Standard input as a live source: rows as they arrive, and no way back."""

from __future__ import annotations

from typing import Any

from dspy_stream.errors import InputError
from dspy_stream.stream.sources.base import Partition, Position
from dspy_stream.stream.sources.blocks import PipeBlocks
from dspy_stream.stream.sources.delimited import CsvPartition
from dspy_stream.stream.sources.feed import LineFeed
from dspy_stream.stream.sources.jsonl import JsonlPartition
from dspy_stream.stream.sources.options import ReadOptions

__all__ = ["PipeSource"]


class PipeSource:
    """A descriptor that cannot be read twice; standard input unless told otherwise.

    Positions are marked ``live``: a run that was interrupted after the first row cannot go on,
    because what was read is gone. Lines are JSON unless the format says otherwise.
    """

    def __init__(self, options: ReadOptions, *, name: str | None = None, descriptor: int = 0) -> None:
        if options.format == "parquet":
            raise InputError("Parquet cannot be read from standard input; give a file")
        self._options = options
        self._descriptor = descriptor
        self.name = name if name is not None else "stdin"

    def partitions(self) -> list[str]:
        """The one partition, named ``-``."""
        return ["-"]

    def open(self, partition: str, position: Position | None) -> Partition:
        """Begin to read.

        Raises:
            InputError: rows were read in an earlier run.
        """
        if position is not None and position["number"] > 0:
            raise InputError(
                f"standard input cannot be read again from row {position['number']}; "
                "start a fresh run, or read from a file"
            )
        kind = self._options.format or "jsonl"
        cap = self._options.max_line
        rows = self._options.rows(self.name, partition)
        feed = LineFeed(PipeBlocks(self._descriptor), cap, "standard input")
        if kind == "jsonl":
            return JsonlPartition(feed, rows, cap=cap)
        return CsvPartition(feed, rows, cap=cap, delimiter=self._options.delimiter_for(kind))

    def size(self) -> int | None:
        """Unknown."""
        return None

    def bytes_total(self) -> int | None:
        """Unknown."""
        return None

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {"kind": "stdin", "name": self.name, **self._options.to_json()}
