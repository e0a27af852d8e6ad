"""The flow under test: rows whose answers are found by code that a model writes, and that asks it again."""

import os
from pathlib import Path

import dspy_stream as ds
from dspy_stream.types import Request

LOG = Path(os.environ["CHAOS_FOLDER"]) / "calls.log"


def answer(request: Request) -> object:
    """Note the call, and say what code to write."""
    with LOG.open("a") as log:
        log.write(request.key().hex() + "\n")
    content = str(request.messages[-1].content)
    if "repl_history" not in content:
        return content.upper()
    if "no code was run so far" in content:
        return {"reasoning": "look", "code": "words = llm_query_batched([f'{text} {n}' for n in range(3)])"}
    return {"reasoning": "done", "code": "SUBMIT(' '.join(words) + ' ' + llm_query(text))"}


rlm = ds.RLM("text -> answer", interpreter_factory=ds.PythonInterpreter)
flow = (
    ds.Stream.read(os.environ["CHAOS_INPUT"], name="coded")
    .through(rlm, capacity=32)
    .select("key", "answer")
    .write(os.environ["CHAOS_OUTPUT"])
)

if __name__ == "__main__":
    lm = ds.ScriptedLM(answer, cache=True, latency=0.03, record=False)
    flow.run(lm=lm, state=str(LOG.parent / "state"), quiet=True)
