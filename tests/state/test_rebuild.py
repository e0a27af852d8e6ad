from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from dspy_stream.errors import StateCorrupt, StateError, StateLocked
from dspy_stream.state.dead_letters import DeadLetterBox
from dspy_stream.state.layout import LAYOUT_KEY
from dspy_stream.state.rebuild import Rebuilt, rebuild
from dspy_stream.state.recovery import has_progress
from dspy_stream.state.runs import Runs, RunSpec
from dspy_stream.state.store import Store
from dspy_stream.state.verify import verify

ROOT = Path(__file__).parents[2]

# Two runs, one of them unfinished; calls in two tables and two logs; a letter with every third call.
WRITE = """
import asyncio, os, random, sqlite3, sys
from dspy_stream.clock import FakeClock
from dspy_stream.rows import DeadLetter, Origin
from dspy_stream.state.batch import FAMILIES
from dspy_stream.state.dead_letters import DeadLetterBox
from dspy_stream.state.journal import Journal
from dspy_stream.state.runs import Runs, RunSpec
from dspy_stream.state.store import Store
from dspy_stream.types import Usage

store = Store.open(sys.argv[1])
rng = random.Random(7)
runs = Runs(store, clock=FakeClock(1000.0), rng=rng)
journal = Journal(store)

def work(run, low, high, flush):
    recorder, box = journal.recorder(run.run_id), DeadLetterBox(store)
    box.open(run.run_id, 0)
    for n in range(low, high):
        asyncio.run(recorder.put(rng.randbytes(20), rng.randbytes(300), Usage(1, 1, 0.1)))
        store.put("ids", b"seen\\0" + run.run_id.encode() + b"\\0r%d" % n, b"digest")
        if n % 3 == 0:
            error = {"code": "parse", "type": "E", "message": "no"}
            box.append([DeadLetter(f"r{n}", Origin("f", "0", n), b"{}", "parse", error, first_seen="then")])
        if n in flush:
            store._families["journal"].flush()
    return {"rows_in": high - low, "dead_letters": len(range(low, high, 3))}

done, _ = runs.begin(RunSpec("done"))
runs.finish(done, work(done, 0, 150, (60, 140)))
store.put("meta", b"retry/done.retry", b"null")
open_, _ = runs.begin(RunSpec("open"))
folder = runs.recovery_folder(open_)
sqlite3.connect(folder / "part-0.sqlite3").execute("CREATE TABLE snaps (a)").connection.commit()
work(open_, 150, 300, ())
store.sync()
os._exit(9)
"""


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crashed") / "state"
    made = subprocess.run([sys.executable, "-c", WRITE, str(path)], cwd=ROOT, check=False)
    assert made.returncode == 9
    return path


@pytest.fixture
def copy(crashed: Path, folder: Path) -> Path:
    shutil.copytree(crashed, folder)
    return folder


def contents(folder: Path) -> dict[str, dict[bytes, bytes]]:
    with Store.open(folder, read_only=True) as store:
        found = {
            name: dict(store.scan(name)) for name in ("journal", "dead", "runs", "ids", "suspects", "meta")
        }  # type: ignore[arg-type]
    del found["meta"][LAYOUT_KEY]
    return found


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted((folder / "db").glob(pattern))


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)


def cut(path: Path, kept: float) -> None:
    os.truncate(path, int(path.stat().st_size * kept))


def saved(folder: Path) -> Rebuilt:
    """Rebuild, and see that the folder is whole and private and the damaged store beside it."""
    found = rebuild(folder)
    assert found.aside == str(folder / "damaged-1")
    assert (Path(found.aside) / "db").is_dir()
    assert not (folder / "rebuilding").exists()
    for path in (folder, folder / "db", Path(found.aside)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert verify(folder).ok
    with Store.open(folder) as store:
        store.put("suspects", b"row/x", b"1")  # it can be written
        store.delete_prefix("suspects", b"row/x")
    assert rebuild(folder).aside == "", "it is sound now"
    return found


WHOLE: dict[str, Callable[[Path], object]] = {
    "CURRENT empty": lambda f: (f / "db" / "CURRENT").write_bytes(b""),
    "CURRENT gone": lambda f: (f / "db" / "CURRENT").unlink(),
    "MANIFEST cut": lambda f: cut(max(files(f, "MANIFEST-*")), 0.7),
    "MANIFEST gone": lambda f: max(files(f, "MANIFEST-*")).unlink(),
    "MANIFEST noise": lambda f: max(files(f, "MANIFEST-*")).write_bytes(os.urandom(900)),
    "stamp damaged": lambda f: flip(f / "stamp", 0.5),
    "stamp gone": lambda f: (f / "stamp").unlink(),
}


@pytest.mark.parametrize("what", WHOLE)
def test_what_only_describes_the_database_costs_no_entry(copy: Path, what: str) -> None:
    before = contents(copy)
    WHOLE[what](copy)
    with pytest.raises(StateCorrupt, match="dspy-stream state rebuild"):
        Store.open(copy)
    found = saved(copy)
    assert contents(copy) == before
    assert found.kept["finished calls"] == 300
    assert (found.letters_lost, found.unreadable, found.lost_changes) == ([], {}, 0)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("which", [0, -1])
def test_a_flipped_bit_in_a_log_costs_its_own_changes(copy: Path, which: int, where: float) -> None:
    before = contents(copy)
    flip(files(copy, "*.log")[which], where)
    with pytest.raises(StateCorrupt, match="dspy-stream state rebuild"):
        Store.open(copy)
    found = saved(copy)
    after = contents(copy)
    assert found.lost_changes > 0
    assert 0.7 * 300 < len(after["journal"]) <= 300
    for family in ("journal", "dead"):
        assert after[family].items() <= before[family].items()
    index = {key: value for key, value in after["ids"].items() if key.startswith(b"row")}
    assert len(index) == len(after["dead"])
    assert any("begins anew" in note for note in found.notes)


@pytest.mark.parametrize(("where", "most"), [(0.0, 30), (0.3, 30), (0.6, 30), (0.96, 200), (0.999, 200)])
def test_a_flipped_bit_in_a_table_costs_few_calls_and_the_unfinished_run_goes_on(
    copy: Path, where: float, most: int
) -> None:
    for log in files(copy, "*.log"):
        with Store.open(copy):
            pass  # replayed into tables
        assert not log.exists()
    before = contents(copy)
    table = max(files(copy, "*.sst"), key=lambda path: path.stat().st_size)
    flip(table, where)
    found = saved(copy)
    after = contents(copy)
    assert after["journal"].items() <= before["journal"].items()
    lost = len(before["journal"]) - len(after["journal"])
    assert 0 < lost <= most, "the index at its end is needed for all of it"
    assert found.places["finished calls"] == 1
    if where < 0.9:
        assert found.unreadable["finished calls"] == lost
    assert {name: after[name] for name in ("dead", "runs", "ids", "meta")} == {
        name: before[name] for name in ("dead", "runs", "ids", "meta")
    }
    assert not found.notes
    with Store.open(copy) as store:
        _, resumed = Runs(store).begin(RunSpec("open"))
    assert resumed, "nothing that the engine counts on is missing"


def test_a_missing_table_costs_what_was_in_it(copy: Path) -> None:
    before = contents(copy)
    files(copy, "*.sst")[0].unlink()
    found = saved(copy)
    assert contents(copy)["dead"] == before["dead"]
    assert found.places["finished calls"] == 1


def test_a_missing_log_is_noticed_wherever_it_stood(copy: Path) -> None:
    logs = files(copy, "*.log")
    assert len(logs) > 2
    logs[1].unlink()
    found = saved(copy)
    assert found.lost_changes > 0
    assert found.letters_lost
    assert any("begins anew" in note for note in found.notes)


def test_letters_of_a_finished_run_that_are_lost_are_named(copy: Path) -> None:
    flip(files(copy, "*.log")[0], 0.5)
    found = saved(copy)
    with Store.open(copy, read_only=True) as store:
        (done,) = Runs(store).list("done")
        here = sum(filed.run_id == done.run_id for filed in DeadLetterBox(store).scan())
    assert here < 50
    (said,) = found.letters_lost
    assert f"{50 - here} dead letters of run {done.run_id} are lost" in said


def test_an_unfinished_run_whose_store_has_gaps_begins_anew(copy: Path) -> None:
    flip(files(copy, "*.log")[-1], 0.3)
    with Store.open(copy.with_name("x")):
        pass
    found = saved(copy)
    with Store.open(copy) as store:
        (run,) = Runs(store).list("open")
        assert not has_progress(copy, run.run_id)
        assert any(run.run_id in note for note in found.notes)
        assert (Path(found.aside) / "runs" / run.run_id / "recovery" / "part-0.sqlite3").exists()
        _, resumed = Runs(store).begin(RunSpec("open"))
    assert not resumed


def test_recovery_files_that_are_damaged_or_of_no_run_are_set_aside(copy: Path) -> None:
    with Store.open(copy, read_only=True) as store:
        (run,) = Runs(store).list("open")
    (copy / "runs" / run.run_id / "recovery" / "part-0.sqlite3").write_bytes(b"noise" * 1000)
    stranger = copy / "runs" / "00000000000-00000000" / "recovery"
    stranger.mkdir(parents=True)
    before = contents(copy)
    found = saved(copy)
    assert contents(copy) == before
    assert sorted(path.name for path in (Path(found.aside) / "runs").iterdir()) == sorted(
        [run.run_id, "00000000000-00000000"]
    )


def test_half_a_batch_is_dropped_and_named(copy: Path) -> None:
    record = {"id": "b1", "lane": "openai", "created": 1.0, "requests": 1, "phase": "created"}
    record |= {"batch_id": "batch_7", "file_id": None, "tried": 0}
    with Store.open(copy) as store:
        store.put("runs", b"batch/b1", orjson.dumps(record))
        store.put("runs", b"batchkeys/b2", b"[]")
    (copy / "db" / "CURRENT").write_bytes(b"")
    found = saved(copy)
    assert any("batch_7" in note and "openai" in note for note in found.notes)
    assert not [key for key in contents(copy)["runs"] if key.startswith(b"batch")]


def test_entries_without_form_are_left_out_and_counted(copy: Path) -> None:
    with Store.open(copy) as store:
        store.put("journal", b"k", b"short")
        store.put("dead", b"x/00000001", b"{}")
        store.put("runs", b"run/x", b"{}")
    found = saved(copy)
    assert found.unreadable == {"finished calls": 1, "dead letters": 1, "run records, totals and batches": 1}


def test_a_damaged_black_box_goes_aside(copy: Path) -> None:
    (copy / "blackbox").write_bytes(b"noise")
    saved(copy)
    assert not (copy / "blackbox").exists()


def test_a_sound_folder_is_left_alone(copy: Path) -> None:
    before = sorted(path.name for path in copy.iterdir())
    assert rebuild(copy) == Rebuilt(str(copy))
    assert sorted({path.name for path in copy.iterdir()} - {"lock"}) == sorted(set(before) - {"lock"})


@pytest.mark.parametrize("stamp", [{"layout": 2, "package": "9.0"}, {"layout": 0, "package": "0.0"}])
def test_another_version_is_refused_and_stays(copy: Path, stamp: dict[str, object]) -> None:
    with Store.open(copy) as store:
        store.put("meta", LAYOUT_KEY, orjson.dumps(stamp))
    with pytest.raises(StateCorrupt):
        rebuild(copy)
    assert not list(copy.glob("damaged-*"))
    assert not (copy / "rebuilding").exists()


def test_there_must_be_a_state(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no state folder"):
        rebuild(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir(mode=0o700)
    with pytest.raises(StateError, match="holds no state"):
        rebuild(tmp_path / "empty")


def test_not_beside_a_running_flow(copy: Path, child: Callable[..., subprocess.Popen[str]]) -> None:
    code = "import sys; from dspy_stream.state.folder import *; from pathlib import Path\n"
    code += "lock = FolderLock.acquire(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    other = child(code, copy)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(StateLocked, match=str(other.pid)):
        rebuild(copy)


DIE = """
import os, sys
from pathlib import Path
from dspy_stream.state.rebuild import rebuild
left, rename, unlink = int(sys.argv[2]), Path.rename, Path.unlink

def dying(call):
    def instead(*args, **named):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return call(*args, **named)
    return instead

Path.rename, Path.unlink = dying(rename), dying(unlink)
rebuild(sys.argv[1])
"""


def test_a_process_that_dies_in_between_leaves_a_folder_that_can_be_finished(
    crashed: Path, folder: Path
) -> None:
    before = contents_of(crashed, folder)
    died = 0
    while True:
        shutil.copytree(crashed, folder)
        (folder / "db" / "CURRENT").write_bytes(b"")
        command = [sys.executable, "-c", DIE, str(folder), str(died + 1)]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code == 0:
            break
        assert code == 9
        died += 1
        with pytest.raises(StateCorrupt, match="state rebuild"):
            Store.open(folder)
        with pytest.raises(StateCorrupt, match="state rebuild"):
            Store.open(folder, read_only=True)
        found = rebuild(folder)
        assert found.kept["finished calls"] == 300
        assert (Path(found.aside) / "db" / "CURRENT").read_bytes() == b""
        assert (Path(found.aside) / "stamp").exists()
        assert contents(folder) == before, died
        assert sorted(path.name for path in folder.iterdir()) == [
            *("blackbox",) * (folder / "blackbox").exists(),
            *("damaged-1", "db", "lock", "runs", "stamp"),
        ]
        shutil.rmtree(folder)
    assert died > 5


def contents_of(crashed: Path, folder: Path) -> dict[str, dict[bytes, bytes]]:
    shutil.copytree(crashed, folder)
    try:
        return contents(folder)
    finally:
        shutil.rmtree(folder)


def test_no_room_leaves_all_as_it_was(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "db" / "CURRENT").write_bytes(b"")
    before = sorted(path.name for path in copy.iterdir() if path.name != "lock")

    def full(*_: object) -> None:
        raise StateError("writing failed: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(StateError, match="full"):
            rebuild(copy)
    assert sorted(path.name for path in copy.iterdir() if path.name != "lock") == before
    saved(copy)


def test_many_calls_over_many_damaged_blocks(folder: Path) -> None:
    rng = random.Random(3)
    with Store.open(folder) as store:
        for _ in range(6000):
            store.put("journal", rng.randbytes(20), b"12345678" + rng.randbytes(400))
        store.compact("journal")
    before = contents(folder)["journal"]
    (table,) = [path for path in files(folder, "*.sst") if path.stat().st_size > 1_000_000]
    data = bytearray(table.read_bytes())
    for place in rng.sample(range(int(len(data) * 0.9)), 20):
        data[place] ^= 4
    table.write_bytes(data)
    found = saved(folder)
    after = contents(folder)["journal"]
    assert after.items() <= before.items()
    assert 1 <= len(before) - len(after) <= 20 * 12
    assert 10 <= found.places["finished calls"] <= 20
