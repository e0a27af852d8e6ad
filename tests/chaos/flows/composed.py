"""The flow under test: a program taken apart into operators, with a fork, its join, and a route."""

import os
from typing import Any, Literal

import dspy_stream as ds
from dspy_stream.modules.compose import Program
from dspy_stream.modules.fork import Fork
from dspy_stream.modules.route import Route

ORDERED = os.environ.get("CHAOS_ORDER") == "ordered"
ORDER: Literal["ordered", "unordered"] = "ordered" if ORDERED else "unordered"


def sized(n: int, key: str) -> dict[str, Any]:
    if n % 13 == 5:
        raise ValueError(f"{key} is a bad row")
    return {"parity": n % 2}


program = Program(
    answer=ds.Predict("question -> answer"),
    both=Fork(judge=ds.Predict("question, answer -> verdict"), size=sized),
    way=Route("parity", {0: ds.Predict("verdict -> even")}, default=lambda verdict: {"odd": verdict}),
)

flow = (
    ds.Stream.read(os.environ["CHAOS_INPUT"], name="composed")
    .through(program, order=ORDER)
    .write(os.environ["CHAOS_OUTPUT"], dead_letters=os.environ.get("CHAOS_DEAD"))
)
