"""F14: answers of 200 MB, a gzip bomb, 100,000 headers: errors of their rows, and no memory for them.

The server is a process of its own, and so is the flow, whose greatest memory the system tells.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.check import dead_of, read_rows

HERE = Path(__file__).parent
WAYS = ("length", "chunked", "bomb", "headers")

CLIENT = """
import json, resource, sys
from pathlib import Path
import dspy_stream as ds

folder, api = Path(sys.argv[1]), sys.argv[2]
lm = ds.LM("openai/big", api_base=api, api_key="k", timeout=60.0, num_retries=0,
           prices={"openai/big": ds.Price(1.0, 1.0)})

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def run(name):
    flow = (
        ds.Stream.read(folder / f"{name}.jsonl", name=name, id="key")
        .through(ds.Predict("question -> answer"), capacity=1, retries=0)
        .write(folder / f"{name}.out.jsonl", dead_letters=folder / f"{name}.dead.jsonl")
    )
    return flow.run(state=folder / f"{name}.state", lm=lm, quiet=True).to_json()

run("warm")
before = peak()
report = run("big")
print(json.dumps({"grown": peak() - before, "report": report}))
"""


@pytest.fixture
def api() -> Iterator[str]:
    command = [sys.executable, str(HERE / "big_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield f"http://127.0.0.1:{int(child.stdout.readline())}/v1"
        child.stdin.close()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.timeout(240)
def test_what_is_far_too_big_is_an_error_of_its_row_and_takes_no_memory(folder: Path, api: str) -> None:
    write(folder / "warm.jsonl", [{"key": f"w{n}", "question": f"plain {n}"} for n in range(20)])
    rows = [{"key": f"{way}{n}", "question": f"{way} {n}"} for n, way in enumerate((*WAYS, "plain"))]
    write(folder / "big.jsonl", rows)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(folder), api],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["grown"] < 50, f"{found['grown']} MB for answers that were refused"
    out = {row["key"] for row in read_rows(folder / "big.out.jsonl")}
    letters = read_rows(folder / "big.dead.jsonl")
    dead = dict(dead_of(letters))
    assert {letter["attempts"] for letter in letters} == {1}, "asking again would bring as much"
    assert out == {"plain4"}
    assert dead == {row["key"]: "call" for row in rows if row["key"] not in out}
    report = found["report"]
    # Counts that cannot be true are none, and flagged: what the calls cost is not known.
    assert (report["prompt_tokens"], report["completion_tokens"]) == (0, 0)
    assert (report["calls"], report["calls_with_known_cost"]) == (1, 0)
