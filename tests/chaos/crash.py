"""Starting, watching and killing real processes of the package."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_stream.state import Store
from dspy_stream.types import Response
from tests.chaos.check import Fate, Verdict, calls_of, check, dead_of, read_rows
from tests.chaos.oracle import answer_to

__all__ = [
    "PaidOnce",
    "Place",
    "Process",
    "crash_until_done",
    "kill_what_is_left",
    "make_rows",
    "model_server",
    "pipeline_fate",
    "until",
]

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "chaos"
CLI = Path(sys.executable).with_name("dspy-stream")
_POLL = 0.005
_DEADLINE = 60.0
_started: list[subprocess.Popen[bytes]] = []


def until(true: Callable[[], bool], what: str, deadline: float = 30.0) -> None:
    """Wait for something outside this process to be the case.

    Raises:
        AssertionError: it was not in time.
    """
    end = time.monotonic() + deadline
    while not true():
        assert time.monotonic() < end, f"{what}: not within {deadline} s"
        time.sleep(_POLL)


def kill_what_is_left() -> None:
    """End the processes of a test that failed before it had ended them."""
    while _started:
        child = _started.pop()
        child.kill()
        child.wait()


@dataclass
class Process:
    """A child with its output in files."""

    child: subprocess.Popen[bytes]
    err: Path
    out: Path
    started: float

    def wait(self, deadline: float = _DEADLINE) -> int:
        """Its exit code. Raises where it does not end in time; it is killed then."""
        try:
            return self.child.wait(deadline)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"still running after {deadline} s; stderr: {self.stderr}") from None

    def alive_for(self, seconds: float) -> bool:
        """Wait so long for its end; True where it still runs."""
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.child.poll() is None:
            self.child.send_signal(number)

    @property
    def stderr(self) -> str:
        """What it said."""
        return self.err.read_text(errors="replace")

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something to be the case, or for its end."""
        until(lambda: true() or self.child.poll() is not None, what)


@dataclass
class Place:
    """One flow's files, and how it is started."""

    folder: Path
    api: str = ""
    flow: Path = HERE / "flows" / "pipeline.py"
    input: str = "in.jsonl"
    output: str = "out.jsonl"
    dead: str = "dead.jsonl"
    state: str = "state"
    env: dict[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    limits: tuple[str, ...] = ("--max-failed", "1", "--max-consecutive", "1000000")
    _count: int = 0

    def path(self, name: str) -> Path:
        """A file of the flow."""
        return self.folder / name

    @property
    def out_file(self) -> Path:
        """The output."""
        return self.folder / self.output

    @property
    def state_folder(self) -> Path:
        """The state."""
        return self.folder / self.state

    def environment(self) -> dict[str, str]:
        """A clean one: nothing of ours leaks into the child."""
        made = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ
        }
        made |= {"OPENAI_API_KEY": "sk-chaos", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        made |= {"CHAOS_INPUT": str(self.path(self.input)), "CHAOS_OUTPUT": str(self.out_file)}
        made |= {"CHAOS_DEAD": str(self.path(self.dead))}
        return {**made, **self.env}

    def command(self, *args: str) -> list[str]:
        """The arguments of a run."""
        lm = ["--lm", "openai/chaos", "--api-base", self.api] if self.api else []
        state = ["--state", str(self.state_folder)]
        return ["run", str(self.flow), *state, *lm, "--json", *self.limits, *self.args, *args]

    def start(self, *args: str, before: Sequence[str] = (), launch: Sequence[str] | None = None) -> Process:
        """Start a run; ``launch`` are arguments of launch.py, ``before`` a command to start it with."""
        return self.spawn(self.command(*args), before=before, launch=launch)

    def spawn(
        self, command: Sequence[str], *, before: Sequence[str] = (), launch: Sequence[str] | None = None
    ) -> Process:
        """Start any verb."""
        head = [str(CLI)]
        if launch is not None:
            head = [sys.executable, str(HERE / "launch.py"), *launch, "--"]
        self._count += 1
        out, err = self.path(f"stdout.{self._count}"), self.path(f"stderr.{self._count}")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            child = subprocess.Popen(
                [*before, *head, *command],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.folder,
                env=self.environment(),
            )
        _started.append(child)
        return Process(child, err, out, time.monotonic())

    def run(self, *args: str, expect: int = 0, deadline: float = _DEADLINE, **how: Any) -> dict[str, Any]:
        """Run to the end, check the exit code, and return the report (empty where there is none)."""
        process = self.start(*args, **how)
        code = process.wait(deadline)
        assert code == expect, f"exit {code} instead of {expect}: {process.stderr}"
        text = process.out.read_bytes()
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def verb(self, *command: str, expect: int = 0) -> list[dict[str, Any]]:
        """Run another verb; its JSON lines."""
        process = self.spawn(command)
        code = process.wait()
        assert code == expect, f"exit {code} instead of {expect}: {process.stderr}"
        return [json.loads(line) for line in process.out.read_bytes().splitlines()]

    def letters(self) -> list[dict[str, Any]]:
        """The newest run's open dead letters in the state folder."""
        found = self.verb("dlq", "list", str(self.state_folder), "--json", "--limit", "1000000")
        newest = max((letter["ref"].split("/")[0] for letter in found), default="")
        return [letter for letter in found if letter["ref"].startswith(newest)]

    def journaled(self) -> set[str]:
        """The prompts whose answers are in the journal, by their digest; empty before there is one."""
        stamp = self.state_folder / "stamp"
        if not stamp.exists() or not stamp.stat().st_size:  # its making is not finished
            return set()
        with Store.open(self.state_folder, read_only=True) as store:
            found = {Response.from_bytes(value[8:]).request_id for _, value in store.scan("journal")}
        return {ask for ask in found if ask is not None}

    def verdict(self, fate: Fate, *, ordered: bool = False) -> Verdict:
        """Let the checker judge; the state's dead letters and those in the file must agree."""
        lines = self.path(self.input).read_bytes().splitlines()
        dead = dead_of(read_rows(self.path(self.dead)))
        kept = dead_of(self.letters())
        assert sorted(dead) == sorted(kept), f"file: {len(dead)} dead letters, state: {len(kept)}"
        return check(lines, read_rows(self.out_file), dead, fate, ordered=ordered)


def make_rows(path: Path, count: int, *, order: str = "", bad: bool = True) -> None:
    """An input of ``count`` lines; every 40th is no JSON. ``order`` is told to the server with each row."""
    lines = []
    for n in range(count):
        garbage = " @garbage" if bad and n % 29 == 7 else ""
        question = f"what is {n}{garbage}{order}"
        text = json.dumps({"key": f"k{n:05d}", "n": n, "question": question})
        lines.append(f'{{"key": "k{n:05d}", torn' if bad and n % 40 == 11 else text)
    path.write_text("\n".join(lines) + "\n")


def pipeline_fate(row: Mapping[str, Any]) -> Mapping[str, str] | str:
    """What flows/pipeline.py must make of a row."""
    if row["n"] % 13 == 5:
        return "map"
    if row["n"] % 17 == 3:
        return "dropped"
    question = row["question"]
    if "@garbage" in question:
        return "parse"
    answer = answer_to("answer", {"question": question})
    verdict = answer_to("verdict", {"question": question, "answer": answer})
    return {"question": question, "answer": answer, "verdict": verdict}


class PaidOnce:
    """The oracle for P2: what was journaled when a process died is never asked again."""

    def __init__(self, place: Place, log: Path) -> None:
        self._place = place
        self._log = log
        self._due: dict[str, int] = {}

    def died(self) -> None:
        """A process is dead: whatever is journaled now has been asked as often as it ever may be."""
        asked = calls_of(self._log, "recv")
        for ask in self._place.journaled():
            self._due.setdefault(ask, asked[ask])

    def paid_again(self) -> dict[str, int]:
        """How often journaled prompts were asked again; empty where P2 held."""
        asked = calls_of(self._log, "recv")
        return {ask: asked[ask] - due for ask, due in self._due.items() if asked[ask] != due}

    @property
    def journaled(self) -> int:
        """How many prompts were found journaled at a death."""
        return len(self._due)


@contextmanager
def model_server(folder: Path, latency: float = 0.0) -> Iterator[tuple[str, Path]]:
    """A server process; its base URL and its call log. The file ``hold`` beside it holds answers back."""
    log = folder / "calls.jsonl"
    command = [sys.executable, str(HERE / "server.py"), "--log", str(log), "--latency", str(latency)]
    with subprocess.Popen([*command, "--hold", str(folder / "hold")], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(child.stdout.readline())}/v1", log
        finally:
            child.kill()


def _size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


def crash_until_done(
    place: Place, log: Path, rng: random.Random, *, kills: int, window: tuple[float, float], **how: Any
) -> int:
    """Kill -9 at random moments, ``kills`` times at most, restart until it ends by itself.

    The moment counts from the first sign of work, a call or a byte of output; one kill in six
    falls into the start instead. Returns how often it was killed.

    Raises:
        AssertionError: a run ended with an error.
    """
    killed = 0
    once = PaidOnce(place, log)
    while True:
        signs = (log, place.out_file, place.path(place.dead))
        before = _size(*signs)
        process = place.start(**how)
        if killed < kills:
            early = rng.random() < 1 / 6
            moment = rng.uniform(*window)
            if early:
                moment = rng.uniform(0.2, 1.0)
            else:
                until(
                    lambda b=before, p=process, s=signs: _size(*s) != b or p.child.poll() is not None,  # type: ignore[misc]
                    "a sign of work",
                )
            if process.alive_for(moment):
                process.signal(signal.SIGKILL)
        code = process.wait(120.0)
        if code == 0:
            assert once.paid_again() == {}
            return killed
        assert code == -signal.SIGKILL, f"after {killed} kills: exit {code}: {process.stderr}"
        killed += 1
        once.died()
