"""From what a user names to the sink that writes it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from dspy_stream.errors import ConfigurationError, OutputError
from dspy_stream.stream.sinks.base import Sink
from dspy_stream.stream.sinks.encode import CsvEncoder, Encoder, JsonlEncoder
from dspy_stream.stream.sinks.file import FileSink
from dspy_stream.stream.sinks.memory import ListSink
from dspy_stream.stream.sinks.stdout import PipeSink
from dspy_stream.stream.sources.options import format_of, known_formats

__all__ = ["write"]

_FORMATS = {"jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "tsv": "tsv", "parquet": "parquet"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def write(
    path: str | os.PathLike[str] | list[dict[str, Any]],
    *,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    row_id: str | None = "row_id",
    overwrite: bool = False,
) -> Sink:
    """The sink for a path, for ``-``, standard output, or for a list, which gets a dict for each row.

    ``format`` is ``jsonl``, ``csv``, ``tsv`` or ``parquet`` where the suffix does not say it;
    text ending in ``.gz`` is compressed. ``columns`` chooses fields and their order; the row id
    comes before them under the name ``row_id``, or is left out where that is None. Nothing is
    opened here.

    Raises:
        OutputError: nothing can write this.
        ConfigurationError: a setting has no meaning.

    >>> write("out/replies.csv.gz", columns=["intent"]).describe()["format"]
    'csv'
    """
    if isinstance(columns, str):
        raise ConfigurationError(f"columns is a list of names: columns=[{columns!r}]")
    if columns is not None and (not columns or len(set(columns)) < len(columns)):
        raise ConfigurationError("columns must name at least one column, and each only once")
    if format is not None and format not in _FORMATS:
        raise OutputError(f"unknown format {format!r}; known are: {', '.join(_FORMATS)}")
    if isinstance(path, list):
        if format is not None:
            raise ConfigurationError(f"format={format!r} is of a file; a list gets dicts")
        return ListSink(path, row_id=row_id, columns=columns, overwrite=overwrite)
    text = os.fspath(path)
    kind = _FORMATS[format] if format is not None else _kind(text)
    settings: dict[str, Any] = {
        "format": kind,
        "row_id": row_id,
        "columns": None if columns is None else list(columns),
    }
    if kind == "parquet":
        return _parquet(text, row_id=row_id, columns=columns, overwrite=overwrite)
    encoder = _encoder(kind, row_id, columns)
    if text == "-":
        return PipeSink(encoder, settings=settings)
    compress = text.lower().endswith(".gz")
    return FileSink(text, encoder, compress=compress, overwrite=overwrite, settings=settings)


def _kind(path: str) -> str:
    if path == "-":
        return "jsonl"
    scheme = _SCHEME.match(path)
    if scheme:
        raise OutputError(f"{scheme[1]}:// cannot be written here yet; give a file or - ({known_formats()})")
    found = format_of(path)
    if found is None:
        raise OutputError(
            f"cannot tell the format of {path} from its name; known suffixes are {known_formats()}; "
            "or name it: format='jsonl'"
        )
    return found


def _encoder(kind: str, row_id: str | None, columns: Sequence[str] | None) -> Callable[[], Encoder]:
    if kind == "jsonl":
        return lambda: JsonlEncoder(row_id=row_id, columns=columns)
    delimiter = "\t" if kind == "tsv" else ","
    return lambda: CsvEncoder(row_id=row_id, columns=columns, delimiter=delimiter)


def _parquet(path: str, **settings: Any) -> Sink:
    """The writer of Parquet files, which alone imports pyarrow."""
    if path == "-":
        raise OutputError("Parquet cannot be written to standard output; give a file")
    try:
        from dspy_stream.stream.sinks.parquet import ParquetSink
    except ImportError as error:
        raise ConfigurationError(
            "writing Parquet files needs pyarrow: pip install 'dspy_stream[parquet]'"
        ) from error
    return ParquetSink(path, **settings)
