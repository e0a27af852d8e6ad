"""A step whose calls go through the provider's batch API, at a pace that a test can wait for."""

import os

import dspy_stream as ds
from dspy_stream.lm.batch import BatchOptions

LANE = BatchOptions(
    linger=0.1,
    max_requests=int(os.environ.get("CHAOS_BATCH", "1000")),
    poll=(0.05, 0.2),
    doubt=float(os.environ.get("CHAOS_DOUBT", "0.5")),
)

flow = (
    ds.Stream.read(os.environ["CHAOS_INPUT"], name="batch")
    .through(ds.Predict("question -> answer"), name="answer", lane=LANE)
    .write(os.environ["CHAOS_OUTPUT"], dead_letters=os.environ.get("CHAOS_DEAD"))
)
