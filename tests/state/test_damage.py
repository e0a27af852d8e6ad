from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import orjson
import pytest
from rocksdict import Options, Rdict

from dspy_stream.errors import StateCorrupt, StateError
from dspy_stream.state import store as stores
from dspy_stream.state.batch import FAMILIES
from dspy_stream.state.layout import LAYOUT_KEY
from dspy_stream.state.rebuild import rebuild
from dspy_stream.state.stamp import Stamp, StampFile, observe
from dspy_stream.state.store import Store

WRITE = """
import os, sys
from dspy_stream.state.store import Batch, Store
store = Store.open(sys.argv[1])
for n in range(300):
    batch = Batch()
    batch.put("journal", b"a%06d" % n, b"x" * 20)
    batch.put("journal", b"b%06d" % n, os.urandom(200))
    store.write(batch)
    if n == 149:
        store._families["journal"].flush()
    if n == 199:
        store.sync()
os._exit(9)
"""


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 pairs in a table, 50 more synced to the log, 100 more only written; then a crash."""
    path = tmp_path_factory.mktemp("crashed") / "state"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", WRITE, str(path)], cwd=root, check=False).returncode == 9
    return path


@pytest.fixture
def copy(crashed: Path, folder: Path) -> Path:
    shutil.copytree(crashed, folder)
    return folder


def newest(folder: Path, pattern: str) -> Path:
    return max((folder / "db").glob(pattern))  # names have a number of fixed width


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in ("LOG", "lock") and not file.name.startswith("LOG.")
    }


def test_a_crash_loses_nothing(copy: Path) -> None:
    with Store.open(copy) as store:
        assert sum(1 for _ in store.scan("journal", b"a")) == 300
        assert sum(1 for _ in store.scan("journal", b"b")) == 300


@pytest.mark.parametrize(
    "lengths", [range(1, 201, 11), pytest.param(range(1, 201), marks=pytest.mark.chaos)], ids=["some", "all"]
)
def test_a_torn_end_of_the_log_costs_whole_batches_only(crashed: Path, folder: Path, lengths: range) -> None:
    for length in lengths:
        shutil.copytree(crashed, folder)
        log = newest(folder, "*.log")
        os.truncate(log, log.stat().st_size - length)
        with Store.open(folder) as store:
            first = [key[1:] for key, _ in store.scan("journal", b"a")]
            second = [key[1:] for key, _ in store.scan("journal", b"b")]
            assert first == second, length
            assert first == [b"%06d" % n for n in range(299)], length
            store.put("journal", b"new", b"entry")
        with Store.open(folder) as store:
            assert store.get("journal", b"new") == b"entry"
        shutil.rmtree(folder)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_the_log_is_refused(copy: Path, where: float) -> None:
    flip(newest(copy, "*.log"), where)
    refused(copy, "restore the folder from a copy")


def test_a_missing_log_is_refused(copy: Path) -> None:
    newest(copy, "*.log").unlink()
    refused(copy, "has lost its last")


def test_a_log_cut_below_what_was_synced_is_refused(copy: Path) -> None:
    log = newest(copy, "*.log")
    os.truncate(log, 2000)
    refused(copy, "has lost its last")


def refused(folder: Path, words: str) -> None:
    before = digest(folder)
    for _ in range(2):
        with pytest.raises(StateCorrupt, match=words) as caught:
            Store.open(folder)
        assert caught.value.exit_code == 76
    assert digest(folder) == before


def test_a_flipped_bit_in_a_table_raises_in_get_and_in_scan(copy: Path) -> None:
    flip(newest(copy, "*.sst"), 0.5)
    with Store.open(copy) as store:
        with pytest.raises(StateCorrupt):
            [store.get("journal", b"b%06d" % n) for n in range(150)]
        with pytest.raises(StateCorrupt, match="scanning"):
            list(store.scan("journal"))
        with pytest.raises(StateCorrupt):
            store.get_many("journal", [b"b%06d" % n for n in range(150)])


def test_the_rocksdb_iterator_would_have_ended_silently(copy: Path) -> None:
    flip(newest(copy, "*.sst"), 0.5)
    with Store.open(copy) as store:
        assert 0 < sum(1 for _ in store._families["journal"].items()) < 600


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.99])
def test_a_cut_manifest_is_refused(copy: Path, kept: float) -> None:
    manifest = newest(copy, "MANIFEST-*")
    os.truncate(manifest, int(manifest.stat().st_size * kept))
    refused(copy, "has lost")


@pytest.mark.parametrize("content", [b"", b"MANIFEST-000001", b"\xff\xfe", b"MANIFEST-999999\n"])
def test_a_damaged_current_is_refused(copy: Path, content: bytes) -> None:
    (copy / "db" / "CURRENT").write_bytes(content)
    with pytest.raises(StateCorrupt):
        Store.open(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    for pattern in ("*.sst", "MANIFEST-*", "CURRENT"):
        target = newest(copy, pattern)
        hidden = target.rename(copy / "hidden")
        with pytest.raises(StateCorrupt):
            Store.open(copy)
        hidden.rename(target)
    with Store.open(copy) as store:
        assert sum(1 for _ in store.scan("journal")) == 600


def test_missing_options_do_not_matter(copy: Path) -> None:
    for file in (copy / "db").glob("OPTIONS-*"):
        file.unlink()
    with Store.open(copy) as store:
        assert sum(1 for _ in store.scan("journal")) == 600


def test_the_database_deleted_under_its_stamp_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "db")
    with pytest.raises(StateCorrupt, match="CURRENT"):
        Store.open(copy)


@pytest.mark.parametrize("stamp", [b"garbage", b"\0" * 52])
def test_a_damaged_stamp_is_refused(copy: Path, stamp: bytes) -> None:
    (copy / "stamp").write_bytes(stamp)
    refused(copy, "stamp is damaged")


def test_a_missing_stamp_is_refused(copy: Path) -> None:
    (copy / "stamp").unlink()
    refused(copy, "no stamp file")


def test_a_stamp_round_trips() -> None:
    stamp = Stamp(5, 400, 8, 2**40, 2**56)
    data = stamp.to_bytes()
    assert Stamp.from_bytes(data) == stamp
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 4
        with pytest.raises(ValueError):
            Stamp.from_bytes(bytes(broken))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (orjson.dumps({"layout": 2, "package": "9.0"}), "newer version 9.0"),
        (orjson.dumps({"layout": 0, "package": "0.0.1"}), "written by version 0.0.1.*finish its runs"),
        (orjson.dumps({"layout": -1, "package": "0"}), "no readable version stamp"),
        (orjson.dumps({"layout": True, "package": "0"}), "no readable version stamp"),
        (orjson.dumps([1]), "no readable version stamp"),
        (b"\x8f\x00\xff random", "no readable version stamp"),
        (b"", "no readable version stamp"),
        (None, "no readable version stamp"),
    ],
)
def test_another_version_is_refused_and_untouched(folder: Path, value: bytes | None, words: str) -> None:
    with Store.open(folder) as store:
        store.put("journal", b"k", b"v")
        if value is None:
            store.delete_prefix("meta", LAYOUT_KEY)
        else:
            store.put("meta", LAYOUT_KEY, value)
    refused(folder, words)
    before = digest(folder)
    with pytest.raises(StateCorrupt, match=words):
        Store.open(folder, read_only=True)
    assert digest(folder) == before


FAMILIES_OF = {
    "older": ["meta", "journal", "dead"],
    "newer": ["meta", "journal", "dead", "runs", "ids", "suspects", "registry"],
}


@pytest.mark.parametrize("which", FAMILIES_OF)
def test_a_database_with_other_families_is_of_another_version_and_not_damaged(
    folder: Path, which: str
) -> None:
    """A folder as another version would leave it, made with the database alone."""
    folder.mkdir(mode=0o700)
    (folder / "db").mkdir(mode=0o700)
    options = Options(raw_mode=True)
    options.create_missing_column_families(True)
    names = FAMILIES_OF[which]
    database = Rdict(str(folder / "db"), options, dict.fromkeys(names, options))
    layout = {"older": 0, "newer": 2}[which]
    stamp = orjson.dumps({"layout": layout, "package": f"of the {which} one"})
    families = {name: database.get_column_family(name) for name in names}
    families["meta"].put(LAYOUT_KEY, stamp)
    for family in families.values():
        family.put(b"key", b"12345678value")
    sequence = database.latest_sequence_number()
    for part in (*families.values(), database):
        part.close()
    StampFile(folder).write(observe(folder / "db", sequence), durable=True)
    words = f"has layout {layout}, written by .*of the {which} one.*another folder"
    refused(folder, words)
    before = digest(folder)
    for look in (lambda: Store.open(folder, read_only=True), lambda: rebuild(folder)):
        with pytest.raises(StateCorrupt, match=words) as caught:
            look()
        assert "rebuild" not in str(caught.value)
    assert digest(folder) == before


def test_a_folder_whose_making_was_killed_is_finished(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "db").mkdir(mode=0o700)
    (folder / "stamp").touch()
    with Store.open(folder) as store:
        store.put("meta", b"k", b"v")
    with Store.open(folder) as store:
        assert store.get("meta", b"k") == b"v"


@pytest.mark.parametrize("made", range(len(FAMILIES) + 1))
def test_a_database_whose_making_was_killed_is_finished(folder: Path, made: int) -> None:
    """RocksDB makes the families one by one, and the stamp comes after the last of them."""
    folder.mkdir(mode=0o700)
    (folder / "db").mkdir(mode=0o700)
    write = stores.AccessType.read_write()
    stores.connect(folder, stores.database_options(create=True), write, FAMILIES[:made]).close()
    if made < len(FAMILIES):
        with pytest.raises(StateError, match="holds no state"):
            Store.open(folder, read_only=True)
    with Store.open(folder) as store:
        store.put(FAMILIES[-1], b"k", b"v")
    with Store.open(folder) as store:
        assert store.get(FAMILIES[-1], b"k") == b"v"


def test_a_database_that_was_killed_before_its_first_stamp_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_begin_stamp", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Store.open(folder)
    assert (folder / "stamp").read_bytes() == b""
    Store.open(folder).close()
    assert (folder / "stamp").read_bytes() != b""


def test_a_full_disk_fails_loudly_and_loses_nothing(
    tmp_path: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", str(mount)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
    try:
        written = fill(mount / "state")
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
        with Store.open(mount / "state") as store:
            assert sum(1 for _ in store.scan("journal")) == written
            store.put("journal", b"again", b"works")
            store.sync()
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        with pytest.raises(StateError, match="read-only") as caught:
            Store.open(mount / "state")
        assert caught.value.exit_code == 74
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(path: Path) -> int:
    written = 0

    def write(store: Store) -> None:
        nonlocal written
        while written < 100_000:
            store.put("journal", b"%06d" % written, os.urandom(500))
            written += 1

    with Store.open(path) as store:
        with pytest.raises(StateError, match="the disk is full; free space") as caught:
            write(store)
        assert caught.value.exit_code == 74
        assert type(caught.value) is StateError
        with pytest.raises(StateError, match="the disk is full"):
            store.put("journal", b"later", b"")
        with pytest.raises(StateError, match="the disk is full"):
            store.sync()
        assert written > 1000
        assert store.get("journal", b"000000") is not None
        assert sum(1 for _ in store.scan("journal")) == written
    return written
