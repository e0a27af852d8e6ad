"""DSPy in an environment of its own: acall, Parallel, and its disk cache (BENCH_HOW)."""

import asyncio
import logging
import os
import tempfile

os.environ.setdefault("DSPY_CACHEDIR", os.environ.get("BENCH_CACHE", tempfile.mkdtemp()))

import dspy
from common import BASE, CONCURRENCY, measure, questions

logging.disable(logging.WARNING)
how = os.environ["BENCH_HOW"]
cached = how == "cache"
lm = dspy.LM(
    "openai/gpt-4o-mini", api_base=BASE, api_key="sk-bench", cache=cached, temperature=0.0, max_tokens=200
)
dspy.configure(lm=lm)


class QA(dspy.Signature):
    """Answer the question with one short fact."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


predict = dspy.Predict(QA)
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)


async def everything(rows):
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(question):
        async with gate:
            return (await predict.acall(question=question)).answer

    return await asyncio.gather(*(one(question) for question in rows))


def parallel(rows):
    run = dspy.Parallel(num_threads=min(CONCURRENCY, 64), disable_progress_bar=True)
    return [
        p.answer for p in run([(predict, dspy.Example(question=q).with_inputs("question")) for q in rows])
    ]


if os.environ.get("BENCH_FILL"):
    loop.run_until_complete(everything(questions(int(os.environ["BENCH_FILL"]))))
    print("{}")
else:
    measure(parallel if how == "parallel" else lambda rows: loop.run_until_complete(everything(rows)))
