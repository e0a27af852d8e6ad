"""Looking at a state folder, checking all of it, and clearing out what is old.

``inspect`` and ``verify`` read a view of their own and may run beside a flow; ``gc`` needs the
folder for itself.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from dspy_stream.errors import StateCorrupt
from dspy_stream.state.batch import FAMILIES, Family
from dspy_stream.state.batches import KEYS, RECORDS, Ledger, check_batch
from dspy_stream.state.dead_letters import DeadLetterBox, parse_letter
from dspy_stream.state.journal import MAX_BYTES, Journal, read_spend
from dspy_stream.state.layout import LAYOUT_KEY
from dspy_stream.state.runs import Run, Runs
from dspy_stream.state.spend import Spend
from dspy_stream.state.store import Store
from dspy_stream.types import BatchRecord

__all__ = ["Cleared", "FamilyReport", "Report", "gc", "inspect", "verify", "wrong_with"]

_STAMP: Final = struct.Struct(">Q")
_MOST_PROBLEMS: Final = 50
# Seconds after which no provider has the results of a batch any more.
_BATCH_KEPT: Final = 31 * 86400.0


@dataclass(frozen=True, slots=True)
class FamilyReport:
    """Keys of one family, and the bytes of keys and values; None where they were not counted."""

    keys: int
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a state folder holds.

    ``verified`` says that every entry was read and checked, ``problems`` what was wrong with them;
    without it the number of keys is an estimate. ``spend`` is by run id. ``batches`` are those whose
    results are still at a provider.
    """

    path: str
    layout: int
    package: str
    disk_bytes: int
    families: Mapping[str, FamilyReport]
    runs: tuple[Run, ...]
    spend: Mapping[str, Spend]
    dead_letters_open: int
    dead_letters_resolved: int
    batches: tuple[BatchRecord, ...] = ()
    verified: bool = False
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        value = {name: getattr(self, name) for name in self.__slots__}
        value["families"] = {name: asdict(family) for name, family in self.families.items()}
        value["runs"] = [run.to_json() for run in self.runs]
        value["spend"] = {run: spend._asdict() | {"cost": spend.cost} for run, spend in self.spend.items()}
        value["batches"] = [batch._asdict() for batch in self.batches]
        value["problems"] = list(self.problems)
        return value


@dataclass(frozen=True, slots=True)
class Cleared:
    """What ``gc`` removed, and the size of the database before and after it."""

    entries: int
    bytes: int
    runs: int
    disk_before: int
    disk_after: int

    def to_json(self) -> dict[str, int]:
        """One JSON object."""
        return asdict(self)


def inspect(path: str | os.PathLike[str]) -> Report:
    """Sizes, counts, runs and dead letters, without reading the journal; beside a running flow too.

    Raises:
        StateCorrupt: damaged, or of another version.
        StateError: there is no state at this path.
    """
    with Store.open(path, read_only=True) as store:
        families: dict[str, FamilyReport] = {name: FamilyReport(store.estimate(name)) for name in FAMILIES}
        return _report(store, families)


def verify(path: str | os.PathLike[str]) -> Report:
    """Read every entry, check its checksum and its form; about 2 us an entry.

    Damage is listed in the report's ``problems``; beside a running flow what is written meanwhile
    is not looked at.

    Raises:
        StateCorrupt: so damaged that it cannot be opened, or of another version.
        StateError: there is no state at this path.
    """
    with Store.open(path, read_only=True) as store:
        families: dict[str, FamilyReport] = {}
        problems: list[str] = []
        for family in FAMILIES:
            families[family] = _check_family(store, family, problems)
        if problems:
            return _report(store, families, verified=True, problems=tuple(problems), trust=False)
        return _report(store, families, verified=True)


def gc(
    path: str | os.PathLike[str],
    *,
    ttl: float | None = None,
    max_bytes: int | None = MAX_BYTES,
    runs: int | None = None,
) -> Cleared:
    """Remove journal entries older than ``ttl`` seconds or beyond ``max_bytes``, oldest first.

    With ``runs``, keep only that many runs of each flow. Batches whose results no provider can have any
    more are forgotten.

    Raises:
        StateLocked: a flow is running.
    """
    with Store.open(path, create=False) as store:
        before = store.disk_bytes()
        Ledger(store).forget_before(time.time() - _BATCH_KEPT)
        entries, size = Journal(store).gc(ttl=ttl, max_bytes=max_bytes)
        dropped = 0
        if runs is not None:
            records = Runs(store)
            for flow in sorted({run.flow for run in records.list()}):
                dropped += records.prune(flow, runs)
        return Cleared(entries, size, dropped, before, store.disk_bytes())


def _report(
    store: Store,
    families: Mapping[str, FamilyReport],
    *,
    verified: bool = False,
    problems: tuple[str, ...] = (),
    trust: bool = True,
) -> Report:
    stamp = orjson.loads(store.get("meta", LAYOUT_KEY) or b"{}")
    runs = Runs(store).list() if trust else ()
    letters = [filed.resolved for filed in DeadLetterBox(store).scan()] if trust else []
    resolved = sum(1 for moment in letters if moment)
    return Report(
        path=str(store.path),
        layout=stamp["layout"],
        package=stamp["package"],
        disk_bytes=store.disk_bytes(),
        families=families,
        runs=runs,
        spend={run.run_id: read_spend(store, run.run_id) for run in runs},
        dead_letters_open=len(letters) - resolved,
        dead_letters_resolved=resolved,
        batches=Ledger(store).list() if trust else (),
        verified=verified,
        problems=problems,
    )


def _check_family(store: Store, family: Family, problems: list[str]) -> FamilyReport:
    keys, size = 0, 0
    try:
        for key, value in store.scan(family):
            keys, size = keys + 1, size + len(key) + len(value)
            wrong = wrong_with(family, key, value)
            if wrong and len(problems) < _MOST_PROBLEMS:
                problems.append(f"{family} {key[:80]!r}: {wrong}")
    except StateCorrupt as error:
        problems.append(f"{family} after {keys} entries: {error}")
    return FamilyReport(keys, size)


def wrong_with(family: Family, key: bytes, value: bytes) -> str:
    """What is wrong with an entry; empty where nothing is."""
    try:
        _CHECKS[family](key, value)
    except ValueError as error:
        return str(error)
    return ""


def _check_journal(_key: bytes, value: bytes) -> None:
    if len(value) < _STAMP.size:
        raise ValueError("the time is cut short")


def _check_runs(key: bytes, value: bytes) -> None:
    if key.startswith(b"run/"):
        run = Run.from_bytes(value)
        if key != b"run/" + run.run_id.encode():
            raise ValueError(f"the record is that of run {run.run_id}")
    elif key.startswith((RECORDS, KEYS)):
        check_batch(key, value)
    elif key.startswith(b"spend/"):
        Spend.from_bytes(value)
    else:
        raise ValueError("an unknown kind of key")


def _check_dead(key: bytes, value: bytes) -> None:
    parse_letter(key, value)


def _check_meta(key: bytes, value: bytes) -> None:
    if key.startswith((b"retry/", b"outside/")):  # the plan of a retry, the outputs of a standing run
        orjson.loads(value)
    elif key != LAYOUT_KEY:
        _check_number(key, value)


def _check_number(_key: bytes, value: bytes) -> None:
    if not value.isdigit():
        raise ValueError("not a number")


def _check_ids(key: bytes, value: bytes) -> None:
    if key.startswith(b"seen\0"):
        if not value:
            raise ValueError("no digest")
        return
    if not key.startswith(b"row"):
        raise ValueError("an unknown kind of key")
    value.decode("utf-8")


_CHECKS: Final[Mapping[Family, Callable[[bytes, bytes], None]]] = {
    "meta": _check_meta,
    "journal": _check_journal,
    "dead": _check_dead,
    "runs": _check_runs,
    "ids": _check_ids,
    "suspects": _check_number,
}
