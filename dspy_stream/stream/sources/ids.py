"""Row ids: where they come from, and what two rows with one id mean.

A row is named by the user's id column, or else by a digest of source name, partition and record
number: the same file gives the same ids in every run and in every folder. Two sources of one
flow therefore need two names.

With an id column, a file can name two rows alike. The same payload twice is one question asked
twice, answered from the journal; another payload under a known id is a conflict, and the later
row becomes a dead letter. With a state folder every id of the run is known, without one the last
100,000.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import orjson

from dspy_stream.rows import DeadLetter, Row

__all__ = ["MAX_ID", "ROW_ID", "RecentIds", "check_ids", "check_kept_ids", "derived_ids", "payload_digest"]

ROW_ID = "row_id"
"""The name under which sinks write a row's id, unless they are told another."""

Check = Callable[["list[Row | DeadLetter]"], "list[Row | DeadLetter]"]

MAX_ID = 512
"""Characters of an id taken from a column; ids become keys of the state."""


def derived_ids(name: str, partition: str) -> Callable[[int], str]:
    """A function from the record's number to its id of 16 hexadecimal digits.

    >>> derived_ids("tickets.jsonl", "tickets.jsonl")(0)
    '245b34954cd276b7'
    """
    base = hashlib.blake2b(orjson.dumps([name, partition]), digest_size=8)

    def derive(number: int) -> str:
        state = base.copy()
        state.update(b"%d" % number)
        return state.hexdigest()

    return derive


def payload_digest(row: Row) -> bytes:
    """16 bytes that are equal for equal fields, in whatever order they were written."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    try:
        payload = orjson.dumps(dict(row.fields), default=repr, option=options)
    except TypeError:  # such as a whole number beyond 64 bits
        payload = repr(sorted(row.fields.items(), key=str)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(payload, digest_size=16).digest()


def check_ids(
    records: Sequence[Row | DeadLetter],
    seen: Callable[[Sequence[str]], Mapping[str, bytes]],
    remember: Callable[[Mapping[str, bytes]], None],
) -> list[Row | DeadLetter]:
    """Pass every row whose id is new or known with the same payload; refuse the others in place.

    ``seen`` returns the digests it knows of the given ids; ``remember`` is called at most once,
    with the new ones. The first row of a batch wins. Dead letters pass untouched. Reading the
    same rows again after a crash changes nothing.

    >>> from dspy_stream.rows import Origin
    >>> known: dict[str, bytes] = {}
    >>> rows = [Row("7", {"text": t}, Origin("m", "0", i)) for i, t in enumerate(["a", "a", "b"])]
    >>> checked = check_ids(rows, lambda ids: known, known.update)
    >>> [type(record).__name__ for record in checked]
    ['Row', 'Row', 'DeadLetter']
    """
    digests = {index: payload_digest(row) for index, row in enumerate(records) if isinstance(row, Row)}
    known = dict(seen([record.id for record in records if isinstance(record, Row)]))
    new: dict[str, bytes] = {}
    checked: list[Row | DeadLetter] = []
    for index, record in enumerate(records):
        if isinstance(record, DeadLetter):
            checked.append(record)
            continue
        digest = digests[index]
        first = known.get(record.id)
        if first is None:
            known[record.id] = new[record.id] = digest
        checked.append(record if first is None or first == digest else _conflict(record))
    if new:
        remember(new)
    return checked


def check_kept_ids(records: list[Row | DeadLetter], check: Check) -> list[Row | DeadLetter]:
    """``check`` for the rows alone that keep the id they were written with; ids of places cannot meet."""
    kept = [
        place
        for place, record in enumerate(records)
        if type(record) is Row and record.fields.get(ROW_ID) == record.id
    ]
    if kept:
        checked = check([records[place] for place in kept])
        for place, record in zip(kept, checked, strict=True):
            records[place] = record
    return records


class RecentIds:
    """The ids that were read last, with what was in their rows: the check of a run that keeps nothing.

    It forgets the oldest beyond ``most``, some 200 bytes each. May be used by several threads.

    >>> from dspy_stream.rows import Origin
    >>> recent = RecentIds()
    >>> rows = [Row("7", {"text": text}, Origin("m", "0", n)) for n, text in enumerate("aab")]
    >>> [type(record).__name__ for record in recent.check(rows)]
    ['Row', 'Row', 'DeadLetter']
    """

    __slots__ = ("_known", "_lock", "_most")

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._known: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def check(self, records: list[Row | DeadLetter]) -> list[Row | DeadLetter]:
        """The records, with a dead letter in the place of each row whose id came with other fields before."""
        with self._lock:
            return check_ids(records, self._seen, self._remember)

    def _seen(self, ids: Sequence[str]) -> dict[str, bytes]:
        known = self._known
        return {row_id: known[row_id] for row_id in ids if row_id in known}

    def _remember(self, new: Mapping[str, bytes]) -> None:
        known = self._known
        known.update(new)
        for row_id in list(islice(known, max(0, len(known) - self._most))):
            del known[row_id]


def _conflict(row: Row) -> DeadLetter:
    message = (
        f"{row.origin}: another row with the id {row.id!r} came before it with other fields; "
        "give each row its own id, or name another id column"
    )
    error = {"code": "id_conflict", "type": "IdConflict", "message": message}
    return DeadLetter(row.id, row.origin, row.raw_bytes(), stage="check", error=error)
