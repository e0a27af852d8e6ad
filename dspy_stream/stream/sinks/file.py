"""A file as a sink: exactly once, by cutting it back to the last committed length."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from typing import Any

from dspy_stream.errors import OutputError
from dspy_stream.rows import Row
from dspy_stream.stream.sinks.base import Position, SinkPartition
from dspy_stream.stream.sinks.encode import Encoder, encode_fit
from dspy_stream.stream.sinks.tape import FileTape, GzipTape, Tape, check_empty, check_path, is_occupied

__all__ = ["FilePartition", "FileSink"]


class FileSink:
    """JSON lines or CSV in one file, plain or compressed with gzip.

    New files get the permissions that the process's umask leaves. The file is never reached
    through a symbolic link. Each row is in it exactly once after any number of crashes; whoever
    reads it meanwhile may see rows vanish and come back.
    """

    def __init__(
        self,
        path: str,
        encoder: Callable[[], Encoder],
        *,
        compress: bool = False,
        overwrite: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.path = os.path.expanduser(path)
        self.overwrite = overwrite
        self._encoder = encoder
        self._compress = compress
        self._settings = settings or {}

    def check(self) -> None:
        """Raise an OutputError if the file cannot be written."""
        check_path(self.path)

    def occupied(self) -> bool:
        """True if the file is there and not empty."""
        return is_occupied(self.path)

    def open(self, position: Position | None) -> SinkPartition:
        """Open the file; see :class:`~dspy_stream.stream.sinks.base.Sink`."""
        check_path(self.path)
        if position is None and not self.overwrite:
            check_empty(self.path)
        length = position["offset"] if position else 0
        encoder = self._encoder()
        if position is not None:
            encoder.restore(position, begun=length > 0)
        file = FileTape(self.path, length)
        tape = GzipTape(file, empty=length == 0) if self._compress else file
        return FilePartition(tape, encoder)

    def end_position(self) -> Position | None:
        """Where the file ends now, so that rows can be added to it; None where there is none.

        Raises:
            OutputError: it cannot be read.
        """
        if not self.occupied():
            return None
        reader = gzip.open if self._compress else open
        try:
            with reader(self.path, "rt", encoding="utf-8", newline="") as file:
                return {"offset": os.lstat(self.path).st_size, **self._encoder().recall(file)}
        except (OSError, EOFError, ValueError) as error:
            raise OutputError(f"rows cannot be added to {self.path}: {error}") from error

    def finish(self) -> None:
        """Nothing is left to do."""

    def describe(self) -> dict[str, Any]:
        """Path and settings."""
        return {"kind": "file", "path": self.path, **self._settings}


class FilePartition:
    """Rows through an encoder onto a tape."""

    __slots__ = ("_closed", "_encoder", "_failed", "_tape")

    def __init__(self, tape: Tape, encoder: Encoder) -> None:
        self._tape = tape
        self._encoder = encoder
        self._closed = False
        self._failed = False

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        try:
            self._append(self._encoder.encode(rows))
        except OutputError:
            # Committing after this would leave these rows out for good.
            self._failed = True
            raise

    def add(self, rows: Sequence[Row]) -> list[OutputError]:
        """Append those rows that have a form here; for each of the others an error that holds it as ``row``.

        Raises:
            OutputError: as ``write``, for any other reason.
        """
        try:
            data, unfit = encode_fit(self._encoder, rows)
            self._append(data)
        except OutputError:
            self._failed = True
            raise
        return unfit

    def flush(self) -> Position:
        """Make them durable."""
        if self._failed:
            raise OutputError("the output cannot be committed: an earlier write failed")
        self._append(self._encoder.header())
        return {"offset": self._tape.sync(), **self._encoder.state()}

    def close(self) -> None:
        """Flush and close."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._failed:
                self._append(self._encoder.header())
                self._tape.close()
        finally:
            self._tape.abandon()

    def _append(self, data: bytes) -> None:
        if data:
            self._tape.append(data)
