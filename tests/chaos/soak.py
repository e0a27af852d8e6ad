"""One long run of a flow in a process that watches itself: files, tasks and memory.

    python tests/chaos/soak.py FOLDER API

Prints one JSON object: the report, and what the process held before, during and after the run.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import dspy_stream as ds
from dspy_stream import runtime

_EVERY = 0.5


class Answer(ds.Signature):
    """Answer the question."""

    question: str = ds.InputField()
    answer: str = ds.OutputField()


def held() -> dict[str, int]:
    """Open files, tasks of the engine's loop, and megabytes of memory."""

    async def tasks() -> int:
        return len(asyncio.all_tasks()) - 1

    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[1])
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "tasks": runtime.run(tasks()),
        "mb": pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000,
    }


def main() -> None:
    """The process."""
    folder, api = Path(sys.argv[1]), sys.argv[2]
    lm = ds.LM("openai/soak", api_base=api, api_key="sk-soak", timeout=4.0, num_retries=8)

    def flow(name: str) -> Any:
        return (
            ds.Stream.read(folder / f"{name}.jsonl", name=name, id="key")
            .through(ds.Predict(Answer), capacity=1024, retries=12)
            .write(folder / f"{name}.out.jsonl", dead_letters=folder / f"{name}.dead.jsonl")
        )

    options: dict[str, Any] = {"lm": lm, "quiet": True, "outage": 120.0}
    flow("warm").run(state=folder / "warm.state", **options)
    gc.collect()
    before, seen, over = held(), [], threading.Event()

    def look() -> None:
        while not over.wait(_EVERY):
            seen.append(held())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        report = flow("soak").run(state=folder / "state", **options)
    finally:
        over.set()
        watcher.join()
    gc.collect()
    print(json.dumps({"report": report.to_json(), "before": before, "seen": seen, "after": held()}))


if __name__ == "__main__":
    main()
