"""A new store out of what can still be read of a damaged one; ``dspy-stream state rebuild``.

The damaged store is moved aside, never deleted. Every record is checked before it is taken over.
Where something beside finished calls may be missing, unfinished runs begin anew: the engine's own
files would go on from a place that the store no longer knows. Their rows are read again, and the
calls that were saved are not paid again.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from dspy_stream.errors import ConfigurationError, StateCorrupt, StateError
from dspy_stream.state import exchange, recovery, salvage
from dspy_stream.state import stamp as stamps
from dspy_stream.state.batch import FAMILIES, Batch, Family
from dspy_stream.state.batches import KEYS, RECORDS
from dspy_stream.state.blackbox import file_is_sound
from dspy_stream.state.dead_letters import DeadLetterBox, index_entry, last_key, parse_letter
from dspy_stream.state.folder import FolderLock, prepare
from dspy_stream.state.layout import LAYOUT_KEY, check_layout
from dspy_stream.state.runs import Run, Runs
from dspy_stream.state.store import Store, check_unopened
from dspy_stream.state.verify import verify, wrong_with
from dspy_stream.state.wal import Census

__all__ = ["Rebuilt", "rebuild"]

_PIECE: Final = 256
_KINDS: Final[dict[Family, str]] = {
    "journal": "finished calls",
    "dead": "dead letters",
    "runs": "run records, totals and batches",
    "ids": "row ids",
    "suspects": "suspect rows",
    "meta": "settings",
}


@dataclass(frozen=True)
class Rebuilt:
    """What became of a damaged store.

    Args:
        path: the state folder.
        aside: where the damaged store is now; empty where the folder was sound and nothing was done.
        kept: records taken over, by kind.
        unreadable: records that could be read but were not whole, by kind, and for finished calls
            about how many are missing altogether, as far as the tables tell.
        places: damaged places in the tables, by kind; each holds one record or many.
        lost_changes: changes of the log that cannot be read, at least; what they were cannot be told.
        letters_lost: dead letters that are gone, a sentence for each run. Their rows are nowhere.
        notes: what else follows, a sentence each.
    """

    path: str
    aside: str = ""
    kept: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    lost_changes: int = 0
    letters_lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)


def rebuild(path: str | os.PathLike[str]) -> Rebuilt:
    """Make a new store of what can be read of a damaged one, and move that one aside; blocks.

    A sound folder is left as it is. Needs room for a second database; memory does not grow with it. A
    process that dies meanwhile leaves the old store or the new one, or a folder that is refused until
    this is called again, which finishes it.

    Raises:
        StateLocked: a flow is running.
        StateCorrupt: the state is of another version, which nothing here can read.
        StateError: there is no state, or no room for a new one; nothing was changed.
    """
    if not Path(path).is_dir():
        raise StateError(f"there is no state folder {path}")
    folder = prepare(path)
    lock = FolderLock.acquire(folder)
    try:
        plan = exchange.pending(folder)
        if plan is None:
            if not any((folder / name).exists() for name in ("db", "stamp")):
                raise StateError(f"the folder {folder} holds no state")
            shutil.rmtree(folder / exchange.BUILDING, ignore_errors=True)
            if _is_sound(folder):
                return Rebuilt(str(folder))
            plan = _build(folder)
            exchange.begin(folder, plan)
        exchange.finish(folder, plan)
        return Rebuilt(**plan["report"])
    except OSError as error:
        raise StateError(
            f"cannot rebuild {folder}: {error.strerror or error}; mend the cause and run it again"
        ) from error
    finally:
        lock.release()


def _is_sound(folder: Path) -> bool:
    try:
        check_unopened(folder)
        report = verify(folder)
        if not report.ok or salvage.log_census(folder, _last_stamp(folder)).lost:
            return False
        return not _unfit_runs(folder, report.runs) and file_is_sound(folder / "blackbox")
    except StateCorrupt:
        return False


def _unfit_runs(folder: Path, runs: tuple[Run, ...]) -> list[str]:
    """Run folders that no run can go on from: without a record, or damaged."""
    unfit = recovery.unknown_runs(folder, {run.run_id for run in runs})
    for run in runs:
        if run.resumable and run.recovers and recovery.has_progress(folder, run.run_id):
            try:
                sound = recovery.is_sound(recovery.check(folder, run.run_id))
            except (StateError, ConfigurationError):
                sound = False
            if not sound:
                unfit.append(run.run_id)
    return unfit


# ---------------------------------------------------------------------------------------- building


class _Tally:
    """What was not taken over, by family."""

    def __init__(self) -> None:
        self.wrong: Counter[Family] = Counter()
        self.places: Counter[Family] = Counter()
        self.estimate = 0


def _build(folder: Path) -> dict[str, Any]:
    """Make the new store beside the old one; the plan for their exchange."""
    building = folder / exchange.BUILDING
    building.mkdir(mode=0o700)
    try:
        log = salvage.log_census(folder, _last_stamp(folder))
        tally = _Tally()
        with Store.open(building / "new") as store:
            whole = _copy_all(folder, store, log, tally)
            notes = _mend_batches(store)
            lost = _mend_letters(store)
            runs = Runs(store).list()
            apart = _set_apart(folder, runs, whole)
            kept = {_KINDS[name]: sum(1 for _ in store.scan(name)) for name in FAMILIES}
            kept[_KINDS["meta"]] -= 1  # the version stamp
            notes += _notes(runs, apart, whole, store)
        missing = Counter({_KINDS[name]: count for name, count in tally.wrong.items()})
        gone = tally.estimate - kept[_KINDS["journal"]]
        if tally.places["journal"] and gone > 0:
            missing[_KINDS["journal"]] = max(missing[_KINDS["journal"]], gone)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    aside = exchange.aside_name(folder)
    report = Rebuilt(
        path=str(folder),
        aside=str(folder / aside),
        kept=kept,
        unreadable=dict(missing),
        places={_KINDS[name]: count for name, count in tally.places.items()},
        lost_changes=0 if whole else log.lost,
        letters_lost=[said for run_id, said in lost.items() if run_id not in apart],
        notes=notes,
    )
    files = [] if file_is_sound(folder / "blackbox") else ["blackbox"]
    return {"aside": aside, "runs": apart, "files": files, "report": report.to_json()}


def _copy_all(folder: Path, store: Store, log: Census, tally: _Tally) -> bool:
    """Take over what can be read; True where nothing but finished calls can be missing."""
    sick = salvage.as_it_is(folder, _last_stamp(folder), log)
    if sick is not None:
        try:
            tally.estimate = sick.estimate("journal")
            for family in FAMILIES:
                _copy(sick, family, folder, store, tally)
        finally:
            sick.close()
        others = (tally.places + tally.wrong).keys() - {"journal"}
        if sick.log_whole and not tally.places:
            return not others
        if sick.log_whole and not others:
            _copy_repaired(folder, store, log.families)
            return True
        if not tally.places:
            return False  # the log alone is damaged, and a repair would read no more of it
    _copy_repaired(folder, store, log.families, None if sick is not None else tally)
    return False


def _copy_repaired(
    folder: Path, store: Store, families: dict[int, Family], tally: _Tally | None = None
) -> None:
    sick = salvage.repaired(folder, folder / exchange.BUILDING / "tables", families)
    if sick is None:
        return
    try:
        for family in FAMILIES:
            _copy(sick, family, folder, store, tally if tally is not None else _Tally())
    finally:
        sick.close()


def _copy(sick: salvage.Sick, family: Family, folder: Path, store: Store, tally: _Tally) -> None:
    """Add the sound entries of a family that the store does not have yet."""
    for piece in _pieces(sick.entries(family)):
        sound: list[tuple[bytes, bytes]] = []
        for entry in piece:
            if entry is None:
                tally.places[family] += 1
            elif family == "meta" and entry[0] == LAYOUT_KEY:
                _check_version(folder, entry[1])
            elif wrong_with(family, *entry):
                tally.wrong[family] += 1
            elif family != "ids" or not entry[0].startswith(b"row"):  # those come with their letters
                sound.append(entry)
        there = store.get_many(family, [key for key, _ in sound]) if sound else []
        batch = Batch()
        for (key, value), old in zip(sound, there, strict=True):
            if old is None:
                batch.put(family, key, value)
                if family == "dead":
                    batch.put("ids", *index_entry(parse_letter(key, value)))
        store.write(batch)


def _pieces(entries: Iterator[salvage.Entry | None]) -> Iterator[list[salvage.Entry | None]]:
    piece: list[salvage.Entry | None] = []
    for entry in entries:
        piece.append(entry)
        if len(piece) >= _PIECE:
            yield piece
            piece = []
    yield piece


def _check_version(folder: Path, value: bytes) -> None:
    """Refuse what another version wrote; a stamp that cannot be read is no obstacle here.

    Raises:
        StateCorrupt: it was written by an older or a newer version.
    """
    try:
        known = isinstance(orjson.loads(value)["layout"], int)
    except (ValueError, TypeError, KeyError):
        known = False
    if known:
        check_layout(folder, value, empty=False)


def _last_stamp(folder: Path) -> stamps.Stamp | None:
    try:
        return stamps.read(folder)
    except StateCorrupt:
        return None


# ------------------------------------------------------------------------------ what belongs together


def _mend_batches(store: Store) -> list[str]:
    """Drop halves of batches; a sentence for each that is still at a provider."""
    found: list[str] = []
    batch = Batch()
    for start, other in ((RECORDS, KEYS), (KEYS, RECORDS)):
        for key, value in store.scan("runs", start):
            name = key[len(start) :]
            if store.get("runs", other + name) is None:
                batch.delete("runs", key)
                if start == RECORDS:
                    record = orjson.loads(value)
                    found.append(
                        f"batch {record['id']} ({record['batch_id'] or 'not sent'}, {record['lane']}) has "
                        "lost the list of its requests: they are asked, and paid, again"
                    )
    store.write(batch)
    return found


def _mend_letters(store: Store) -> dict[str, str]:
    """Set the count of each box right; by run id, what is gone."""
    present: Counter[str] = Counter()
    highest: Counter[str] = Counter()
    for filed in DeadLetterBox(store).scan():
        present[filed.run_id] += 1
        highest[filed.run_id] = max(highest[filed.run_id], filed.seq)
    start = last_key("")
    for key, value in store.scan("meta", start):
        name = key[len(start) :].decode("utf-8", "replace")
        highest[name] = max(highest[name], int(value))
    batch = Batch()
    gone: Counter[str] = Counter()
    for name, last in highest.items():
        batch.put("meta", last_key(name), b"%d" % last)
        gone[name.split(".")[0]] += last - present[name]
    store.write(batch)
    for run in Runs(store).list():
        due = run.totals.get("dead_letters", 0)
        here = sum(count for name, count in present.items() if name.split(".")[0] == run.run_id)
        if run.status == "finished" and isinstance(due, int):
            gone[run.run_id] = max(gone[run.run_id], due - here)
    return {
        run_id: f"{count:,} dead letters of run {run_id} are lost: their rows are neither in its output nor "
        "here; run the flow again to have them (calls that were saved are not paid again)"
        for run_id, count in gone.items()
        if count > 0
    }


def _set_apart(folder: Path, runs: tuple[Run, ...], whole: bool) -> list[str]:
    """Run folders that the new store cannot go on from."""
    unfit = _unfit_runs(folder, runs)
    if not whole:
        unfit += [run.run_id for run in runs if run.resumable and (folder / "runs" / run.run_id).exists()]
    return sorted(set(unfit))


def _notes(runs: tuple[Run, ...], apart: list[str], whole: bool, store: Store) -> list[str]:
    known = {run.run_id: run for run in runs}
    notes = [
        f"run {name} of flow {known[name].flow} begins anew: its rows are read again, and the calls that "
        "were saved are not paid again"
        for name in apart
        if name in known
    ]
    notes += [
        f"the record of run {name} is lost: give --fresh to replace what it wrote, or write elsewhere"
        for name in apart
        if name not in known
    ]
    if not whole:
        notes += [
            f"what run {run.run_id} of flow {run.flow} was to retry is lost: run the flow before a retry"
            for run in runs
            if run.flow.endswith(".retry")
            and run.resumable
            and store.get("meta", b"retry/" + run.flow.encode()) is None
        ]
    return notes
