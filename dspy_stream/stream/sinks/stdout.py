"""Standard output: at least once."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any

from dspy_stream.errors import OutputError
from dspy_stream.rows import Row
from dspy_stream.stream.sinks.base import Position, SinkPartition
from dspy_stream.stream.sinks.encode import Encoder, encode_fit
from dspy_stream.stream.sinks.tape import unwritable

__all__ = ["PipeSink"]

_NAME = "standard output"


class PipeSink:
    """A descriptor that cannot be cut back; standard output unless told otherwise.

    Rows written after the last committed position appear again when an interrupted run goes on:
    at least once, with the row id to tell repetitions by.
    """

    def __init__(
        self,
        encoder: Callable[[], Encoder],
        *,
        descriptor: int = 1,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.overwrite = True
        self._encoder = encoder
        self._descriptor = descriptor
        self._settings = settings or {}

    def check(self) -> None:
        """Raise an OutputError if the descriptor is closed, or was when the process began."""
        if self._descriptor == 1 and sys.__stdout__ is None:
            # By now its number may be that of any other file.
            raise OutputError(f"cannot write {_NAME}: it is closed; give --output a file")
        try:
            os.fstat(self._descriptor)
        except OSError as error:
            raise unwritable(_NAME, error) from error

    def occupied(self) -> bool:
        """Never: nothing that was written can be emptied."""
        return False

    def open(self, position: Position | None) -> SinkPartition:
        """Begin to write; a resumed run keeps its columns and repeats the header."""
        encoder = self._encoder()
        if position is not None:
            encoder.restore(position, begun=False)
        return _PipePartition(self._descriptor, encoder)

    def finish(self) -> None:
        """Nothing is left to do."""

    def describe(self) -> dict[str, Any]:
        """Kind and settings."""
        return {"kind": "stdout", **self._settings}


class _PipePartition:
    def __init__(self, descriptor: int, encoder: Encoder) -> None:
        self._descriptor = descriptor
        self._encoder = encoder
        self._failed = False

    def write(self, rows: Sequence[Row]) -> None:
        unfit = self.add(rows)
        if unfit:
            self._failed = True
            raise unfit[0]

    def add(self, rows: Sequence[Row]) -> list[OutputError]:
        """As that of files: leaves out the rows that have no form here, and returns their errors."""
        if self._failed:
            raise OutputError(f"cannot write {_NAME}: an earlier write failed")
        try:
            data, unfit = encode_fit(self._encoder, rows)
            self._send(data)
        except OutputError:
            self._failed = True
            raise
        except OSError as error:
            self._failed = True
            raise unwritable(_NAME, error) from error
        return unfit

    def flush(self) -> Position:
        if self._failed:
            raise OutputError("the output cannot be committed: an earlier write failed")
        return {"live": True, **self._encoder.state()}

    def close(self) -> None:
        """The descriptor belongs to the process."""

    def _send(self, data: bytes) -> None:
        if self._descriptor == 1 and sys.stdout is not None:
            sys.stdout.flush()  # what print() holds back comes first
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # noqa: PERF203 - a shell may leave its terminal non-blocking
                select.select([], [self._descriptor], [])
