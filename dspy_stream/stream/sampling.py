"""A sample of a source's rows, and how many rows there are altogether."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dspy_stream.errors import FlowError
from dspy_stream.rows import Row

if TYPE_CHECKING:
    from dspy_stream.rows import DeadLetter
    from dspy_stream.stream.sources.base import Partition, Source

__all__ = ["Sample", "sample"]

# An input of up to so many bytes is read whole, and sampled evenly; of a larger one the beginning is read.
_WHOLE: Final = 64 * 1024 * 1024
_BEGINNING: Final = 20_000
_READ: Final = 256


@dataclass(frozen=True)
class Sample:
    """Rows drawn from a source, in its order. ``total`` rows are in the source, that can be read at all.

    ``counted`` says whether that was counted or estimated, ``whole`` that every row was drawn.
    """

    rows: tuple[Row, ...]
    total: int
    counted: bool
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """True where the sample is everything."""
        return self.counted and len(self.rows) == self.total

    @property
    def weight(self) -> float:
        """How many rows of the whole each of the sample stands for."""
        return self.total / len(self.rows) if self.rows else 0.0


def sample(source: Source, count: int) -> Sample:
    """Draw up to ``count`` rows, each as likely as any other of those that are read; the same every time.

    Raises:
        FlowError: the source is live: what is read from it is gone.
        InputError: it cannot be read.
    """
    size, total_bytes = source.size(), source.bytes_total()
    if size is None and total_bytes is None:
        raise FlowError(
            f"{source.name} can be read only once, so a dry run would take rows away; give it a file with a "
            "few of them: --input"
        )
    small = total_bytes <= _WHOLE if total_bytes is not None else (size or 0) <= _BEGINNING
    drawn: list[tuple[int, Row]] = []
    read = bad = taken = 0
    rng = random.Random(0)  # noqa: S311  a sample of rows is not cryptography
    for item, so_far in _items(source):
        taken = so_far
        if not isinstance(item, Row):
            bad += 1
        else:
            # Vitter's algorithm R: every row of those read so far is as likely to be kept.
            if len(drawn) < count:
                drawn.append((read, item))
            elif (place := rng.randrange(read + 1)) < count:
                drawn[place] = (read, item)
            read += 1
        if not small and read >= _BEGINNING:
            break
    else:
        small = True
    rows = tuple(row for _, row in sorted(drawn, key=lambda pair: pair[0]))
    notes = (f"{bad} of {read + bad} rows that were read are no records, and cost nothing",) if bad else ()
    if small:
        return Sample(rows, read, True, notes)
    share = read / (read + bad)
    if size is not None:
        return Sample(rows, round(size * share), True, notes)
    total = round(read * (total_bytes or 0) / taken) if taken else read
    return Sample(rows, total, False, (*notes, f"the first {read:,} rows were looked at"))


def _items(source: Source) -> Iterator[tuple[Row | DeadLetter, int]]:
    """Rows with the number of bytes read so far."""
    before = 0
    for name in source.partitions():
        partition: Partition = source.open(name, None)
        try:
            while not partition.exhausted:
                items = partition.read(_READ)
                for item in items:
                    yield item, before + partition.bytes_read
                if not items and not partition.exhausted:
                    break  # a live input that has nothing right now
            before += partition.bytes_read
        finally:
            partition.close()
