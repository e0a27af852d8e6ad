"""Answer customers' questions from a folder of help pages; what no page covers goes to a colleague.

    dspy-stream run flows/help_desk.py
    dspy-stream run flows/help_desk.py --input my.csv --output mine.jsonl --lm openai/gpt-4o-mini

HELP_PAGES names another folder of Markdown files. The search counts the words that question and paragraph
share; `ds.Embeddings` with an `Embedder` takes its place where wording differs more. Without a model,
`local/nearest` copies the answer of the most similar demo.
"""

import os
import re
from pathlib import Path

import dspy_stream as ds
from dspy_stream.errors import ConfigurationError

DATA = Path(__file__).resolve().parent.parent / "datasets" / "office_shop"
PAGES = sorted(Path(os.environ.get("HELP_PAGES", DATA / "help")).glob("*.md"))
BEST = 1  # paragraphs in a prompt; a real model makes good use of more, `local/nearest` does not
COVERED = 0.25  # a question that shares less of its words with every paragraph is about none of them

texts = [(page.stem, page.read_text(encoding="utf-8")) for page in PAGES]
passages = [(name, part.strip()) for name, text in texts for part in text.split("\n\n")[1:]]
if not passages:
    raise ConfigurationError("no help page was found; HELP_PAGES names a folder of Markdown files")


def words(text):
    """The beginnings of its longer words, so that `orders` is found by `ordered`."""
    return {word[:5] for word in re.findall(r"\w{4,}", text.lower())}


def search(question):
    """The best paragraphs, and whether the first has enough in common with the question."""
    asked = words(question)
    shared = {passage: len(asked & words(" ".join(passage))) for passage in passages}
    best = sorted(passages, key=shared.get, reverse=True)[:BEST]
    pages, context = map(list, zip(*best, strict=True))
    return {"context": context, "pages": pages, "covered": shared[best[0]] > COVERED * len(asked)}


asking = ds.Signature("question, context: list[str] -> answer", "Answer briefly, from the context only.")
answer = ds.Predict(asking)
answer.demos = [
    {"question": row.question, "context": search(row.question)["context"], "answer": row.answer}
    for row in ds.load_examples(DATA / "train.jsonl", inputs=["question"])
]
colleague = ds.Format("A colleague will write to you.", output="answer")
answered = ds.Route("covered", {True: answer.using(retries=1, fallback=colleague)}, default=colleague)
desk = ds.Program(search=search, answer=answered)

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
