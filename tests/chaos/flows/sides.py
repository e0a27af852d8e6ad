"""Rows that go to one of two outputs, and fail before and after the branch."""

import os
from typing import Any

import dspy_stream as ds


def prepare(row: ds.Row) -> dict[str, Any]:
    if row.n % 13 == 5:
        raise ValueError(f"{row.key} is a bad row")
    return row.fields


def odd(row: ds.Row) -> dict[str, Any]:
    if row.n % 7 == 1:
        raise ValueError(f"{row.key} is a bad row on its side")
    return {**row.fields, "side": "odd"}


rows = ds.Stream.read(os.environ["CHAOS_INPUT"], name="sides", id="key").map(prepare)
even_rows, odd_rows = rows.branch(lambda row: row.n % 2 == 0)
flow = (
    even_rows.through(ds.Predict("question -> answer"), name="answer")
    .write(os.environ["CHAOS_OUTPUT"])
    .also(odd_rows.map(odd).write(os.environ["CHAOS_OUTPUT"] + ".odd.jsonl"))
)
