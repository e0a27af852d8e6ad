"""Answer customers' questions from a folder of help pages; what no page covers goes to a colleague.

    dspy-stream run flows/help_desk.py
    dspy-stream run flows/help_desk.py --input my.csv --output mine.jsonl --lm openai/gpt-4o-mini
    python -m bytewax.run flows.help_desk

HELP_PAGES names another folder of Markdown files. The search weighs the words that question and
paragraph share, which needs no model; `ds.Embeddings` with an `Embedder` takes its place where
wording differs more. Without a model, `local/nearest` copies the answer of the most similar demo.
"""

import math
import os
import re
from collections import Counter
from pathlib import Path

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError

DATA = Path(__file__).resolve().parent.parent / "datasets" / "office_shop"
PAGES = sorted(Path(os.environ.get("HELP_PAGES", DATA / "help")).glob("*.md"))
BEST = 1  # paragraphs in a prompt; a real model makes good use of more, `local/nearest` does not
COVERED = 0.25  # a question that shares less of its weight with every paragraph is about none of them


def words(text):
    """The beginnings of its longer words, so that `orders` is found by `ordered`."""
    return {word[:5] for word in re.findall(r"\w{4,}", text.lower())}


texts = [(page.stem, page.read_text(encoding="utf-8")) for page in PAGES]
passages = [(name, part.strip()) for name, text in texts for part in text.split("\n\n")[1:]]
if not passages:
    raise ConfigurationError("no help page was found; HELP_PAGES names a folder of Markdown files")
rarity = Counter(word for name, part in passages for word in words(f"{name} {part}"))
weight = {word: math.log(1 + len(passages) / count) for word, count in rarity.items()}


def search(question):
    """The best paragraphs, and whether the first has enough in common with the question."""
    asked = words(question)
    shared = [sum(weight[word] for word in asked & words(" ".join(passage))) for passage in passages]
    best = sorted(range(len(passages)), key=lambda number: -shared[number])[:BEST]
    whole = sum(weight.get(word, math.log(1 + len(passages))) for word in asked)
    return {
        "context": [passages[number][1] for number in best],
        "pages": [passages[number][0] for number in best],
        "covered": shared[best[0]] > COVERED * whole,
    }


asking = ds.Signature("question, context: list[str] -> answer", "Answer briefly, from the context only.")
answer = ds.Predict(asking)
answer.demos = [
    {"question": row.question, "context": search(row.question)["context"], "answer": row.answer}
    for row in ds.load_examples(DATA / "train.jsonl", inputs=["question"])
]
colleague = ds.Format("A colleague will write to you.", output="answer")

desk = ds.Program(
    search=search,
    answer=ds.Route("covered", {True: answer.using(retries=1, fallback=colleague)}, default=colleague),
)

flow = (
    ds.Stream.read(DATA / "questions.jsonl", name="help_desk")
    .rename(answer="expected", page="about")
    .through(desk, name="desk")
    .measure(
        passed_on=lambda row: not row.covered,
        page_found=lambda row: row.about in row.pages if row.get("about") else None,
        accuracy=lambda row: row.expected.lower() in row.answer.lower() if row.get("expected") else None,
    )
    .using(lm="local/nearest")
    .write("out/help_desk.jsonl", dead_letters="out/help_desk.dead.jsonl")
)
