"""What a new run takes away: the rows of a finished one, where others may come in their place."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from dspy_stream.state.runs import Run, RunSpec

__all__ = ["letters_replaced", "replaced"]


def replaced(last: Run, wanted: RunSpec, *, fresh: bool = False) -> str:
    """Which rows make place for those of a run that is not the same, for a reader; else empty.

    >>> last = Run("1a-0f", "qa", "p1", "in", "out", "finished", "", "", totals={"rows_out": 40})
    >>> replaced(last, RunSpec("qa", "p2", "in", "out"))
    'the 40 rows of run 1a-0f will be replaced (another program or model); its answers stay in the journal'
    >>> replaced(last, RunSpec("qa", "p1", "in", "out")), replaced(last, RunSpec("qa", "p2", "in", "other"))
    ('', '')
    """
    rows = last.totals.get("rows_out", 0)
    if not rows or last.status != "finished" or last.sink != wanted.sink:
        return ""
    changed = {"--fresh": fresh, "another input or limit": last.source != wanted.source}
    changed["another program or model"] = wanted.program_digest not in last.programs
    why = " and ".join(name for name, is_so in changed.items() if is_so)
    run = f"the {rows:,} rows of run {last.run_id}"
    return f"{run} will be replaced ({why}); its answers stay in the journal" if why else ""


def letters_replaced(last: Run, wanted: RunSpec, paths: Iterable[str]) -> str:
    """Which files of dead letters make place for those of a run whose rows go elsewhere; else empty.

    >>> last = Run("1a-0f", "qa", "p1", "in", '[{"path":"o"},{"path":"d"}]', "finished", "", "",
    ...     totals={"dead_letters": 2})
    >>> letters_replaced(last, RunSpec("qa", "p1", "in", '[{"path":"try"},{"path":"d"}]'), ["d"])
    'd: the 2 dead letters of run 1a-0f will be replaced; the state folder keeps them'
    >>> letters_replaced(last, RunSpec("qa", "p1", "in", last.sink), ["d"])
    ''
    """
    count = last.totals.get("dead_letters", 0)
    if not count or last.sink == wanted.sink:
        return ""
    written = {sink.get("path") for sink in orjson.loads(last.sink)}
    files = ", ".join(path for path in paths if path and path in written)
    how = "will be replaced; the state folder keeps them"
    return f"{files}: the {count:,} dead letters of run {last.run_id} {how}" if files else ""
