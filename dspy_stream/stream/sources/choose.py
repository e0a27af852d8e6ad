"""From what a user names to the source that reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from dspy_stream.errors import InputError
from dspy_stream.stream.sources.base import MAX_LINE, Source
from dspy_stream.stream.sources.files import FileSource
from dspy_stream.stream.sources.frames import MemorySource
from dspy_stream.stream.sources.options import ReadOptions, known_formats
from dspy_stream.stream.sources.stdin import PipeSource

__all__ = ["from_iterable", "read"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def read(
    spec: Any,
    *,
    format: str | None = None,
    id: str | None = None,
    columns: Sequence[str] | None = None,
    max_line: int = MAX_LINE,
    name: str | None = None,
    delimiter: str | None = None,
) -> Source:
    """The source for a path, a folder, a pattern, ``-`` for standard input, or Python data.

    ``format`` is ``jsonl``, ``csv``, ``tsv`` or ``parquet`` where the suffix does not say it;
    text files may be compressed with gzip. ``id`` names the column of row ids, ``columns`` the
    fields to keep. A record over ``max_line`` bytes becomes a dead letter. ``name`` stands for
    the data set in row ids; it is the last part of the path unless given. Nothing is opened here.

    Raises:
        InputError: nothing can read this.
        ConfigurationError: a setting has no meaning.

    >>> read([{"text": "hi"}]).partitions()
    ['0']
    """
    options = ReadOptions.of(format=format, id=id, columns=columns, max_line=max_line, delimiter=delimiter)
    if not isinstance(spec, str | os.PathLike):
        return MemorySource(spec, options, name=name)
    path = os.fspath(spec)
    if not isinstance(path, str):
        raise InputError("a path must be text, not bytes")
    if path == "-":
        return PipeSource(options, name=name)
    scheme = _SCHEME.match(path)
    if scheme:
        raise InputError(
            f"{scheme[1]}:// cannot be read here yet; give a file, a folder, a pattern or - "
            f"({known_formats()})"
        )
    return FileSource(path, options, name=name)


def from_iterable(
    rows: Any, *, id: str | None = None, columns: Sequence[str] | None = None, name: str | None = None
) -> Source:
    """The source for rows in memory: a list, an iterable, a data frame, or a function that makes one.

    Raises:
        InputError: the object holds no rows.

    >>> from_iterable(({"n": n} for n in range(3))).open("0", None).read(2)[1].n
    1
    """
    return MemorySource(rows, ReadOptions.of(id=id, columns=columns), name=name)
