"""The whole path of this package: file, Predict, journal, file. BENCH_HOW says what is measured.

http      every row is a call
rerun     the same file once more: every row is in the journal
latency   an in-process model with the server's log-normal latencies: the engine alone
noop      an in-process model that answers at once, for memory
"""

import json
import os
import tempfile
import time
from pathlib import Path

from common import ANSWER, BASE, CONCURRENCY, ROWS, cpu, question, report

import dspy_stream as ds

HOW = os.environ["BENCH_HOW"]
TEXT = f"[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]"
folder = Path(os.environ.get("BENCH_FOLDER") or tempfile.mkdtemp())


class QA(ds.Signature):
    """Answer the question with one short fact."""

    question: str = ds.InputField()
    answer: str = ds.OutputField()


def model():
    if HOW == "noop":
        return ds.ScriptedLM(TEXT, record=False)
    if HOW == "latency":
        import asyncio
        import re
        import sys

        sys.path.insert(0, str(Path(__file__).parent.parent))
        from server import TABLE

        number = re.compile(r"number (\d+)")

        async def answer(request):
            await asyncio.sleep(TABLE[int(number.findall(request.tail[-1].content)[-1])])
            return TEXT

        return ds.ScriptedLM(answer, record=False)
    return ds.LM("openai/gpt-4o-mini", api_base=BASE, api_key="sk-bench", temperature=0.0, max_tokens=200)


def write(path, numbers):
    with open(path, "w", encoding="utf-8") as file:
        for number in numbers:
            file.write(json.dumps({"question": question(number)}) + "\n")


def run(source, rows, state):
    out = folder / f"{source}.out.jsonl"
    write(folder / source, rows)
    flow = ds.Stream.read(folder / source).through(ds.Predict(QA), capacity=CONCURRENCY).using(lm=model())
    began, used = time.perf_counter(), cpu()
    done = flow.write(out).run(state=folder / state)
    return out, done, time.perf_counter() - began, cpu() - used


if HOW != "rerun" or not (folder / "state").exists():
    run("warm.jsonl", range(50_000, 50_200), "warm_state")
out, done, wall, used = run("rows.jsonl", range(ROWS), "state")
if HOW == "rerun":
    out, done, wall, used = run("rows.jsonl", range(ROWS), "state")
    assert done.hits == ROWS, done
lines = right = 0
with open(out, "rb") as file:
    for line in file:
        lines += 1
        right += ANSWER.encode() in line
report(wall, used, lines, right, hits=done.hits, calls=done.calls)
