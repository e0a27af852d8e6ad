import sqlite3
from contextlib import closing
from datetime import timedelta

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, cluster_main

from dspy_stream.errors import StateError
from dspy_stream.state import leftovers
from dspy_stream.state.leftovers import _resume_epoch, drop_uncommitted


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


def test_a_worker_that_wrote_no_frontier_stands_at_the_beginning(tmp_path):
    """It was killed between the first frontiers of two workers, which are two writes."""
    snaps = [("s", "a", 2), ("s", "a", 4), ("s", "b", 5)]
    only = part(tmp_path, 0, executions=[(0, 2, 1), (1, 3, 4)], fronts=[(1, 0, 5), (1, 2, 6)], snaps=snaps)
    assert drop_uncommitted(tmp_path) == 2
    assert kept(only) == [("a", 2)]


def test_the_engine_begins_where_we_say(tmp_path):
    """Its own answer, for files of which only one of two workers has a frontier."""
    begun = []

    class Source(StatefulSourcePartition):
        def __init__(self, count):
            self.count = count

        def next_batch(self):
            if self.count >= 3:
                raise StopIteration
            self.count += 1
            return [self.count]

        def snapshot(self):
            return self.count

    class Numbers(FixedPartitionedSource):
        def list_parts(self):
            return ["one"]

        def build_part(self, step_id, for_part, resume_state):
            begun.append(resume_state)
            return Source(resume_state or 0)

    def run():
        flow = Dataflow("flow")
        op.output("out", op.input("in", flow, Numbers()), TestingSink([]))
        cluster_main(
            flow,
            [],
            0,
            worker_count_per_proc=2,
            epoch_interval=timedelta(0),
            recovery_config=RecoveryConfig(str(tmp_path)),
        )

    init_db_dir(tmp_path, 2)
    run()
    for file in tmp_path.glob("part-*.sqlite3"):
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("DELETE FROM fronts WHERE worker_index = 1")
            database.execute("DELETE FROM commits")
    said = _resume_epoch(sorted(tmp_path.glob("part-*.sqlite3")))
    assert said == 1
    run()
    assert begun == [None, None], "from the beginning of the execution before"


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
