"""Parts in worker processes: rows that end them, a monkey that kills them, and parents that are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import dspy_stream as ds
from dspy_stream.stream.sinks import MemorySink
from tests.chaos.check import calls_of
from tests.chaos.crash import HERE, Place, Process, crash_until_done, make_rows, model_server, until
from tests.chaos.oracle import answer_to
from tests.modules.process.programs import Says

KILLS = int(os.environ.get("CHAOS_KILLS", "30"))


def fate(row: Mapping[str, Any]) -> Mapping[str, str] | str:
    """What flows/parts.py must make of a row."""
    question = row["question"]
    if row["n"] % 13 == 5:
        return "module"
    if "@garbage" in question:
        return "parse"
    if row["n"] % 41 == 4:
        return "process"
    answer = answer_to("answer", {"question": question})
    return {"answer": answer, "verdict": answer_to("verdict", {"question": question, "answer": answer})}


def workers(of: int | None, folder: Path) -> list[int]:
    """Worker processes that run in a folder; those of one parent, or of any."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or b"dspy_stream.cli.worker" not in (entry / "cmdline").read_bytes():
                continue
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if of in (None, parent) and (entry / "cwd").resolve() == folder.resolve():
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def place_in(folder: Path, api: str) -> Place:
    (folder / "ready").mkdir()
    env = {"CHAOS_READY": str(folder / "ready")}
    return Place(folder, api, flow=HERE / "flows" / "parts.py", env=env, args=("--capacity", "8"))


def monkey(process: Process, folder: Path, rng: random.Random, kills: int) -> int:
    """Kill workers at random moments, each once, and only after it has finished a row.

    So no row meets the monkey twice: the next worker of a row that was killed takes it first.
    """
    killed: set[int] = set()
    while len(killed) < kills and process.alive_for(rng.uniform(0.05, 0.4)):
        ready = {int(path.name) for path in (folder / "ready").iterdir()}
        due = [pid for pid in workers(process.child.pid, folder) if pid in ready - killed]
        if due:
            pid = rng.choice(due)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    return len(killed)


@pytest.mark.timeout(300)
def test_a_monkey_among_the_workers_costs_no_row_and_no_call(folder: Path, rng: random.Random) -> None:
    make_rows(folder / "in.jsonl", 400)
    with model_server(folder, latency=0.02) as (api, log):
        place = place_in(folder, api)
        process = place.start()
        killed = monkey(process, folder, rng, KILLS)
        assert process.wait(240) == 0, process.stderr
        assert place.verdict(fate).problems == {}
        asked = calls_of(log, "recv")
        assert {ask: count for ask, count in asked.items() if count > 1} == {}
    print(f"{killed} workers were killed")
    assert killed >= 4, "the flow was through before its workers could be killed often enough"
    assert workers(None, folder) == []


@pytest.mark.timeout(300)
def test_a_flow_with_workers_is_resumed_after_every_death_and_leaves_none_behind(
    folder: Path, rng: random.Random
) -> None:
    make_rows(folder / "in.jsonl", 240)
    with model_server(folder, latency=0.02) as (api, log):
        place = place_in(folder, api)
        crash_until_done(
            place, log, rng, kills=max(2, KILLS // 5), window=(0.1, 2.0), launch=["--epoch", "0.2"]
        )
        assert place.verdict(fate).problems == {}
    until(lambda: workers(None, folder) == [], "the end of the last worker", 5.0)


@pytest.mark.parametrize(
    ("do", "how"),
    [
        ("segfault", "killed by SIGSEGV"),
        ("leave", "exit code 5"),
        ("memory", "it found no memory"),
    ],
)
def test_every_way_to_end_a_process_is_one_dead_letter(do: str, how: str) -> None:
    rows, letters = MemorySink(), MemorySink()
    data = [{"n": n, "do": do if n == 5 else ""} for n in range(12)]
    stream = ds.Stream.from_iterable(data).through(Says(), isolation="process", workers=1)
    stream.write(rows, dead_letters=letters).run(state=None, quiet=True)
    (letter,) = letters.rows
    assert len(rows.rows) == 11
    assert (letter.stage, letter.error["code"]) == ("process", "worker_died")
    assert how in letter.error["message"]


@pytest.mark.parametrize(
    ("do", "how"),
    [
        ("write", None),
        ("fork", None),
        ("big", None),
        ("close", ("exit code 1", "killed by SIGABRT")),  # as the loop beneath takes it
        ("thread", "exit code 8"),
        ("fork and die", "exit code 7"),
    ],
)
def test_what_hostile_code_does_concerns_its_own_row(do: str, how: str | tuple[str, ...] | None) -> None:
    rows, letters = MemorySink(), MemorySink()
    data = [{"n": n, "do": do if n == 5 else ""} for n in range(12)]
    stream = ds.Stream.from_iterable(data).through(Says(), isolation="process", workers=1)
    stream.write(rows, dead_letters=letters).run(state=None, quiet=True)
    made = {row.fields["n"]: row.fields["m"] for row in rows.rows}
    assert made == {n: n * 2 for n in range(12) if n != 5 or how is None}
    messages = [letter.error["message"] for letter in letters.rows]
    assert len(messages) == (how is not None)
    assert [message for message in messages if how is None or not message.endswith(how)] == []


def test_a_stop_waits_for_no_hanging_worker(folder: Path) -> None:
    (folder / "job.py").write_text(
        "import time\nimport dspy_stream as ds\n\n\nclass Hangs(ds.Module):\n"
        "    def forward(self, n):\n        open(f'at-{n}', 'w').close()\n        time.sleep(600)\n\n\n"
        "flow = ds.Stream.read('in.jsonl', name='job').through(Hangs(), isolation='process')"
        ".write('out.jsonl')\n"
    )
    make_rows(folder / "in.jsonl", 10, bad=False)
    place = Place(folder, flow=folder / "job.py")
    process = place.start("--grace", "1")
    process.until(lambda: len(list(folder.glob("at-*"))) == 2, "two rows at work")
    began = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.wait(30) == 143, process.stderr
    assert time.monotonic() - began < 10
    until(lambda: workers(None, folder) == [], "the end of the last worker", 5.0)
