"""What the cases share: the rows, and one line of JSON about the measured part."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

BASE = os.environ.get("BENCH_BASE", "")
ROWS = int(os.environ.get("BENCH_ROWS", "2000"))
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "64"))
SYSTEM = "Answer the question with one short fact."
ANSWER = "Paris is the capital of France and its most populous city."


def question(number: int) -> str:
    return f"What is the capital of country number {number}, and who lives there?"


def questions(count: int, start: int = 0) -> list[str]:
    return [question(start + i) for i in range(count)]


def payload(question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": "gpt-4o-mini", "messages": messages, "temperature": 0.0, "max_tokens": 200}


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mb() -> float:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def measure(run: Callable[[list[str]], Iterable[str]], warm_up: int = 200) -> None:
    """Warm up on other questions, then time ``run`` over all of them and check every answer."""
    list(run(questions(warm_up, 50_000)))
    rows = questions(ROWS)
    began, used = time.perf_counter(), cpu()
    answers = list(run(rows))
    report(time.perf_counter() - began, cpu() - used, len(answers), sum(ANSWER in a for a in answers))


def report(wall: float, used: float, rows: int, right: int, **more: Any) -> None:
    print(json.dumps({"rows": rows, "right": right, "wall": wall, "cpu": used, "peak_mb": peak_mb(), **more}))
