"""A flow with a program of DSPy in it, to be killed: BASE STATE OUT ROWS CAPACITY."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import dspy
from programs import Two, questions

import dspy_stream as ds

base, state, out, rows, capacity = sys.argv[1:]


class Own(Two):
    """One of its predictors has a model of DSPy's of its own."""

    def __init__(self):
        super().__init__()
        self.first.lm = dspy.LM("openai/other", api_base=base, api_key="sk-test", temperature=0.0)


if __name__ == "__main__":
    flow = ds.Stream.from_iterable(questions(int(rows)), name="killed").through(Own(), capacity=int(capacity))
    lm = ds.LM("openai/gpt-4o-mini", api_base=base, api_key="sk-test")
    report = flow.write(out).run(lm=lm, state=state, quiet=True, epoch=0.2)
    print(report.rows_out, report.resumed, report.calls)
