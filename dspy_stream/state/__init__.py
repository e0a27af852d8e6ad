"""What is remembered: finished calls, dead letters, runs, and who was executing what.

Nothing is loaded until it is asked for, so importing this package does not load the database.
``dspy_stream.state.verify`` holds the functions behind ``dspy-stream state``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspy_stream.state.blackbox import BlackBox
    from dspy_stream.state.dead_letters import DeadLetterBox, FiledLetter
    from dspy_stream.state.journal import Journal, open_journal
    from dspy_stream.state.memory_journal import MemoryJournal
    from dspy_stream.state.recorder import JournalLike, Recorder
    from dspy_stream.state.runs import Run, Runs, RunSpec
    from dspy_stream.state.spend import Spend
    from dspy_stream.state.store import Store
    from dspy_stream.state.verify import Report

__all__ = [
    "BlackBox",
    "DeadLetterBox",
    "FiledLetter",
    "Journal",
    "JournalLike",
    "MemoryJournal",
    "Recorder",
    "Report",
    "Run",
    "RunSpec",
    "Runs",
    "Spend",
    "Store",
    "open_journal",
]


def __getattr__(name: str) -> object:
    match name:
        case "BlackBox":
            from dspy_stream.state import blackbox

            return getattr(blackbox, name)
        case "DeadLetterBox" | "FiledLetter":
            from dspy_stream.state import dead_letters

            return getattr(dead_letters, name)
        case "Journal" | "open_journal":
            from dspy_stream.state import journal

            return getattr(journal, name)
        case "JournalLike" | "Recorder":
            from dspy_stream.state import recorder

            return getattr(recorder, name)
        case "MemoryJournal":
            from dspy_stream.state import memory_journal

            return getattr(memory_journal, name)
        case "Report":
            from dspy_stream.state import verify

            return getattr(verify, name)
        case "Run" | "RunSpec" | "Runs":
            from dspy_stream.state import runs

            return getattr(runs, name)
        case "Spend":
            from dspy_stream.state import spend

            return getattr(spend, name)
        case "Store":
            from dspy_stream.state import store

            return getattr(store, name)
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
