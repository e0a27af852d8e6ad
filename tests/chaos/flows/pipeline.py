"""The flow under test: map, filter, two chained modules; rows that fail in every stage."""

import os
from typing import Any, Literal

import dspy_stream as ds

ORDERED = os.environ.get("CHAOS_ORDER") == "ordered"
ORDER: Literal["ordered", "unordered"] = "ordered" if ORDERED else "unordered"
ID = os.environ.get("CHAOS_ID") or None


class Answer(ds.Signature):
    """Answer the question."""

    question: str = ds.InputField()
    answer: str = ds.OutputField()


class Judge(ds.Signature):
    """Judge the answer."""

    question: str = ds.InputField()
    answer: str = ds.InputField()
    verdict: str = ds.OutputField()


def prepare(row: ds.Row) -> dict[str, Any]:
    if row.n % 13 == 5:
        raise ValueError(f"{row.key} is a bad row")
    return {**row.fields, "size": row.n % 10}


flow = (
    ds.Stream.read(os.environ["CHAOS_INPUT"], name="pipeline", id=ID)
    .map(prepare)
    .filter(lambda row: row.n % 17 != 3)
    .through(ds.Predict(Answer), name="answer", order=ORDER)
    .through(ds.Predict(Judge), name="judge", order=ORDER)
    .write(os.environ["CHAOS_OUTPUT"], dead_letters=os.environ.get("CHAOS_DEAD"))
)
