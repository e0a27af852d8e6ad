from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dspy_stream.clock import FakeClock
from dspy_stream.errors import ConfigurationError, ProgramChanged, StateCorrupt
from dspy_stream.state import recovery
from dspy_stream.state.recorder import private_key, spend_key
from dspy_stream.state.runs import Run, Runs, RunSpec, seen_prefix
from dspy_stream.state.spend import Spend
from dspy_stream.state.store import Store

SPEC = RunSpec("triage", "digest-1", "tickets.jsonl", "replies.jsonl")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000.0)


@pytest.fixture
def runs(store: Store, clock: FakeClock) -> Runs:
    return Runs(store, clock=clock, rng=random.Random(1), keep=3)


def begun(runs: Runs, spec: RunSpec = SPEC) -> Run:
    """A run of which the engine has stored something."""
    run, resumed = runs.begin(spec)
    assert not resumed
    (runs.recovery_folder(run) / "part-0.sqlite3").write_bytes(b"")
    return run


def test_a_new_run_has_a_stamped_private_folder(runs: Runs, store: Store) -> None:
    run = begun(runs)
    folder = runs.recovery_folder(run)
    assert folder == store.path / "runs" / run.run_id / "recovery"
    assert (folder / "RUN").read_text() == run.run_id
    assert [p.stat().st_mode & 0o777 for p in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3
    assert run.started == "2023-11-14T22:13:20.000Z"
    assert Run.from_bytes(store.get("runs", b"run/" + run.run_id.encode()) or b"") == run


@pytest.mark.parametrize("end", ["running", "stopped", "failed"])
def test_an_unfinished_run_is_continued(runs: Runs, clock: FakeClock, end: str) -> None:
    run = begun(runs)
    if end == "stopped":
        runs.stop(run, {"rows_in": 5})
    elif end == "failed":
        runs.fail(run, "the disk is full")
    clock.advance(60)
    again, resumed = runs.begin(SPEC)
    assert resumed
    assert (again.run_id, again.incarnation, again.status, again.reason) == (run.run_id, 2, "running", "")
    assert again.started == run.started < again.updated


def test_a_finished_run_is_followed_by_a_new_one(runs: Runs) -> None:
    first = begun(runs)
    assert runs.finish(first, {"rows_out": 7}).totals == {"rows_out": 7}
    second, resumed = runs.begin(SPEC)
    assert not resumed
    assert second.run_id > first.run_id
    assert [run.status for run in runs.list()] == ["finished", "running"]


def test_only_the_newest_run_of_the_same_flow_counts(runs: Runs, clock: FakeClock) -> None:
    begun(runs)
    other = begun(runs, replace(SPEC, flow="other"))
    runs.begin(SPEC, fresh=True)
    newest, _ = runs.begin(SPEC, fresh=True)
    clock.advance(-86_400)  # the clock went back: ids must still sort
    runs.finish(newest)
    later, resumed = runs.begin(SPEC)
    assert not resumed
    assert later.run_id == max(run.run_id for run in runs.list("triage"))
    assert runs.newest("triage") == later
    assert runs.newest("other") == other
    assert runs.newest("unknown") is None


def test_another_program_is_asked_about(runs: Runs) -> None:
    run = begun(runs)
    changed = replace(SPEC, program_digest="digest-2")
    with pytest.raises(ProgramChanged, match=r"digest-1.*digest-2.*--accept-program-change") as caught:
        runs.begin(changed)
    assert caught.value.exit_code == 78
    assert runs.get(run.run_id) == run
    again, resumed = runs.begin(changed, accept_program_change=True)
    assert resumed
    assert again.program_digest == "digest-2"


def test_another_program_begins_anew_where_nothing_had_come_of_the_first(runs: Runs, store: Store) -> None:
    nothing = {"rows_in": 20, "rows_out": 0, "dead_letters": 0, "dropped": 3}
    changed = replace(SPEC, program_digest="digest-2")
    first = begun(runs)
    runs.fail(first, "401: no such key", nothing)
    second, resumed = runs.begin(changed)
    assert not resumed
    assert second.run_id > first.run_id
    (runs.recovery_folder(second) / "part-0.sqlite3").write_bytes(b"")
    runs.fail(second, "404: no such model", nothing)
    _, resumed = runs.begin(changed)
    assert resumed, "the same program goes on"


@pytest.mark.parametrize("end", ["row", "letter", "paid", "stopped"])
def test_another_program_is_asked_about_where_anything_had(runs: Runs, store: Store, end: str) -> None:
    run = begun(runs)
    totals = {"rows_out": int(end == "row"), "dead_letters": int(end == "letter")}
    if end == "paid":
        store.put("runs", spend_key(run.run_id), Spend(calls=1).to_bytes())
    if end == "stopped":
        runs.stop(run, totals)
    else:
        runs.fail(run, "401: revoked", totals)
    with pytest.raises(ProgramChanged):
        runs.begin(replace(SPEC, program_digest="digest-2"))


@pytest.mark.parametrize("changed", [replace(SPEC, source="x.jsonl"), replace(SPEC, sink="x.jsonl")])
def test_another_source_or_sink_is_never_mixed_in(runs: Runs, changed: RunSpec) -> None:
    run = begun(runs)
    with pytest.raises(ProgramChanged, match="--fresh"):
        runs.begin(changed, accept_program_change=True)
    fresh, resumed = runs.begin(changed, fresh=True)
    assert not resumed
    assert fresh.run_id != run.run_id
    abandoned = runs.get(run.run_id)
    assert abandoned is not None
    assert abandoned.status == "failed"


def test_without_recovery_files_a_new_run_replays_from_the_journal(runs: Runs) -> None:
    run = begun(runs)
    shutil.rmtree(runs.recovery_folder(run))
    again, resumed = runs.begin(SPEC)
    assert not resumed
    old = runs.get(run.run_id)
    assert old is not None
    assert (old.status, old.reason) == ("failed", "it had committed nothing, or its recovery files are gone")
    assert again.run_id != run.run_id


def test_recovery_files_of_another_run_are_refused(runs: Runs) -> None:
    first, second = begun(runs), begun(runs, replace(SPEC, flow="other"))
    one, two = runs.recovery_folder(first), runs.recovery_folder(second)
    shutil.rmtree(one)
    two.rename(one)
    with pytest.raises(StateCorrupt, match=f"belongs to run.*{second.run_id}") as caught:
        runs.begin(SPEC)
    assert caught.value.exit_code == 76
    (one / "RUN").unlink()
    with pytest.raises(StateCorrupt, match="lost its run id"):
        runs.begin(SPEC)


def test_recovery_files_without_their_database_are_refused(folder: Path, clock: FakeClock) -> None:
    with Store.open(folder) as store:
        run = begun(Runs(store, clock=clock))
    shutil.rmtree(folder / "db")
    (folder / "stamp").unlink()
    with Store.open(folder) as store:
        with pytest.raises(
            StateCorrupt, match=f"runs/{run.run_id} belongs to a run which the database does not"
        ):
            Runs(store, clock=clock).begin(SPEC)
        shutil.rmtree(folder / "runs" / run.run_id)
        _, resumed = Runs(store, clock=clock).begin(SPEC)
        assert not resumed


@pytest.mark.parametrize("where", ["recovery", "run", "runs"])
@pytest.mark.parametrize("fault", ["mode", "owner", "link"])
def test_a_recovery_folder_that_others_can_reach_is_refused(
    runs: Runs, tmp_path: Path, where: str, fault: str
) -> None:
    run = begun(runs)
    target = runs.recovery_folder(run)
    for _ in range(["recovery", "run", "runs"].index(where)):
        target = target.parent
    if fault == "mode":
        target.chmod(0o770)
    elif fault == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder to somebody else")
        os.chown(target, 12345, -1)
    else:
        target.rename(tmp_path / "moved")
        target.symlink_to(tmp_path / "moved")
    with pytest.raises(ConfigurationError) as caught:
        runs.begin(SPEC)
    assert caught.value.exit_code == 78
    with pytest.raises(ConfigurationError):
        runs.recovery_folder(run)


@pytest.mark.parametrize("fault", ["link", "folder", "owner", "mode"])
def test_a_strange_recovery_file_is_refused(runs: Runs, tmp_path: Path, fault: str) -> None:
    run = begun(runs)
    strange = runs.recovery_folder(run) / "part-1.sqlite3"
    if fault == "link":
        (tmp_path / "evil").write_bytes(b"pickle")
        strange.symlink_to(tmp_path / "evil")
    elif fault == "folder":
        strange.mkdir()
    else:
        strange.write_bytes(b"pickle")
        if fault == "mode":
            strange.chmod(0o666)
        elif os.geteuid() != 0:
            pytest.skip("only root can give a file to somebody else")
        else:
            os.chown(strange, 12345, -1)
    with pytest.raises(ConfigurationError, match=r"part-1\.sqlite3"):
        runs.begin(SPEC)


def test_a_run_without_recovery_files_of_its_own_is_continued(runs: Runs, store: Store) -> None:
    spec = replace(SPEC, recovers=False)
    run, _ = runs.begin(spec)
    assert not (store.path / "runs").exists()
    again, resumed = runs.begin(spec)
    assert resumed
    assert again.run_id == run.run_id


def test_old_runs_are_dropped_whole(runs: Runs, store: Store) -> None:
    first = begun(runs)
    name = first.run_id
    store.put("runs", spend_key(name), Spend().to_bytes())
    store.put("journal", private_key(name, "row", "step", 0), b"12345678x")
    store.put("journal", b"shared", b"12345678x")
    store.put("ids", seen_prefix(name) + b"row", b"digest")
    runs.finish(first)
    for _ in range(3):
        runs.finish(begun(runs))
    assert len(runs.list()) == 3
    assert runs.get(name) is None
    assert not (store.path / "runs" / name).exists()
    assert [store.get("runs", spend_key(name)), store.get("journal", b"shared")] == [None, b"12345678x"]
    assert list(store.scan("journal", b"private/")) == []
    assert list(store.scan("ids", b"seen")) == []
    assert runs.prune("triage", 1) == 2
    runs.drop("1700000000-unknown")


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "A", "x" * 65, "a\0b", ".", "a\n"])
def test_a_run_id_from_the_disk_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(StateCorrupt, match="no run id"):
        recovery.folder_of(tmp_path, name)


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"{}", b'{"run_id": 1}', b"1", b'{"run_id":"x","flow":"f","unknown":1}']
)
def test_a_damaged_record_is_named(runs: Runs, store: Store, value: bytes) -> None:
    store.put("runs", b"run/x", value)
    with pytest.raises(StateCorrupt, match="run record"):
        runs.begin(SPEC)


def test_bytewax_does_not_mind_the_stamp(runs: Runs) -> None:
    import bytewax.operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import TestingSink, TestingSource, run_main

    run, _ = runs.begin(SPEC)
    folder = runs.recovery_folder(run)
    init_db_dir(folder, 2)
    out: list[int] = []
    for part in ([1, 2, TestingSource.ABORT(), 3], [1, 2, 3]):
        flow = Dataflow("t")
        op.output("out", op.input("in", flow, TestingSource(part)), TestingSink(out))
        run_main(flow, recovery_config=RecoveryConfig(str(folder)))
    assert set(out) == {1, 2, 3}
    again, resumed = runs.begin(SPEC)
    assert resumed
    assert again.run_id == run.run_id
