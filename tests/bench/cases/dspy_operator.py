"""An unchanged dspy.Predict as a step of a flow, file to file; run by a Python that has DSPy.

BENCH_HOW: ``inline`` or ``thread``, over HTTP; with ``stub`` behind it (``inline-stub``) a model in the
process answers at once. ``acall-stub`` is DSPy alone over such a model.
"""

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("DSPY_CACHEDIR", tempfile.mkdtemp())
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import dspy
from common import ANSWER, BASE, CONCURRENCY, ROWS, cpu, measure, question, report

import dspy_stream as ds
from dspy_stream.interop import DSPyModule

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
HOW, _, STUB = os.environ["BENCH_HOW"].partition("-")
TEXT = f"[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]"
folder = Path(tempfile.mkdtemp())


class QA(dspy.Signature):
    """Answer the question with one short fact."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Stub(dspy.BaseLM):
    async def aforward(self, prompt=None, messages=None, **kwargs):
        from dspy_stream.interop.wire import completion
        from dspy_stream.types import Choice, Response

        return completion(Response((Choice(TEXT, "stop"),)), self.model)


def run(source, rows):
    path, out = folder / f"{source}.jsonl", folder / f"{source}.out.jsonl"
    path.write_text("".join(json.dumps({"question": question(number)}) + "\n" for number in rows))
    lm = ds.LM("openai/gpt-4o-mini", api_base=BASE, api_key="sk-bench", temperature=0.0, max_tokens=200)
    if STUB:
        lm = ds.ScriptedLM(TEXT, record=False, cache=True)
    module = DSPyModule(dspy.Predict(QA), isolation=HOW, threads=CONCURRENCY)
    flow = ds.Stream.read(path).through(module, capacity=CONCURRENCY).using(lm=lm).write(out)
    began, used = time.perf_counter(), cpu()
    flow.run(state=folder / f"{source}.state", quiet=True)
    wall, used = time.perf_counter() - began, cpu() - used
    lines = out.read_text().splitlines()
    return wall, used, len(lines), sum(ANSWER in line for line in lines)


def alone(rows):
    predict = dspy.Predict(QA)
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(text):
        async with gate:
            return (await predict.acall(question=text)).answer

    async def everything():
        with dspy.context(lm=Stub("stub/model")):
            return await asyncio.gather(*(one(text) for text in rows))

    return asyncio.run(everything())


if HOW == "acall":
    measure(alone)
else:
    run("warm", range(50_000, 50_200))
    report(*run("rows", range(ROWS)))
