"""The log of the database, read without it: only for a store that does not open any more.

A log is blocks of 32 KiB, a block records, and one or more records a batch of changes, each under
the number of its family. Which family a number means stands in the manifest, which may be what is
lost; here it is told by what the entries look like.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from dspy_stream.state.batch import Family

__all__ = ["Change", "Census", "batches", "census", "changes"]

_BLOCK: Final = 32768
_RECORD: Final = struct.Struct("<IHB")
_BATCH: Final = struct.Struct("<QI")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_PUT, _PUT_IN = 1, 5
_WITH_FAMILY: Final = frozenset({4, 5, 14})  # delete, put, delete a range
_WITH_VALUE: Final = frozenset({1, 5, 14, 15})
_KNOWN: Final = frozenset({0, 1, 4, 5, 14, 15})
_SAMPLE: Final = 1000


class Change(NamedTuple):
    """One change of a batch; ``value`` is None where the key was removed."""

    family: int
    key: bytes
    value: bytes | None


class Census(NamedTuple):
    """What some logs hold: the family of each number, and at least how many changes cannot be read."""

    families: dict[int, Family]
    lost: int


def batches(log: bytes) -> Iterator[bytes | None]:
    """The batches of a log whose checksums are right, in order; None at each place that is damaged.

    That place goes on to the end of its block, as for the database: the length may be wrong, too. A batch
    that the end of the log cuts off is not damage: that is how a crash leaves it.
    """
    position = 0
    part: bytes | None = None  # of a batch that goes on; a first record may be empty
    while position + _RECORD.size <= len(log):
        left = _BLOCK - position % _BLOCK
        start = position + _RECORD.size
        checksum, length, kind = _RECORD.unpack_from(log, position)
        end = start + length
        if left < _RECORD.size:
            position += left
            continue
        if (
            end > position + left
            or not _FULL <= kind <= _LAST
            or _unmasked(checksum) != _crc32c(log[start - 1 : end])
        ):
            if end <= len(log):
                yield None
            position, part = position + left, None
            continue
        position = end
        data = log[start:end]
        if kind == _FULL:
            part = None
            yield data
        elif kind == _FIRST:
            part = data
        elif part is not None:
            part += data
            if kind == _LAST:
                yield part
                part = None


def changes(batch: bytes) -> tuple[int, list[Change]]:
    """The number of a batch's first change, and its changes.

    Raises:
        ValueError: it is no batch.
    """
    try:
        first, count = _BATCH.unpack_from(batch)
        position, found = _BATCH.size, []
        while position < len(batch):
            kind = batch[position]
            if kind not in _KNOWN:
                raise ValueError(f"a change of an unknown kind, {kind}")
            family, position = _number(batch, position + 1) if kind in _WITH_FAMILY else (0, position + 1)
            key, position = _text(batch, position)
            value: bytes | None = None
            if kind in _WITH_VALUE:
                value, position = _text(batch, position)
            found.append(Change(family, key, value if kind in (_PUT, _PUT_IN) else None))
    except (struct.error, IndexError) as error:
        raise ValueError(f"a batch that is cut short: {error}") from error
    if len(found) != count:
        raise ValueError(f"{len(found)} changes instead of {count}")
    return first, found


def census(logs: Iterable[bytes], durable: int = 0) -> Census:
    """Look through logs, oldest first; ``durable`` is the number of the last change that was synced."""
    votes: dict[int, Counter[Family]] = {}
    lost, due, damaged = 0, 0, False
    for log in logs:
        for batch in batches(log):
            try:
                first, found = changes(batch or b"")
            except ValueError:
                damaged = True
                continue
            lost += max(0, first - due) if due else 0
            due = max(due, first + len(found))
            for change in found:
                seen = votes.setdefault(change.family, Counter())
                if change.value is not None and seen.total() < _SAMPLE:
                    seen[_family_of(change.key)] += 1
    if damaged:
        lost = max(1, lost + max(0, durable + 1 - due))
    told = [(*seen.most_common(1)[0], number) for number, seen in votes.items() if seen and number]
    best = {family: number for family, _, number in sorted(told, key=lambda vote: vote[1])}
    return Census({number: family for family, number in best.items()}, lost)


def _family_of(key: bytes) -> Family:
    return next((family for family, fits in _LOOKS.items() if fits(key)), "journal")


def _begins(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda key: key.startswith(starts)


# Private calls begin with a word of their own, and shared ones with a digest: what is left is theirs.
_LOOKS: Final[dict[Family, Callable[[bytes], bool]]] = {
    "meta": lambda key: key == b"layout" or key.startswith((b"dead_letters/", b"retry/", b"outside/")),
    "journal": _begins(b"private/"),
    "runs": _begins(b"run/", b"spend/", b"batch/", b"batchkeys/"),
    "ids": _begins(b"seen\0", b"row\0"),
    "suspects": lambda key: key == b"counted" or key.startswith(b"row/"),
    "dead": lambda key: re.fullmatch(rb"[\w.-]+/\d{8}", key) is not None,
}


def _number(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7


def _text(data: bytes, position: int) -> tuple[bytes, int]:
    length, position = _number(data, position)
    end = position + length
    if end > len(data):
        raise IndexError("a text goes on behind the end")
    return data[position:end], end


def _table() -> tuple[int, ...]:
    made = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        made.append(number)
    return tuple(made)


_TABLE: Final = _table()


def _crc32c(data: bytes) -> int:
    table, crc = _TABLE, 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _unmasked(checksum: int) -> int:
    turned = (checksum - 0xA282EAD8) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF
