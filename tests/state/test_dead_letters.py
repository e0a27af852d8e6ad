from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_stream.errors import OutputError, StateCorrupt, StateError
from dspy_stream.rows import DeadLetter, Origin
from dspy_stream.state.dead_letters import DeadLetterBox
from dspy_stream.state.export_file import new_file
from dspy_stream.state.store import Store


def letter(row_id: str, seen: str = "2026-01-01", **changes: Any) -> DeadLetter:
    values: dict[str, Any] = {
        "row_id": row_id,
        "origin": Origin("t.jsonl", "0", 3, 4),
        "raw": b'{"text": "caf\xe9"}',
        "stage": "parse",
        "error": {"code": "parse", "type": "AdapterParseError", "message": "no"},
        "flow": "triage",
        "first_seen": seen,
        "last_seen": seen,
        **changes,
    }
    return DeadLetter(**values)


@pytest.fixture
def box(store: Store) -> DeadLetterBox:
    made = DeadLetterBox(store)
    made.open("run-1", 0)
    return made


def test_letters_come_back_in_order(box: DeadLetterBox) -> None:
    letters = [letter(f"r{n}") for n in range(12)]
    box.append(letters[:5])
    box.append([])
    box.append(letters[5:])
    assert box.position() == 12
    assert [filed.letter for filed in box.list()] == letters
    assert [filed.seq for filed in box.list()] == list(range(1, 13))
    assert [filed.letter.row_id for filed in box.list(limit=2)] == ["r0", "r1"]
    assert box.list(limit=0) == []


def test_a_replay_files_nothing_twice(box: DeadLetterBox, store: Store) -> None:
    box.append([letter("a"), letter("b")])
    position = box.position()
    box.append([letter("c"), letter("b", "2026-02-02")])
    again = DeadLetterBox(store)
    again.open("run-1", position)
    assert [filed.letter.row_id for filed in again.list()] == ["a", "b"]
    again.append([letter("c", "2026-03-03")])
    assert [(f.seq, f.letter.row_id, f.letter.first_seen) for f in again.list()] == [
        (1, "a", "2026-01-01"),
        (2, "b", "2026-01-01"),
        (3, "c", "2026-03-03"),
    ]
    assert [key for key, _ in store.scan("ids")] == sorted(key for key, _ in store.scan("ids"))
    assert sum(1 for _ in store.scan("ids")) == 3


def test_a_fresh_start_empties_only_its_own_run(box: DeadLetterBox, store: Store) -> None:
    box.append([letter("a")])
    for name in ("run-10", "run-1.second"):
        other = DeadLetterBox(store)
        other.open(name, 0)
        other.append([letter("b")])
    box.open("run-1", 0)
    assert [filed.ref for filed in box.list()] == ["run-1.second/00000001", "run-10/00000001"]


def test_missing_letters_are_noticed(box: DeadLetterBox, store: Store) -> None:
    box.append([letter("a")])
    with pytest.raises(StateCorrupt, match="end at 1, but the run had filed 2"):
        DeadLetterBox(store).open("run-1", 2)
    box.remove("a")  # what an operator removed is not missing
    DeadLetterBox(store).open("run-1", 1)


def test_first_seen_is_kept_across_runs(box: DeadLetterBox, store: Store) -> None:
    box.append([letter("a", "2026-01-01")])
    later = DeadLetterBox(store)
    later.open("run-2", 0)
    later.append([letter("a", "2026-05-05"), letter("a", "2026-06-06"), letter("b", "2026-05-05")])
    found = later.list()
    assert [f.letter.first_seen for f in found] == ["2026-01-01"] * 3 + ["2026-05-05"]
    assert [f.letter.last_seen for f in found[1:]] == ["2026-05-05", "2026-06-06", "2026-05-05"]
    newest = later.get("a")
    assert newest is not None
    assert newest.ref == "run-2/00000002"


def test_lists_are_narrowed(box: DeadLetterBox) -> None:
    box.append(
        [
            letter("a"),
            letter("b", flow="other"),
            letter("c", stage="call"),
            letter("d", error={"code": "timeout", "type": "", "message": ""}),
        ]
    )

    def ids(**how: Any) -> list[str]:
        return [filed.letter.row_id for filed in box.list(**how)]

    assert ids(flow="triage") == ["a", "c", "d"]
    assert ids(stage="call") == ["c"]
    assert ids(code="timeout") == ["d"]
    assert ids(flow="other", stage="call") == []


def test_letters_are_resolved_and_removed(box: DeadLetterBox) -> None:
    box.append([letter("a"), letter("b"), letter("a")])
    assert box.resolve("run-1/00000001", stamp="2026-09-09", note="by hand") == 1
    assert box.resolve("a", stamp="2026-10-10") == 1
    assert box.resolve("a", stamp="2026-10-10") == 0
    assert [filed.letter.row_id for filed in box.list()] == ["b"]
    assert [(f.resolved, f.note) for f in box.list(resolved=True)] == [
        ("2026-09-09", "by hand"),
        ("", ""),
        ("2026-10-10", ""),
    ]
    assert box.remove("a") == 2
    assert box.remove("nobody") == 0
    assert box.get("a") is None
    assert box.get("run-1/00000001") is None
    assert len(box.list(resolved=True)) == 1


def test_row_ids_that_look_like_others_are_not_mixed_up(box: DeadLetterBox) -> None:
    names = ["a", "a/b", "ab", "", "run-1/00000009", "\0", "é", "a\0b"]
    box.append([letter(name) for name in names])
    for number, name in enumerate(names, start=1):
        found = box.get(name)
        assert found is not None
        assert (found.seq, found.letter.row_id) == (number, name)


@settings(max_examples=30)
@given(row_id=st.text(max_size=30), raw=st.binary(max_size=200), message=st.text(max_size=100))
def test_any_letter_comes_back(box: DeadLetterBox, row_id: str, raw: bytes, message: str) -> None:
    written = letter(row_id, raw=raw, error={"code": "x", "type": "T", "message": message})
    box.append([written])
    found = box.get(f"run-1/{box.position():08d}")
    assert found is not None
    assert (found.letter.row_id, found.letter.raw, found.letter.error) == (row_id, raw, written.error)


def test_text_that_is_not_unicode_never_stops_a_letter(box: DeadLetterBox) -> None:
    box.append([letter("\ud800x", error={"code": "c", "type": "T", "message": "\udfff!"})])
    (found,) = box.list()
    assert found.letter.row_id == "\\ud800x"
    assert found.letter.error["message"] == "\\udfff!"
    assert box.get("\ud800x") == found


def test_damage_is_named(box: DeadLetterBox, store: Store) -> None:
    for value in (b"", b"{}", b'{"letter": {}, "resolved": "", "note": ""}', b"[1]"):
        store.put("dead", b"run-1/00000001", value)
        with pytest.raises(StateCorrupt, match="run-1/00000001"):
            box.list()


def test_a_box_without_a_run_takes_nothing(store: Store) -> None:
    with pytest.raises(StateError, match="call open"):
        DeadLetterBox(store).append([letter("a")])
    for name in ("", "a/b"):
        with pytest.raises(ValueError, match="run id"):
            DeadLetterBox(store).open(name, 0)


def test_export_writes_envelopes(box: DeadLetterBox, tmp_path: Path) -> None:
    box.append([letter("a"), letter("b"), letter("c")])
    box.resolve("b", stamp="now")
    stream = io.BytesIO()
    assert box.export(stream) == 2
    lines = [orjson.loads(line) for line in stream.getvalue().splitlines()]
    assert [DeadLetter.from_json(line) for line in lines] == [filed.letter for filed in box.list()]
    target = tmp_path / "dead.jsonl"
    with new_file(target) as file:
        assert box.export(file, box.list(resolved=True)) == 3
    assert len(target.read_bytes().splitlines()) == 3
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "folder"])
def test_export_overwrites_and_follows_nothing(tmp_path: Path, kind: str) -> None:
    target, other = tmp_path / "out", tmp_path / "other"
    other.write_text("mine")
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(OutputError, match="exists"), new_file(target) as file:
        file.write(b"x")
    assert other.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_file(tmp_path / "out") as file:
            file.write(b"half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    for name in ("no/such/folder/out", "a\0b"):
        with pytest.raises(OutputError, match="cannot write"), new_file(tmp_path / name):
            pass
    assert os.listdir(tmp_path) == []
