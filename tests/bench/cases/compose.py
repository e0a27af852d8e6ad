"""Programs of parts on a model that answers at once, or after a while. BENCH_HOW says what is measured.

whole     a pipeline of three as one operator
parts     the same as three operators
fork      a fork of three, each call taking BENCH_LATENCY seconds, called row by row as a module
traced    the same as a traced `forward`
forked    the fork as three operators and a join, many rows at once
"""

import os
import tempfile
import time
from pathlib import Path

from common import ANSWER, CONCURRENCY, ROWS, cpu, question, report

import dspy_stream as ds
from dspy_stream.modules.compose import Pipeline
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.trace import trace

HOW = os.environ["BENCH_HOW"]
LATENCY = float(os.environ.get("BENCH_LATENCY", "0"))
TEXT = "\n\n".join(f"[[ ## {name} ## ]]\n{ANSWER}" for name in "abc") + "\n\n[[ ## completed ## ]]"


class Three(ds.Module):
    """A plain forward of three calls that do not need each other."""

    def __init__(self):
        self.one, self.two, self.three = (ds.Predict(f"question -> {name}") for name in "abc")

    def forward(self, question):
        return ds.Prediction(
            a=self.one(question=question).a,
            b=self.two(question=question).b,
            c=self.three(question=question).c,
        )


def model():
    return ds.ScriptedLM(TEXT, latency=LATENCY, record=False)


def flow(rows):
    if HOW == "forked":
        program = Fork(**{name: ds.Predict(f"question -> {name}") for name in "abc"})
    else:
        program = Pipeline(ds.Predict("question -> a"), ds.Predict("a -> b"), ds.Predict("b -> c"))
    out = Path(tempfile.mkdtemp()) / "out.jsonl"
    stream = ds.Stream.from_iterable(rows, name="compose")
    stream = stream.through(program, capacity=CONCURRENCY, split=HOW != "whole")
    began, used = time.perf_counter(), cpu()
    done = stream.using(lm=model()).write(out).run(state=None, quiet=True)
    wall, used = time.perf_counter() - began, cpu() - used
    right = sum(line.count(ANSWER.encode()) == 3 for line in out.open("rb"))
    return done, wall, used, right


def script(rows):
    ds.configure(lm=model())
    program = (
        trace(Three()) if HOW == "traced" else Fork(**{n: ds.Predict(f"question -> {n}") for n in "abc"})
    )
    program(**rows[0])
    began, used = time.perf_counter(), cpu()
    right = 0
    for row in rows:
        made = program(**row)
        right += made.a == made.b == made.c == ANSWER
    report(time.perf_counter() - began, cpu() - used, len(rows), right)


def numbered(count, start=0):
    return [{"question": question(start + number)} for number in range(count)]


if HOW in ("fork", "traced"):
    script(numbered(ROWS))
else:
    flow(numbered(500, 50_000))
    done, wall, used, right = flow(numbered(ROWS))
    report(wall, used, done.rows_out, right)
