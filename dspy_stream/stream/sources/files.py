"""A file, a folder or a pattern as a source: one partition per file."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable
from typing import Any

from dspy_stream.errors import ConfigurationError, InputError
from dspy_stream.stream.sources.base import Partition, Position
from dspy_stream.stream.sources.blocks import FileBlocks, GzipBlocks, open_for_reading, unreadable
from dspy_stream.stream.sources.delimited import CsvPartition
from dspy_stream.stream.sources.feed import LineFeed
from dspy_stream.stream.sources.jsonl import JsonlPartition
from dspy_stream.stream.sources.options import ReadOptions, format_of, known_formats

__all__ = ["FileSource"]

_GZIP_MAGIC = b"\x1f\x8b"


class FileSource:
    """The files that ``path`` names.

    A folder means its files with a known suffix, not those of folders below it; a pattern may
    hold ``*``, ``?``, ``[...]`` and ``**``. Hidden files are left out. A partition is named by
    the file's path below the folder or below the fixed part of the pattern, and the source by
    the last part of ``path``, so that neither changes when the data is moved.

    >>> FileSource("data/tickets.jsonl", ReadOptions()).name
    'tickets.jsonl'
    """

    def __init__(self, path: str, options: ReadOptions, *, name: str | None = None) -> None:
        self._path = os.path.expanduser(path)
        self._options = options
        self.name = name if name is not None else _default_name(self._path)
        self._found: dict[str, str] | None = None

    def partitions(self) -> list[str]:
        """Sorted names of the files, after opening each of them once.

        Raises:
            InputError: nothing there, no permission, an unknown format, a missing column.
        """
        self._found = files = self._find()
        for name, path in files.items():
            self._format(path)
            os.close(open_for_reading(path, name))
        names = sorted(files)
        self.open(names[0], None).close()
        return names

    def open(self, partition: str, position: Position | None) -> Partition:
        """Open a file; see :class:`~dspy_stream.stream.sources.base.Source`."""
        if self._found is None:
            self._found = self._find()
        path = self._found.get(partition)
        if path is None:
            raise InputError(f"{partition} is not among the files of {self._path}; put it back to go on")
        kind = self._format(path)
        rows = self._options.rows(self.name, partition)
        if kind == "parquet":
            opened: Partition = _parquet().open_parquet(path, partition, rows, position)
            return opened
        cap = self._options.max_line
        feed = self._feed(path, partition, position)
        number = position["number"] if position else 0
        if kind == "jsonl":
            return JsonlPartition(feed, rows, cap=cap, number=number)
        delimiter = self._options.delimiter_for(kind)
        csv = CsvPartition(feed, rows, cap=cap, delimiter=delimiter, number=number)
        try:
            if position is None or position["offset"] == 0:
                csv.read_header()
            else:
                first = CsvPartition(self._feed(path, partition, None), rows, cap=cap, delimiter=delimiter)
                try:
                    csv.header = first.read_header()
                finally:
                    first.close()
        except InputError:
            csv.close()
            raise
        return csv

    def size(self) -> int | None:
        """Rows of the Parquet files; None where any file is of another format."""
        files = self._found or self._find()
        if any(self._format(path) != "parquet" for path in files.values()):
            return None
        count: Callable[[str, str], int] = _parquet().count_rows
        return sum(count(path, name) for name, path in files.items())

    def bytes_total(self) -> int | None:
        """Bytes on the disk."""
        files = self._found or self._find()
        try:
            return sum(os.stat(path).st_size for path in files.values())
        except OSError as error:
            raise unreadable(self._path, error) from error

    def describe(self) -> dict[str, Any]:
        """Name, path and settings."""
        return {"kind": "files", "name": self.name, "path": self._path, **self._options.to_json()}

    def _feed(self, path: str, partition: str, position: Position | None) -> LineFeed:
        """Lines of a plain or a compressed file, which its first bytes tell apart."""
        plain = position is None or "tail" in position
        start = position["offset"] if position and plain else 0
        file = FileBlocks(path, partition, start=start, position=position)
        try:
            if file.head.startswith(_GZIP_MAGIC) or (path.lower().endswith(".gz") and not file.head):
                skip = position["offset"] if position else 0
                blocks = GzipBlocks(file, partition, skip=skip)
                return LineFeed(blocks, self._options.max_line, partition, position=position)
            if path.lower().endswith(".gz"):
                raise InputError(f"{partition} ends in .gz but is not gzip data")
        except InputError:
            file.close()
            raise
        return LineFeed(file, self._options.max_line, partition, position=position)

    def _format(self, path: str) -> str:
        found = self._options.format or format_of(path)
        if found is None:
            raise InputError(
                f"cannot tell the format of {path} from its name; known suffixes are {known_formats()}; "
                "or name it: format='jsonl' (--input-format jsonl)"
            )
        return found

    def _find(self) -> dict[str, str]:
        path = self._path
        if "\0" in path or not path:
            raise InputError(f"{path!r} is not a path")
        if not os.path.lexists(path) and glob.has_magic(path):
            return self._checked(_match(path), f"no file matches {path}")
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise unreadable(path, error) from error
        if not stat.S_ISDIR(mode):
            return self._checked({os.path.basename(path): path}, "")
        try:
            entries = sorted(os.listdir(path))
        except OSError as error:
            raise unreadable(path, error) from error
        paths = {entry: os.path.join(path, entry) for entry in entries if not entry.startswith(".")}
        wanted = {
            name: file
            for name, file in paths.items()
            if os.path.isfile(file) and (self._options.format is not None or format_of(name) is not None)
        }
        return self._checked(
            wanted, f"the folder {path} has no file to read; known suffixes are {known_formats()}"
        )

    def _checked(self, files: dict[str, str], nothing: str) -> dict[str, str]:
        if not files:
            raise InputError(nothing)
        strange = [name for name in files if name.encode("utf-8", "replace").decode() != name]
        if strange:
            raise InputError(f"the file name {strange[0]!r} is not UTF-8; rename the file")
        return files


def _default_name(path: str) -> str:
    if glob.has_magic(path) and not os.path.lexists(path):
        return os.path.relpath(path, _fixed_part(path))
    return os.path.basename(os.path.normpath(path)) if path else path


def _fixed_part(pattern: str) -> str:
    """The folder above the first part that has a wildcard."""
    folder = pattern
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir


def _match(pattern: str) -> dict[str, str]:
    root = _fixed_part(pattern)
    paths = glob.glob(pattern, recursive=True)
    return {os.path.relpath(path, root): path for path in paths if os.path.isfile(path)}


def _parquet() -> Any:
    """The reader of Parquet files, which alone imports pyarrow."""
    try:
        from dspy_stream.stream.sources import parquet
    except ImportError as error:
        raise ConfigurationError(
            "reading Parquet files needs pyarrow: pip install 'dspy_stream[parquet]'"
        ) from error
    return parquet
