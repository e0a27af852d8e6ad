"""Rows that could not be processed, kept with their reasons until somebody deals with them.

Letters of a run are numbered from one. The number of the last one is the position which the
engine snapshots; opening the box at an older position removes what came later, so that a replay
files those rows again and no row is filed twice.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import orjson

from dspy_stream.errors import StateCorrupt, StateError
from dspy_stream.rows import DeadLetter, written
from dspy_stream.state.batch import Batch
from dspy_stream.state.stamp import RESTORE

if TYPE_CHECKING:
    from dspy_stream.state.store import Store

__all__ = ["DeadLetterBox", "FiledLetter", "index_entry", "last_key", "parse_letter"]

_LARGEST: Final = 99_999_999
_REF: Final = re.compile(r"(.+)/(\d{8})", re.DOTALL)
_LENGTH: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class FiledLetter:
    """A dead letter in its place: its run, its number there, and whether it was dealt with.

    ``resolved`` is the UTC stamp (ISO 8601) of that, empty while the letter is open.
    """

    run_id: str
    seq: int
    letter: DeadLetter
    resolved: str = ""
    note: str = ""

    @property
    def ref(self) -> str:
        """The name by which one letter is asked for."""
        return f"{self.run_id}/{self.seq:08d}"

    def to_json(self) -> dict[str, Any]:
        """The envelope with its place: one JSON object."""
        place = {"ref": self.ref, "resolved": self.resolved, "note": self.note}
        return {**self.letter.to_json(), **place}


Letters = list[FiledLetter]


class DeadLetterBox:
    """The dead letters of one state folder. One run at a time adds to it, after :meth:`open`.

    >>> import tempfile
    >>> from dspy_stream.state.store import Store
    >>> from dspy_stream.rows import Origin
    >>> with tempfile.TemporaryDirectory() as parent, Store.open(parent + "/state") as store:
    ...     box = DeadLetterBox(store)
    ...     box.open("run-1", 0)
    ...     box.append([DeadLetter("r1", Origin("t.jsonl", "0", 4), b"{}", "parse", {"code": "parse"})])
    ...     box.position(), box.get("r1").ref, box.resolve("r1", stamp="2026-01-01T00:00:00Z"), box.list()
    (1, 'run-1/00000001', 1, [])
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._run_id = ""
        self._seq = 0
        self._synced = 0

    def open(self, run_id: str, position: int) -> None:
        """Go on behind a position: letters of this run with a higher number are removed.

        A run with several ends opens one box for each, as ``<run id>.<end>``.

        Raises:
            ValueError: the id is empty or has a slash.
            StateCorrupt: the box has fewer letters than the position says.
        """
        if not run_id or "/" in run_id:
            raise ValueError(f"not a run id: {run_id!r}")
        with self._lock:
            last = self._last(run_id)
            if last < position:
                raise StateCorrupt(
                    f"the dead letters of run {run_id} in {self._store.path} end at {last}, but the run "
                    f"had filed {position}: {RESTORE}"
                )
            batch = Batch()
            for filed in self._filed(f"{run_id}/{position + 1:08d}", f"{run_id}/"):
                self._erase(batch, filed)
            batch.put("meta", last_key(run_id), b"%d" % position)
            self._store.write(batch)
            self._run_id, self._seq, self._synced = run_id, position, position

    def append(self, letters: Iterable[DeadLetter]) -> None:
        """File letters, all or none; a row that died before keeps its ``first_seen``.

        When this returns they survive the process; :meth:`position` makes them survive the machine.

        Raises:
            StateError: the disk is full or failing, or no run was opened.
        """
        with self._lock:
            if not self._run_id:
                raise StateError("the dead-letter box has no run yet; call open(run_id, position) first")
            batch, seq = Batch(), self._seq
            seen: dict[str, str] = {}
            for letter in letters:
                seq += 1
                first = seen.get(letter.row_id) or self._first_seen(letter.row_id) or letter.first_seen
                seen[letter.row_id] = first
                self._store_letter(batch, FiledLetter(self._run_id, seq, replace(letter, first_seen=first)))
            if seq > _LARGEST:
                raise StateError(f"run {self._run_id} has filed {_LARGEST} dead letters; that is its limit")
            if seq == self._seq:
                return
            batch.put("meta", last_key(self._run_id), b"%d" % seq)
            self._store.write(batch)
            self._seq = seq

    def position(self) -> int:
        """Number of the last letter, once all of them are safe from a power loss.

        Raises:
            StateError: the disk is full or failing.
        """
        with self._lock:
            if self._synced != self._seq:
                self._store.sync()
                self._synced = self._seq
            return self._seq

    def list(
        self,
        flow: str | None = None,
        limit: int | None = None,
        *,
        stage: str | None = None,
        code: str | None = None,
        resolved: bool = False,
    ) -> Letters:
        """Letters by run and number, at most ``limit``; open ones only, unless ``resolved``.

        Raises:
            StateCorrupt: a letter is damaged.
        """
        found: Letters = []
        for filed in self.scan():
            letter = filed.letter
            if (
                (flow is None or letter.flow == flow)
                and (stage is None or letter.stage == stage)
                and (code is None or letter.error.get("code") == code)
                and (resolved or not filed.resolved)
            ):
                if limit is not None and len(found) >= limit:
                    break
                found.append(filed)
        return found

    def scan(self) -> Iterator[FiledLetter]:
        """All letters, open and resolved, by run and number, read in pieces."""
        return self._filed("", "")

    def get(self, ref: str) -> FiledLetter | None:
        """The letter of a ref (``run/number``) or the newest one of a row id; None where there is none."""
        letters = self._find(ref)
        return letters[-1] if letters else None

    def resolve(self, ref: str, *, stamp: str, note: str = "") -> int:
        """Mark the letter of a ref, or all of a row id, as dealt with; returns how many were open."""
        with self._lock:
            batch = Batch()
            for filed in self._find(ref):
                if not filed.resolved:
                    self._store_letter(batch, replace(filed, resolved=stamp, note=note), index=False)
            self._store.write(batch)
            return len(batch)

    def remove(self, ref: str) -> int:
        """Delete the letter of a ref, or all of a row id; returns how many there were."""
        with self._lock:
            batch, letters = Batch(), self._find(ref)
            for filed in letters:
                self._erase(batch, filed)
            self._store.write(batch)
            return len(letters)

    def export(self, target: BinaryIO, letters: Iterable[FiledLetter] | None = None) -> int:
        """Write letters (default: all open ones) as JSON lines in the documented envelope."""
        count = 0
        for filed in letters if letters is not None else self.scan():
            if letters is None and filed.resolved:
                continue
            target.write(orjson.dumps(filed.letter.to_json()) + b"\n")
            count += 1
        return count

    def _find(self, ref: str) -> Letters:
        if _REF.fullmatch(ref) and (stored := self._store.get("dead", _utf8(ref))) is not None:
            return [self._read(_utf8(ref), stored)]
        prefix = _row_prefix(ref)
        found: Letters = []
        for key, _ in self._store.scan("ids", prefix):
            place = key[len(prefix) :]
            stored = self._store.get("dead", place)
            if stored is None:
                raise StateCorrupt(f"dead letter {place!r} in {self._store.path} is missing: {RESTORE}")
            found.append(self._read(place, stored))
        return found

    def _first_seen(self, row_id: str) -> str:
        index = self._store.scan("ids", _row_prefix(written(row_id)))
        return next((first.decode() for _, first in index), "")

    def _filed(self, start: str, prefix: str) -> Iterator[FiledLetter]:
        for key, stored in self._store.scan("dead", _utf8(prefix), start=_utf8(start)):
            yield self._read(key, stored)

    def _last(self, run_id: str) -> int:
        stored = self._store.get("meta", last_key(run_id))
        if stored is None:
            return 0
        if not stored.isdigit():
            raise StateCorrupt(f"the dead-letter count of run {run_id} in {self._store.path} is damaged")
        return int(stored)

    def _store_letter(self, batch: Batch, filed: FiledLetter, *, index: bool = True) -> None:
        value = {"letter": filed.letter.to_json()}
        value |= {"resolved": written(filed.resolved), "note": written(filed.note)}
        batch.put("dead", _utf8(filed.ref), orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS))
        if index:
            batch.put("ids", *index_entry(filed))

    def _erase(self, batch: Batch, filed: FiledLetter) -> None:
        batch.delete("dead", _utf8(filed.ref))
        batch.delete("ids", _index_key(filed))

    def _read(self, key: bytes, stored: bytes) -> FiledLetter:
        try:
            return parse_letter(key, stored)
        except ValueError as error:
            raise StateCorrupt(
                f"dead letter {key!r} in {self._store.path} is damaged ({error}); remove it with "
                "`dspy-stream dlq` or restore the folder"
            ) from error


def parse_letter(key: bytes, stored: bytes) -> FiledLetter:
    """A letter from its stored form.

    Raises:
        ValueError: the key or the value is not one of a letter.
    """
    place = _REF.fullmatch(key.decode("utf-8"))
    if place is None:
        raise ValueError("the key is not run/number")
    value = orjson.loads(stored)
    try:
        letter = DeadLetter.from_json(value["letter"])
        return FiledLetter(place[1], int(place[2]), letter, value["resolved"], value["note"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a filed letter: {error!r}") from error


def index_entry(filed: FiledLetter) -> tuple[bytes, bytes]:
    """What leads from the letter's row id to it: a key and a value of the ``ids`` family."""
    return _index_key(filed), _utf8(written(filed.letter.first_seen))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def last_key(run_id: str) -> bytes:
    """Where the ``meta`` family keeps the number of the last letter of a box."""
    return b"dead_letters/" + _utf8(run_id)


def _row_prefix(row_id: str) -> bytes:
    row = _utf8(row_id)
    return b"row" + _LENGTH.pack(len(row)) + row


def _index_key(filed: FiledLetter) -> bytes:
    return _row_prefix(written(filed.letter.row_id)) + _utf8(filed.ref)
