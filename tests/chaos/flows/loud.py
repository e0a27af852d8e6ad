"""A flow with every logger at DEBUG, to standard error and to a file."""

import logging
import os

import dspy_stream as ds

logging.basicConfig(level=logging.DEBUG)
logging.getLogger().addHandler(logging.FileHandler(os.environ["CHAOS_LOG"]))

lm = ds.LM("openai/chaos", api_base=os.environ["CHAOS_API"], num_retries=1)
logging.getLogger("flow").debug("model %r %s %s", lm, lm.dump_state(), lm.identity())
program = ds.ChainOfThought("question -> answer")
program.set_lm(lm)
program.save(os.environ["CHAOS_PROGRAM"])

flow = (
    ds.Stream.read(os.environ["CHAOS_INPUT"], name="loud")
    .through(program)
    .write(os.environ["CHAOS_OUTPUT"], dead_letters=os.environ["CHAOS_DEAD"])
)
