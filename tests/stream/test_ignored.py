"""F19: fields of answers that nobody asked for are ignored and counted, where somebody can see it."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

import dspy_stream as ds
from dspy_stream import events
from dspy_stream.cli.show import summary
from dspy_stream.lm import ScriptedLM
from dspy_stream.stream.sinks.memory import MemorySink

MORE = "[[ ## answer ## ]]\n4\n\n[[ ## mood ## ]]\nfine\n\n[[ ## weather ## ]]\nfair\n\n[[ ## completed ## ]]"
PLAIN = "[[ ## answer ## ]]\n4\n\n[[ ## completed ## ]]"


def run(*answers: str) -> Any:
    stream = ds.Stream.from_iterable([{"question": f"q{n}"} for n in range(len(answers))])
    step = stream.through(ds.Predict("question -> answer: int"), capacity=1)
    return step.write(MemorySink()).run(lm=ScriptedLM(list(answers)), state=None, quiet=True)


def test_the_report_counts_them() -> None:
    report = run(MORE, PLAIN, MORE)
    assert (report.rows_out, report.ignored) == (3, 4)
    assert report.to_json()["fields_ignored"] == 4
    assert run(PLAIN).ignored == 0, "each run counts its own"


def test_who_listens_hears_their_names() -> None:
    heard: list[events.Ignored] = []
    listener = lambda event: heard.append(event) if isinstance(event, events.Ignored) else None  # noqa: E731
    events.subscribe(listener)
    try:
        with ds.context(lm=ScriptedLM([MORE])):
            assert ds.Predict("question -> answer: int")(question="q").answer == 4
    finally:
        events.unsubscribe(listener)
    assert [event.names for event in heard] == [("mood", "weather")]


def test_the_summary_says_how_many() -> None:
    console = Console(file=StringIO(), width=100)
    summary(console, run(MORE))
    assert "2 fields of answers" in console.file.getvalue()  # type: ignore[attr-defined]
