"""What a reader may be told about its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dspy_stream.errors import ConfigurationError, InputError
from dspy_stream.stream.sources.base import MAX_LINE
from dspy_stream.stream.sources.rows import RowBuilder

__all__ = ["SUFFIXES", "ReadOptions", "format_of", "known_formats"]

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_FORMATS = {"jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "tsv": "tsv", "parquet": "parquet"}


def known_formats() -> str:
    """The suffixes that are understood, for messages."""
    return ", ".join(SUFFIXES) + "; the text ones also with .gz"


def format_of(path: str) -> str | None:
    """The format that a path's suffix names, or None.

    >>> format_of("data/a.csv.gz"), format_of("notes.txt"), format_of("a.parquet.gz")
    ('csv', None, None)
    """
    lower = path.lower()
    text = lower.removesuffix(".gz")
    found = next((kind for suffix, kind in SUFFIXES.items() if text.endswith(suffix)), None)
    return None if found == "parquet" and text != lower else found


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Settings of one source.

    ``format`` None means: by suffix. ``id`` is the column of row ids. ``columns`` are the fields
    to keep, all of them required. ``max_line`` is the cap on one record in bytes, and
    ``delimiter`` the character between the columns of a CSV file.
    """

    format: str | None = None
    id: str | None = None
    columns: tuple[str, ...] | None = None
    max_line: int = MAX_LINE
    delimiter: str | None = None

    @staticmethod
    def of(
        *,
        format: str | None = None,
        id: str | None = None,
        columns: Sequence[str] | None = None,
        max_line: int = MAX_LINE,
        delimiter: str | None = None,
    ) -> ReadOptions:
        """Check settings as a user wrote them.

        Raises:
            InputError: no such format.
            ConfigurationError: a setting has no meaning.
        """
        if format is not None and format not in _FORMATS:
            raise InputError(f"unknown format {format!r}; known are: {', '.join(_FORMATS)}")
        if isinstance(columns, str):
            raise ConfigurationError(f"columns is a list of names: columns=[{columns!r}]")
        names = None if columns is None else tuple(columns)
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ConfigurationError("columns must name at least one column, and each only once")
        if max_line < 1:
            raise ConfigurationError(f"max_line is a number of bytes above zero, not {max_line}")
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            raise ConfigurationError(f"delimiter is one character, not {delimiter!r}")
        return ReadOptions(None if format is None else _FORMATS[format], id, names, max_line, delimiter)

    def rows(self, name: str, partition: str) -> RowBuilder:
        """The builder of one partition's rows."""
        return RowBuilder(name, partition, id_column=self.id, columns=self.columns)

    def delimiter_for(self, kind: str) -> str:
        """The delimiter of a ``csv`` or ``tsv`` file."""
        return self.delimiter or ("\t" if kind == "tsv" else ",")

    def to_json(self) -> dict[str, Any]:
        """The settings, for the run record."""
        return {
            "format": self.format,
            "id": self.id,
            "columns": None if self.columns is None else list(self.columns),
            "max_line": self.max_line,
            "delimiter": self.delimiter,
        }
