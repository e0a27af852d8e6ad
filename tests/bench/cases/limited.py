"""A whole flow, file to file, through a server with a rate limit that nobody has told it of."""

import json
import os
import tempfile
import time
import urllib.request
from pathlib import Path

from common import ANSWER, BASE, CONCURRENCY, ROWS, cpu, question, report

import dspy_stream as ds

RATE, BURST = float(os.environ["BENCH_RATE"]), float(os.environ["BENCH_BURST"])
folder = Path(tempfile.mkdtemp())


class QA(ds.Signature):
    """Answer the question with one short fact."""

    question: str = ds.InputField()
    answer: str = ds.OutputField()


with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
    for number in range(ROWS):
        file.write(json.dumps({"question": question(number)}) + "\n")
lm = ds.LM("openai/gpt-4o-mini", api_base=BASE, api_key="sk-bench", temperature=0.0, max_tokens=200)
flow = ds.Stream.read(folder / "rows.jsonl").through(ds.Predict(QA), capacity=CONCURRENCY).using(lm=lm)
began, used = time.perf_counter(), cpu()
done = flow.write(folder / "out.jsonl").run(state=folder / "state")
wall, used = time.perf_counter() - began, cpu() - used
with open(folder / "out.jsonl", "rb") as file:
    lines = file.readlines()
asked = urllib.request.Request(
    f"{BASE.split('/', 3)[0]}//{BASE.split('/')[2]}/count/", data=b"{}", method="POST"
)
with urllib.request.urlopen(asked) as answer:
    count = json.load(answer)
allowed = BURST + RATE * count["seconds"]
report(
    wall,
    used,
    len(lines),
    sum(ANSWER.encode() in line for line in lines),
    share=count["taken"] / allowed,
    wasted=count["refused"] / (count["taken"] + count["refused"]),
    refused=count["refused"],
)
