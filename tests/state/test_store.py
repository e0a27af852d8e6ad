from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.errors import StateError
from dspy_stream.state.batch import FAMILIES, Batch, after
from dspy_stream.state.store import Store

ANY = st.binary(max_size=64)


def put(store: Store, family: str, pairs: dict[bytes, bytes]) -> None:
    batch = Batch()
    for key, value in pairs.items():
        batch.put(family, key, value)  # type: ignore[arg-type]
    store.write(batch)


@settings(max_examples=40)
@given(pairs=st.dictionaries(ANY, ANY, max_size=20), prefix=st.binary(max_size=3))
def test_pairs_come_back_in_order_and_by_prefix(
    store: Store, pairs: dict[bytes, bytes], prefix: bytes
) -> None:
    store.delete_prefix("journal", b"")
    put(store, "journal", pairs)
    assert list(store.scan("journal")) == sorted(pairs.items())
    assert store.get_many("journal", list(pairs)) == list(pairs.values())
    matching = [(key, value) for key, value in sorted(pairs.items()) if key.startswith(prefix)]
    assert list(store.scan("journal", prefix)) == matching
    store.delete_prefix("journal", prefix)
    assert list(store.scan("journal")) == [pair for pair in sorted(pairs.items()) if pair not in matching]


@given(prefix=ANY, rest=ANY)
def test_after_is_above_every_key_with_the_prefix(prefix: bytes, rest: bytes) -> None:
    assert prefix + rest < after(prefix)


def test_families_are_apart(store: Store) -> None:
    for number, family in enumerate(FAMILIES):
        store.put(family, b"same", b"%d" % number)
    assert [store.get(family, b"same") for family in FAMILIES] == [b"%d" % n for n in range(len(FAMILIES))]


def test_a_batch_applies_puts_deletes_and_ranges_in_order(store: Store) -> None:
    put(store, "meta", {b"a1": b"", b"a2": b"", b"b": b"", b"c": b""})
    batch = Batch()
    batch.delete_range("meta", b"a", b"b")
    batch.put("meta", b"a2", b"again")
    batch.delete("meta", b"c")
    store.write(batch)
    assert [key for key, _ in store.scan("meta", b"a")] == [b"a2"]
    assert store.get("meta", b"b") == b""
    assert store.get("meta", b"c") is None


def test_a_scan_in_pieces_sees_every_key_and_bears_deleting(store: Store) -> None:
    put(store, "journal", {b"%06d" % n: b"v" * 50 for n in range(1000)})
    seen = []
    for key, _ in store.scan("journal", start=b"000100"):
        seen.append(key)
        store.delete_prefix("journal", key)
    assert seen == [b"%06d" % n for n in range(100, 1000)]
    assert sum(1 for _ in store.scan("journal")) == 100


def test_an_unfinished_scan_does_not_keep_the_folder_locked(folder: Path) -> None:
    with Store.open(folder) as store:
        put(store, "journal", {b"%06d" % n: b"" for n in range(1000)})
        scan = store.scan("journal")
        next(scan)
    with Store.open(folder) as again:
        assert again.get("journal", b"000999") == b""


def test_two_users_in_one_process_share_one_store(folder: Path, tmp_path: Path) -> None:
    os.mkdir(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = Store.open(folder), Store.open(tmp_path / "link" / "state")
    assert first is second
    first.close()
    second.put("meta", b"k", b"v")
    second.close()
    with pytest.raises(StateError, match="was closed; open it again"):
        second.get("meta", b"k")
    with pytest.raises(StateError, match="was closed; open it again"):
        second.put("meta", b"k", b"v")
    with Store.open(folder) as third:
        assert third is not first
        assert third.get("meta", b"k") == b"v"


def test_threads_opening_at_once_share_one_store(folder: Path) -> None:
    barrier, stores = threading.Barrier(8), []

    def user() -> None:
        barrier.wait()
        stores.append(Store.open(folder))

    threads = [threading.Thread(target=user) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, stores))) == 1
    for store in stores:
        store.close()
    with Store.open(folder) as again:
        assert again is not stores[0]


def test_text_instead_of_bytes_is_the_callers_mistake(store: Store) -> None:
    with pytest.raises((KeyError, ValueError), match="raw mode"):
        store.get("meta", "text")  # type: ignore[arg-type]
    assert store.get("meta", b"layout") is not None


def test_a_view_stands_beside_the_owner_and_cannot_write(store: Store, folder: Path) -> None:
    store.put("meta", b"k", b"1")
    with Store.open(folder, read_only=True) as view:
        assert view.get("meta", b"k") == b"1"
        store.put("meta", b"k", b"2")
        view.catch_up()
        assert view.get("meta", b"k") == b"2"
        with pytest.raises(StateError, match="for reading only"):
            view.put("meta", b"k", b"3")
        with pytest.raises(StateError, match="for reading only"):
            view.sync()
    assert store.get("meta", b"k") == b"2"


def test_a_view_of_nothing_is_refused_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no state folder"):
        Store.open(tmp_path / "none", read_only=True)
    with pytest.raises(StateError, match="holds no state"):
        Store.open(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_leaves_the_parents_store_alone(store: Store, folder: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            Store.open(folder)
        except StateError as error:
            os._exit(error.exit_code)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    store.put("meta", b"k", b"v")
    store.sync()
    assert store.get("meta", b"k") == b"v"


def test_the_recovery_mode_is_in_force(store: Store, folder: Path) -> None:
    options = max((folder / "db").glob("OPTIONS-*")).read_text()
    assert "wal_recovery_mode=kTolerateCorruptedTailRecords" in options


def test_memory_stays_small_while_writing_much(folder: Path) -> None:
    code = """
import os, sys
from dspy_stream.state.store import Batch, Store
def resident(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
before = resident()
with Store.open(sys.argv[1]) as store:
    for block in range(800):
        batch = Batch()
        for n in range(250):
            batch.put("journal", b"%d/%d" % (n, block), os.urandom(200))
        store.write(batch)
    print(resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 60


def test_importing_the_package_loads_no_database() -> None:
    code = (
        "import sys, dspy_stream.state as s, dspy_stream.state.journal, dspy_stream.state.dead_letters,"
        " dspy_stream.state.runs, dspy_stream.state.blackbox;"
        "assert 'rocksdict' not in sys.modules, 'loaded';"
        "assert [getattr(s, name) for name in s.__all__] and set(s.__all__) <= set(dir(s));"
        "assert 'rocksdict' in sys.modules; assert not hasattr(s, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_three_files_import_the_database() -> None:
    package = Path(__file__).parents[2] / "dspy_stream"
    users = [
        f.name
        for f in package.rglob("*.py")
        if "import rocksdict" in f.read_text() or "from rocksdict" in f.read_text()
    ]
    assert sorted(users) == ["database.py", "salvage.py", "store.py"]
