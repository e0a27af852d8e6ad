import sqlite3
from contextlib import closing

import pytest

from dspy_stream.errors import StateError
from dspy_stream.state import leftovers
from dspy_stream.state.leftovers import drop_uncommitted


def part(folder, index, *, executions=(), fronts=(), snaps=()):
    path = folder / f"part-{index}.sqlite3"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE exs (ex_num INTEGER, worker_count INTEGER, resume_epoch INTEGER)")
        database.execute(
            "CREATE TABLE fronts (ex_num INTEGER, worker_index INTEGER, worker_frontier INTEGER)"
        )
        database.execute("CREATE TABLE snaps (step_id TEXT, state_key TEXT, snap_epoch INTEGER)")
        database.executemany("INSERT INTO exs VALUES (?, ?, ?)", executions)
        database.executemany("INSERT INTO fronts VALUES (?, ?, ?)", fronts)
        database.executemany("INSERT INTO snaps VALUES (?, ?, ?)", snaps)
    return path


def kept(path):
    with closing(sqlite3.connect(path)) as database:
        return sorted(database.execute("SELECT state_key, snap_epoch FROM snaps"))


def test_what_one_worker_wrote_beyond_the_other_is_dropped(tmp_path):
    snaps = [("s", "a", 5), ("s", "a", 7), ("s", "b", 6)]
    first = part(tmp_path, 0, executions=[(0, 2, 1), (1, 2, 4)], fronts=[(1, 0, 8), (0, 0, 4)], snaps=snaps)
    second = part(tmp_path, 1, fronts=[(1, 1, 6), (0, 1, 4)], snaps=[("s", "c", 6), ("s", "c", 3)])
    assert drop_uncommitted(tmp_path) == 3
    assert kept(first) == [("a", 5)]
    assert kept(second) == [("c", 3)]
    assert drop_uncommitted(tmp_path) == 0


def test_a_process_that_committed_nothing_leaves_nothing(tmp_path):
    snaps = [("s", "a", 4), ("s", "a", 5), ("s", "b", 6)]
    only = part(tmp_path, 0, executions=[(0, 2, 1), (1, 2, 5)], fronts=[(0, 0, 5), (0, 1, 5)], snaps=snaps)
    assert drop_uncommitted(tmp_path) == 2
    assert kept(only) == [("a", 4)]


def test_where_a_frontier_is_not_known_nothing_is_touched(tmp_path):
    only = part(tmp_path, 0, executions=[(0, 2, 1)], fronts=[(0, 0, 3)], snaps=[("s", "a", 9)])
    assert drop_uncommitted(tmp_path) == 0
    assert kept(only) == [("a", 9)]


def test_no_execution_and_no_files(tmp_path):
    assert drop_uncommitted(tmp_path) == 0
    part(tmp_path, 0)
    assert drop_uncommitted(tmp_path) == 0


def test_a_damaged_file_is_left_to_the_engine(tmp_path):
    (tmp_path / "part-0.sqlite3").write_bytes(b"no database" * 100)
    assert drop_uncommitted(tmp_path) == 0
    assert (tmp_path / "part-0.sqlite3").read_bytes() == b"no database" * 100


def test_before_the_engine_made_its_tables_there_is_nothing(tmp_path):
    sqlite3.connect(tmp_path / "part-0.sqlite3").close()
    assert drop_uncommitted(tmp_path) == 0


def test_a_file_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "_PATIENCE", 0.0)
    path = part(tmp_path, 0, executions=[(0, 1, 1)], fronts=[(0, 0, 3)], snaps=[("s", "a", 9)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match=r"cannot be prepared.*locked"):
            drop_uncommitted(tmp_path)
        other.execute("ROLLBACK")
    assert kept(path) == [("a", 9)]
    assert drop_uncommitted(tmp_path) == 1
