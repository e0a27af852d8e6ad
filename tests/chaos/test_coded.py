"""Rows that run code: killed at any time, none is lost, and no finished call is paid for again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from dspy_stream.state import Store
from tests.chaos.check import read_rows
from tests.chaos.crash import HERE, ROOT, until

ROWS, KILLS = 150, 5


def _started(folder: Path) -> subprocess.Popen[bytes]:
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env |= {"CHAOS_FOLDER": str(folder), "PYTHONPATH": str(ROOT)}
    env |= {"CHAOS_INPUT": str(folder / "in.jsonl"), "CHAOS_OUTPUT": str(folder / "out.jsonl")}
    with (folder / "stderr").open("ab") as err:
        return subprocess.Popen([sys.executable, str(HERE / "flows" / "coded.py")], env=env, stderr=err)


def _calls(folder: Path) -> Counter[str]:
    path = folder / "calls.log"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def _journaled(folder: Path) -> set[str]:
    if not (folder / "state" / "stamp").exists():
        return set()
    with Store.open(folder / "state", read_only=True) as store:
        return {key.hex() for key, _ in store.scan("journal")}


def test_killed_while_code_runs(folder: Path, rng: random.Random) -> None:
    (folder / "in.jsonl").write_text(
        "".join(json.dumps({"key": n, "text": f"row {n}"}) + "\n" for n in range(ROWS))
    )
    due: dict[str, int] = {}
    for kill in range(KILLS):
        process = _started(folder)
        wanted = _calls(folder).total() + rng.randrange(20, 6 * ROWS // KILLS - 20)
        until(lambda p=process, w=wanted: p.poll() is not None or _calls(folder).total() >= w, "calls")  # type: ignore[misc]
        assert process.poll() is None, f"it ended before kill {kill}: {(folder / 'stderr').read_text()}"
        process.kill()
        process.wait()
        calls = _calls(folder)
        for key in _journaled(folder) & calls.keys():
            due.setdefault(key, calls[key])
    last = _started(folder)
    assert last.wait(60) == 0, (folder / "stderr").read_text()
    answers = {n: " ".join(f"ROW {n} {i}" for i in range(3)) + f" ROW {n}" for n in range(ROWS)}
    out = read_rows(folder / "out.jsonl")
    assert len(out) == ROWS
    assert {row["key"]: row["answer"] for row in out} == answers
    calls = _calls(folder)
    assert len(calls) == 6 * ROWS
    assert len(due) > ROWS
    assert {key: calls[key] for key in due} == due
