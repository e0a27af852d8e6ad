"""The flow under test: a part in worker processes, whose rows ask the model twice, raise, or end it."""

import os
from pathlib import Path
from typing import Any

import dspy_stream as ds

READY = Path(os.environ.get("CHAOS_READY", "."))


class Desk(ds.Module):
    def __init__(self) -> None:
        self.answer = ds.Predict("question -> answer")
        self.judge = ds.Predict("question, answer -> verdict")

    def forward(self, question: str, n: int) -> Any:
        if n % 13 == 5:
            raise ValueError(f"{n} is a bad row")
        answer = self.answer(question=question).answer
        if n % 41 == 4:
            os._exit(3)
        verdict = self.judge(question=question, answer=answer).verdict
        (READY / f"{os.getpid()}").touch()  # this worker has finished a row
        return ds.Prediction(answer=answer, verdict=verdict)


flow = (
    ds.Stream.read(os.environ.get("CHAOS_INPUT", "in.jsonl"), name="parts")
    .through(Desk(), isolation="process", workers=2)
    .write(os.environ.get("CHAOS_OUTPUT", "out.jsonl"), dead_letters=os.environ.get("CHAOS_DEAD"))
)
