"""The pipeline with a model of the test's own settings, and perhaps another one for its second step."""

import json
import os
from typing import Any

from flows.pipeline import ID, ORDER, Answer, Judge, prepare

import dspy_stream as ds
from dspy_stream.lm.circuit import BreakerPolicy


def model(settings: dict[str, Any]) -> ds.LM:
    breaker = BreakerPolicy(**settings.pop("breaker", {}))
    return ds.LM(settings.pop("name", "openai/chaos"), breaker=breaker, **settings)


ds.configure(lm=model(json.loads(os.environ["CHAOS_LM"])))
judge = ds.Predict(Judge)
if "CHAOS_JUDGE_LM" in os.environ:
    judge.set_lm(model(json.loads(os.environ["CHAOS_JUDGE_LM"])))

flow = (
    ds.Stream.read(os.environ["CHAOS_INPUT"], name="pipeline", id=ID)
    .map(prepare)
    .filter(lambda row: row.n % 17 != 3)
    .through(ds.Predict(Answer), name="answer", order=ORDER, capacity=32)
    .through(judge, name="judge", order=ORDER, capacity=32)
    .write(os.environ["CHAOS_OUTPUT"], dead_letters=os.environ.get("CHAOS_DEAD"))
)
