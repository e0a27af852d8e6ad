"""CSV and TSV by RFC 4180: a header line, quoted fields that may hold newlines, values as text.

A record that cannot be framed costs its first line only. Where a quote is never closed, or is
closed in the middle of a later line, the dead letter is the line that opened it and reading goes
on with the next one. A record with the wrong number of columns is refused whole.
"""

from __future__ import annotations

import csv
from typing import Any

from dspy_stream.errors import InputError
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.stream.sources.feed import BOM, FeedPartition, LineFeed, NotYet
from dspy_stream.stream.sources.ids import ROW_ID
from dspy_stream.stream.sources.lines import TooLong
from dspy_stream.stream.sources.rows import RowBuilder, missing_message

__all__ = ["CsvPartition"]


class _TooMuch(Exception):
    """The record is over the cap."""


class _Physical:
    """The lines that the csv module asks for, and what was wrong with them.

    Bad bytes are replaced so that the record is still framed rightly; the record is refused then.
    """

    __slots__ = ("_cap", "_feed", "_size", "count", "fault", "ran_out", "start")

    def __init__(self, feed: LineFeed, cap: int) -> None:
        self._feed = feed
        self._cap = cap
        self.begin()

    def begin(self) -> None:
        self.count = 0
        self._size = 0
        self.ran_out = False
        self.fault: tuple[str, str] | None = None
        self.start = self._feed.offset

    def __iter__(self) -> _Physical:
        return self

    def __next__(self) -> str:
        line = self._feed.ahead(self.count)
        if line is None:
            self.ran_out = True
            raise StopIteration
        self.count += 1
        self._size += len(line) + 1
        if self._size > self._cap + 1 or isinstance(line, TooLong):
            raise _TooMuch
        if self.start == 0 and self.count == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            at = self._size - len(line) - 1 + error.start
            self.fault = ("bad_utf8", f"not UTF-8: byte 0x{line[error.start]:02x} at byte {at} of the record")
            text = line.decode("utf-8", "replace")
        if "\0" in text:
            # The csv module refuses NUL before Python 3.11 and takes it since.
            self.fault = self.fault or ("bad_csv", "a NUL byte in the record")
            text = text.replace("\0", "\ufffd")
        return text + "\n"


class CsvPartition(FeedPartition):
    """The rows of one feed of lines.

    ``header`` is None where the feed begins with it; it is then read first. ``delimiter`` is one
    character. The csv module's limit on the size of a field, which belongs to the whole process,
    is raised to ``cap`` where it is lower.

    Raises:
        InputError: there is no header, it names a column twice, or lacks one that is needed.
    """

    def __init__(
        self, feed: LineFeed, rows: RowBuilder, *, cap: int, delimiter: str, number: int = 0
    ) -> None:
        super().__init__(feed, rows, cap=cap, number=number)
        self._physical = _Physical(feed, cap)
        self._reader = csv.reader(self._physical, delimiter=delimiter, strict=True)
        self.header: list[str] | None = None
        if csv.field_size_limit() < cap:
            csv.field_size_limit(cap)

    def read(self, limit: int) -> list[Row | DeadLetter]:
        """Return the next records; see :class:`~dspy_stream.stream.sources.base.Partition`."""
        records: list[Row | DeadLetter] = []
        try:
            if self.header is None:
                self.read_header()
            while len(records) < limit and self._next_record(records):
                pass
        except NotYet:
            pass
        except InputError:
            if not records:
                raise
        return records

    def read_header(self) -> list[str]:
        """Read the first line that is not blank as the names of the columns."""
        name = self._feed.name
        header: list[str] = []
        while not header:
            physical = self._physical
            physical.begin()
            try:
                header = next(self._reader)
            except StopIteration:
                raise InputError(f"{name} is empty; a CSV file begins with a line of column names") from None
            except (csv.Error, _TooMuch) as error:
                raise InputError(f"{name}: the line of column names cannot be read: {error}") from error
            if physical.fault:
                raise InputError(f"{name}: the line of column names cannot be read: {physical.fault[1]}")
            self._feed.consume(physical.count)
        self._check_header(header)
        self.header = header
        return header

    def _check_header(self, header: list[str]) -> None:
        name = self._feed.name
        twice = sorted({column for column in header if header.count(column) > 1})
        if twice:
            raise InputError(f"{name}: the column {twice[0]!r} appears twice; rename one of them")
        missing = [column for column in self._rows.required if column not in header]
        if missing:
            message = missing_message(missing[0], header, f"{name} has no column")
            hint = "; set delimiter" if len(header) == 1 and any(c in header[0] for c in ";\t|") else ""
            raise InputError(message + hint)

    def _next_record(self, records: list[Row | DeadLetter]) -> bool:
        """Append one record, or nothing for a blank line; False at the end."""
        physical = self._physical
        physical.begin()
        try:
            values: list[str] = next(self._reader)
        except StopIteration:
            return False
        except (csv.Error, _TooMuch) as error:
            records.append(self._unframed(error))
        else:
            if not values:
                self._feed.consume(physical.count)
                return True
            records.append(self._framed(values))
        self._number += 1
        return True

    def _framed(self, values: list[str]) -> Row | DeadLetter:
        rows, feed, number, physical = self._rows, self._feed, self._number, self._physical
        header = self.header or []
        line, fault = feed.line, physical.fault
        if fault is None and len(values) != len(header):
            fault = ("bad_columns", f"{len(values)} columns where the header has {len(header)}")
        if fault is not None:
            raw = _joined(feed.consume(physical.count))
            return rows.refuse(fault[0], fault[1], number=number, line=line, raw=raw)
        if physical.count == 1:
            feed.step()
        else:
            feed.consume(physical.count)
        fields: dict[str, Any] = dict(zip(header, values, strict=True))
        if rows.plain and ROW_ID not in fields:
            return rows.make(rows.derive(number), fields, number, line, None)
        return rows.build(fields, number, line=line)

    def _unframed(self, error: csv.Error | _TooMuch) -> DeadLetter:
        """Refuse the first line of the record and leave the others for the next one."""
        rows, number, line, count = self._rows, self._number, self._feed.line, self._physical.count
        first = self._feed.consume(1)[0] if count else b""
        if isinstance(first, TooLong):
            return rows.too_long(first, self._cap, number=number, line=line)
        if isinstance(error, _TooMuch):
            message = f"a quote is opened here and not closed within {self._cap} bytes"
        elif self._physical.ran_out:
            message = "a quote is opened here and never closed"
        elif count > 1:
            message = f"a quote is opened here and closed wrongly {count - 1} lines below: {error}"
        else:
            message = f"not CSV: {error}"
        return rows.refuse("bad_csv", message, number=number, line=line, raw=first)


def _joined(lines: list[bytes | TooLong]) -> bytes:
    return b"\n".join(line for line in lines if isinstance(line, bytes))
