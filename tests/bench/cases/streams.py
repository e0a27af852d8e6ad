"""Token streams side by side: how late each token is heard, and what it costs.

BENCH_ROWS streams of BENCH_TOKENS tokens, BENCH_RATE a second each. BENCH_HOW says how much of the
way is measured: ``model`` (an LM with a listener) or ``program`` (a streamified Predict).
BENCH_TRANSPORT names the library, where it is not the default.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time

from common import BASE, ROWS, cpu, report

import dspy_stream as ds
from dspy_stream import runtime
from dspy_stream.lm import pools, window
from dspy_stream.modules.streaming import StreamListener, StreamResponse, streamify
from dspy_stream.types import Request

RATE = int(os.environ["BENCH_RATE"])
TOKENS = int(os.environ["BENCH_TOKENS"])
HOW = os.environ.get("BENCH_HOW", "model")
RAMP = 1.0  # seconds in which the streams are begun

kinds = {"aiohttp": pools.AiohttpTransport, "pyreqwest": pools.PyreqwestTransport}
if os.environ.get("BENCH_TRANSPORT"):
    pools._kind = lambda _proxy, *, streams: kinds[os.environ["BENCH_TRANSPORT"]]

# All at once is what is measured, not how long the window takes to grow: some times a stream's length.
window.START = 2 * ROWS

lm = ds.LM("openai/gpt-4o-mini", api_base=BASE, api_key="sk-bench", cache=False, num_retries=0, breaker=None)
lags: list[float] = []


def heard(text: str) -> None:
    now = time.perf_counter()
    for stamp in text.split():
        if stamp[:1] != "[" and stamp != "##" and "." in stamp:
            lags.append(now - float(stamp))


async def through_model(number: int, layer: object) -> None:
    await asyncio.sleep(number * RAMP / ROWS)
    runtime.LISTENER.set(lambda delta: heard(delta.text))
    await layer(Request.of("openai/gpt-4o-mini", f"number {number}", cache=False))  # type: ignore[operator]


async def through_program(number: int, stream: object) -> None:
    await asyncio.sleep(number * RAMP / ROWS)
    async for item in stream(question=f"number {number}"):  # type: ignore[operator]
        if isinstance(item, StreamResponse):
            heard(item.chunk)


async def main() -> tuple[float, float]:
    if HOW == "model":
        one, how = through_model, lm.connect()
    else:
        one, how = (
            through_program,
            streamify(ds.Predict("question -> answer"), stream_listeners=[StreamListener("answer")]),
        )
    gc.freeze()
    used, began = cpu(), time.perf_counter()
    with ds.context(lm=lm):
        await asyncio.gather(*[one(number, how) for number in range(ROWS)])
    return time.perf_counter() - began, cpu() - used


if HOW == "model":
    wall, used = runtime.run(main())
else:
    wall, used = asyncio.run(main())
lags.sort()
wanted = ROWS * TOKENS
report(
    wall,
    used,
    ROWS,
    ROWS if len(lags) == wanted else 0,
    tokens=len(lags),
    ideal=RAMP + TOKENS / RATE,
    p50=lags[len(lags) // 2],
    p99=lags[len(lags) * 99 // 100],
    worst=lags[-1],
)
