"""Dead letters of earlier runs whose records a run reads again: they are closed when that run is through.

A row id may be a place in a file, and tomorrow's file has other rows in the same places. So a letter
is closed by the same record under the same id only, and stays open where another one has come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from dspy_stream.rows import DeadLetter, Row, written
from dspy_stream.state.batch import Batch
from dspy_stream.state.dead_letters import DeadLetterBox, FiledLetter
from dspy_stream.state.runs import again_prefix
from dspy_stream.state.store import Store

__all__ = ["Successors"]


class Successors:
    """What a run reads again of earlier runs' letters.

    Which letters were met is stored before their rows enter the flow, so that :meth:`close` knows of
    them after a crash, too. While no letter is open, rows cost nothing.

    >>> import tempfile
    >>> from dspy_stream.rows import Origin
    >>> place = Origin("t.jsonl", "0", 0)
    >>> with tempfile.TemporaryDirectory() as parent, Store.open(parent + "/state") as store:
    ...     box = DeadLetterBox(store)
    ...     box.open("run-1", 0)
    ...     box.append([DeadLetter(row_id, place, b"{}", "map", {"code": "x"}) for row_id in "ab"])
    ...     again = Successors(store, "run-2", box.list())
    ...     _ = again.note([Row("a", {}, place), Row("b", {"other": 1}, place)])
    ...     again.close("2026-01-01T00:00:00Z"), [filed.letter.row_id for filed in box.list()]
    (1, ['b'])
    """

    def __init__(self, store: Store, run_id: str, letters: Iterable[FiledLetter]) -> None:
        self._store = store
        self._run_id = run_id
        self._prefix = again_prefix(run_id)
        self._open: dict[str, list[tuple[bytes, str]]] = {}
        for filed in letters:
            self._open.setdefault(filed.letter.row_id, []).append((_digest(filed.letter.raw), filed.ref))

    def note(self, records: list[Row | DeadLetter]) -> list[Row | DeadLetter]:
        """The records as they are; which letters they come after is kept.

        Raises:
            StateError: the disk is full or failing.
        """
        if not self._open:
            return records
        batch = Batch()
        for record in records:
            known = self._open.get(written(record.id if isinstance(record, Row) else record.row_id))
            if known is None:
                continue
            digest = _digest(record.raw_bytes() if isinstance(record, Row) else record.raw)
            for old, ref in known:
                if old == digest:
                    batch.put("ids", self._prefix + ref.encode("utf-8", "backslashreplace"), b"1")
        if len(batch):
            self._store.write(batch)
        return records

    def close(self, stamp: str) -> int:
        """Resolve the letters that were met; returns how many. Doing so again changes nothing.

        Raises:
            StateError: the disk is full or failing.
        """
        box, count = DeadLetterBox(self._store), 0
        for key, _ in self._store.scan("ids", self._prefix):
            ref = key[len(self._prefix) :].decode()
            count += box.resolve(ref, stamp=stamp, note=f"superseded by run {self._run_id}")
        self._store.delete_prefix("ids", self._prefix)
        return count


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()
