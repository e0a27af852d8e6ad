"""An unchanged program of DSPy, run from the outside: nothing in it knows of flows.

    pip install "dspy_stream[dspy]"
    dspy-stream run flows/dspy_program.py
    dspy-stream run flows/dspy_program.py --lm openai/gpt-4o-mini --output mine.jsonl

Its calls are journaled, limited and counted as those of any other step, and what fails is a dead
letter. A row in which the first answer is not one of the intents is asked once more, with a hint.
"""

from pathlib import Path

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError

try:
    import dspy
except ImportError as error:
    raise ConfigurationError('this flow needs DSPy: pip install "dspy_stream[dspy]"') from error

DATA = Path(__file__).resolve().parent.parent / "datasets" / "bank_messages"
train = ds.load_examples(str(DATA / "train.jsonl"), inputs=["text"])
intents = sorted({example.intent for example in train})


class Triage(dspy.Module):
    """Which intent a bank customer's message has."""

    def __init__(self):
        super().__init__()
        self.classify = dspy.Predict(dspy.Signature("text -> intent", "Decide what a bank customer wants."))
        self.again = dspy.ChainOfThought("text, intents: list[str] -> intent")

    def forward(self, text):
        """Classify, and once more where the answer is none of the intents."""
        found = self.classify(text=text)
        if found.intent not in intents:
            found = self.again(text=text, intents=intents)
        return dspy.Prediction(intent=found.intent)


triage = Triage()
triage.classify.demos = [
    dspy.Example(text=example.text, intent=example.intent).with_inputs("text")
    for example in ds.per_label(train, "intent", k=5, seed=7)
]

flow = (
    ds.Stream.read(str(DATA / "test.jsonl"), name="dspy_program")
    .rename(intent="label")
    .through(triage, capacity=64)
    .measure(accuracy=lambda row: row.intent == row.label if row.get("label") else None)
    .using(lm="local/nearest")
    .write("out/dspy_program.jsonl", dead_letters="out/dspy_program.dead.jsonl")
)
