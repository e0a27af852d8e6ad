"""Which of the bank's intents does a customer's message have?

    dspy-stream run flows/banking.py
    dspy-stream run flows/banking.py --input my.csv --output mine.jsonl --lm openai/gpt-4o-mini

The demos in the prompt come from the training file. For another data set, name its files in
BANKING_TRAIN and BANKING_TEST (CSV or JSONL with a column ``text``), and the column of the right
answer in BANKING_LABEL.
"""

import os
from pathlib import Path
from typing import Literal

import dspy_stream as ds

DATA = Path(__file__).resolve().parent.parent / "datasets" / "bank_messages"
TRAIN = os.environ.get("BANKING_TRAIN", str(DATA / "train.jsonl"))
TEST = os.environ.get("BANKING_TEST", str(DATA / "test.jsonl"))
LABEL = os.environ.get("BANKING_LABEL", "intent")
DEMOS_PER_INTENT = int(os.environ.get("BANKING_DEMOS", "5"))

train = ds.load_examples(TRAIN, inputs=["text"], rename={LABEL: "intent"})
intents = tuple(sorted({example.intent for example in train}))


class Triage(ds.Signature):
    """Decide what a bank customer wants. Answer with one of the given intents."""

    text: str = ds.InputField(desc="the customer's message")
    intent: Literal[intents] = ds.OutputField(desc="what the customer wants")


triage = ds.Predict(Triage)
triage.demos = ds.per_label(train, "intent", k=DEMOS_PER_INTENT, seed=7)


def correct(row):
    """Whether the answer is right; None where the input does not say."""
    return None if row.get("label") is None else row.intent == row.label


flow = (
    ds.Stream.read(TEST, name="banking")
    .rename(**{LABEL: "label"})
    .through(triage, name="triage")
    .measure(accuracy=correct)
    .using(lm="local/nearest")
    .write("out/banking.jsonl", dead_letters="out/banking.dead.jsonl")
)
