"""Dead letters once more: a small run of its own whose rows are added to the flow's outputs.

The run is named after the flow, keeps its own recovery files, and is resumed like any other. What
it was asked to retry, and where each output ended before it, is stored before it starts, so that a
crash at any point neither loses nor doubles a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from dspy_stream.errors import FlowError
from dspy_stream.rows import DeadLetter, Row
from dspy_stream.state.blackbox import BlackBox
from dspy_stream.state.dead_letters import DeadLetterBox, FiledLetter
from dspy_stream.state.runs import Run, Runs
from dspy_stream.state.store import Store
from dspy_stream.stream import nodes
from dspy_stream.stream.flow import Flow, Spec, retry_name
from dspy_stream.stream.report import Report
from dspy_stream.stream.run import RunOptions, run_flow
from dspy_stream.stream.sinks.base import Sink, SinkPartition

__all__ = ["LastModel", "LetterSource", "check_output", "last_model", "retry_letters"]


class LastModel(NamedTuple):
    """The model that a flow's last run was given by name, and its server where that is not the provider's."""

    run_id: str
    name: str
    server: str


def last_model(flow: Flow, state: Path) -> LastModel | None:
    """What the flow's last run was given; None where it was given none, or one that a name is not all of.

    Only the name is for use: where data is sent, no file decides.
    """
    if flow.spec is None:
        return None
    with Store.open(state, read_only=True) as store:
        run, _ = _writer(Runs(store), flow.spec)
    return LastModel(run.run_id, run.lm, run.server) if run is not None and run.lm else None


def check_output(flow: Flow, state: Path) -> None:
    """See that a run of the flow wrote its output, where there has been one.

    Raises:
        FlowError: its rows went to another place; they belong there.
    """
    if flow.spec is None:
        return
    with Store.open(state, read_only=True) as store:
        run, wrote = _writer(Runs(store), flow.spec)
    if run is None or wrote:
        return
    place = str(orjson.loads(run.sink)[0].get("path", "standard output or a list"))
    own = str(flow.spec.ends[0][1].sink.describe().get("path", "its own output"))
    raise FlowError(
        f"run {run.run_id} of flow {flow.spec.name} wrote {place}, and no run wrote {own}: "
        "name the file that is to get the rows with --output"
    )


def _writer(runs: Runs, spec: Spec) -> tuple[Run | None, bool]:
    """The flow's newest run that wrote these outputs, and True; where none has, its newest, and False."""
    wanted = [_plainly(terminal.sink.describe()) for _, terminal in spec.ends]
    ours = runs.list(spec.name)
    for run in reversed(ours):
        written = orjson.loads(run.sink)
        if all(sink in written for sink in wanted):
            return run, True
    return (ours[-1] if ours else None), False


def _plainly(described: Any) -> Any:
    """What ``describe`` gave, as the record of a run holds it."""
    return orjson.loads(orjson.dumps(described, default=str))


class LetterSource:
    """Dead letters as a source: each row as it was first read, under its own id."""

    def __init__(self, letters: Sequence[FiledLetter]) -> None:
        self._letters = list(letters)

    @property
    def name(self) -> str:
        """The source's name."""
        return "dead letters"

    def partitions(self) -> list[str]:
        """The only part."""
        return ["letters"]

    def open(self, partition: str, position: dict[str, Any] | None) -> _Letters:  # noqa: ARG002
        """Open at the beginning or at a letter."""
        return _Letters(self._letters, position["index"] if position else 0)

    def size(self) -> int | None:
        """How many there are."""
        return len(self._letters)

    def bytes_total(self) -> int | None:
        """Not known."""
        return None

    def describe(self) -> dict[str, Any]:
        """The letters' places."""
        return {"dead_letters": [filed.ref for filed in self._letters]}


class _Letters:
    def __init__(self, letters: list[FiledLetter], index: int) -> None:
        self._letters = letters
        self._index = index

    @property
    def exhausted(self) -> bool:
        return self._index >= len(self._letters)

    @property
    def bytes_read(self) -> int:
        return 0

    def read(self, limit: int) -> list[Row | DeadLetter]:
        """The next rows; a letter whose bytes are no record stays a letter."""
        taken = self._letters[self._index : self._index + limit]
        self._index += len(taken)
        return [_row(filed.letter) for filed in taken]

    def position(self) -> dict[str, Any]:
        """The next letter."""
        return {"index": self._index}

    def close(self) -> None:
        """Nothing is open."""


def _row(letter: DeadLetter) -> Row | DeadLetter:
    try:
        fields = orjson.loads(letter.raw)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        return replace(letter, attempts=letter.attempts + 1)
    return Row(letter.row_id, fields, letter.origin, letter.raw)


@dataclass
class _Appended:
    """A sink that goes on where the flow's output ended."""

    inner: Sink
    base: dict[str, Any] | None
    overwrite: bool = True

    def check(self) -> None:
        self.inner.check()

    def open(self, position: dict[str, Any] | None) -> SinkPartition:
        if position is None and self.base is None:
            self.inner.overwrite = True  # it was empty; what is there is of a retry that broke off
        return self.inner.open(position if position is not None else self.base)

    def occupied(self) -> bool:
        return False

    def finish(self) -> None:
        self.inner.finish()

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "appended": True}


def retry_letters(
    flow: Flow,
    state: Path,
    *,
    refs: Sequence[str] | None = None,
    stage: str | None = None,
    code: str | None = None,
    **options: Any,
) -> Report:
    """Run dead letters through the flow again; blocks.

    Questions whose answers could not be read are asked anew, under another rollout; once the row has passed
    the step, those answers take their places in the journal, for runs to come. No other finished call is
    paid again. Letters
    whose rows pass, or fail again under a new letter, are resolved. In a flow with several outputs each
    row is added to the one that its branches lead to. Rows keep their ids; those of runs before the newest
    get that of their run added (``ID@RUN``), since another row may have come under the same id.

    Raises:
        FlowError: there is nothing to retry, the flow's own run is unfinished, a row may go to several
            outputs, or one of them cannot be added to.
    """
    spec = flow.spec
    if spec is None:
        raise FlowError("this Flow was not made by a Stream")
    _refuse_several(spec)
    if _multiplies(spec):
        # A letter holds the record as it was read; all its rows would come out again.
        raise FlowError(
            "a flow with flat_map or batch cannot retry single rows; `dlq export` them to a new run"
        )
    name = retry_name(spec.name)
    with Store.open(state, create=False) as store:
        box, plan = DeadLetterBox(store), _Plan(store, name)
        last = Runs(store).newest(spec.name)
        if last is not None and last.resumable:
            # Going on, it would cut its output back to its own last commit, added rows and all.
            raise FlowError(
                f"run {last.run_id} of flow {spec.name} is unfinished; run the flow to its end first"
            )
        newest, wrote = _writer(Runs(store), spec)
        after = newest.run_id if newest is not None else ""
        kept = plan.pending(after)
        if kept is None:
            fits = partial(_belongs, Runs(store), newest, wrote, (spec.name, name))
            letters = _chosen(box, fits, refs, stage, code)
            if not letters:
                raise FlowError(f"{state} has no open dead letters of flow {spec.name} to retry")
            refs_now = [filed.ref for filed in letters]
            bases = [_end_of(terminal.sink) for _, terminal in spec.ends]
            kept = {"refs": refs_now, "bases": bases, "after": after}
            _acquit(store, letters)
            plan.keep(kept)
            options["fresh"] = True
        found = [_placed(filed, after) for ref in kept["refs"] if (filed := box.get(ref)) is not None]
        bases = kept["bases"] if "bases" in kept else [kept["base"]]  # of an earlier version
        report = run_flow(_retrying(spec, name, found, bases), RunOptions.of({**options, "state": state}))
        if report.status == "finished":
            plan.settle(box, kept["refs"], f"retried in run {report.run_id}")
        return report


def _refuse_several(spec: Spec) -> None:
    """Raise a FlowError where one row may come out of two outputs: of one it may have come out already."""
    ways = [_sides(end) for end, _ in spec.ends]
    for (one, mine), (other, theirs) in combinations(enumerate(ways), 2):
        if not any(theirs.get(split, side) is not side for split, side in mine.items()):
            names = [spec.ends[number][1].sink.describe().get("path", "an output") for number in (one, other)]
            raise FlowError(
                f"a row may go to both {names[0]} and {names[1]}, which are not on opposite sides of a "
                "branch: retried, it would be written again where it had come out; `dlq export` the dead "
                "letters to a new run"
            )


def _sides(end: nodes.Node) -> dict[int, bool]:
    """The sides of branches that every row of an output has taken, by their splits."""
    operations = [node.operation for node in end.chain()]
    return {id(each.split): each.side for each in operations if isinstance(each, nodes.Branch)}


def _multiplies(spec: Spec) -> bool:
    operations = [node.operation for end, _ in spec.ends for node in end.chain()]
    return any(isinstance(operation, (nodes.FlatMap, nodes.Batch)) for operation in operations)


def _acquit(store: Store, letters: Sequence[FiledLetter]) -> None:
    """Let rows that ended the process run again: whoever retries them has mended their code."""
    suspects = BlackBox(store)
    for filed in letters:
        suspects.acquit(filed.letter.step, filed.letter.row_id)
    suspects.close()


def _belongs(runs: Runs, newest: Run | None, wrote: bool, flows: tuple[str, ...], filed: FiledLetter) -> bool:
    """Whether a letter is of the flow, and of the output that is added to.

    Of a run into another file it is void here, where the row may have come out, and of another flow,
    which may share the folder, not ours. An output that no run ``wrote`` takes those of the newest run.
    """
    if filed.letter.flow not in flows:
        return False
    if newest is None or (not wrote and filed.run_id >= newest.run_id):  # run ids sort by time
        return True
    run = runs.get(filed.run_id.split(".")[0])
    return run is None or run.wrote_to(newest.sink)


def _placed(filed: FiledLetter, after: str) -> FiledLetter:
    """A letter of an earlier run under an id of its own: its place may be another row's by now."""
    if filed.run_id >= after:
        return filed
    row_id = f"{filed.letter.row_id}@{filed.run_id}"
    return replace(filed, letter=replace(filed.letter, row_id=row_id))


def _chosen(
    box: DeadLetterBox,
    fits: Callable[[FiledLetter], bool],
    refs: Sequence[str] | None,
    stage: str | None,
    code: str | None,
) -> list[FiledLetter]:
    if not refs:
        return [filed for filed in box.list(stage=stage, code=code) if fits(filed)]
    found = []
    for ref in refs:
        filed = box.get(ref)
        if filed is None or filed.resolved or not fits(filed):
            raise FlowError(f"there is no open dead letter {ref!r}")
        found.append(filed)
    return found


def _retrying(
    spec: Spec, name: str, letters: list[FiledLetter], bases: Sequence[dict[str, Any] | None]
) -> Spec:
    ends = []
    for (end, terminal), base in zip(spec.with_source(LetterSource(letters)).ends, bases, strict=True):
        limit = replace(terminal.limit, consecutive=None, ratio=None)
        ends.append((end, replace(terminal, sink=_Appended(terminal.sink, base), letters=None, limit=limit)))
    unread = frozenset(filed.letter.row_id for filed in letters if filed.letter.stage == "parse")
    return Spec(name, tuple(ends), spec.defaults, retries=True, anew=unread)


def _end_of(sink: Sink) -> dict[str, Any] | None:
    end = getattr(sink, "end_position", None)
    if end is None:
        raise FlowError("this output cannot be added to; give --output a new JSON Lines or CSV file")
    position: dict[str, Any] | None = end()
    return position


class _Plan:
    """What a retry was asked for, kept until its letters are resolved."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._key = b"retry/" + name.encode()

    def pending(self, after: str) -> dict[str, Any] | None:
        """An unfinished retry's plan; one that finished without being settled is settled now.

        A plan from before the flow's run ``after`` is dropped: that run wrote the output anew.

        Raises:
            FlowError: the plan is lost, as may be where the state was rebuilt.
        """
        data, newest = self._store.get("meta", self._key), Runs(self._store).newest(self._name)
        if data is None and newest is not None and newest.resumable and newest.run_id > after:
            raise FlowError(
                f"run {newest.run_id} broke off, and what it was to retry is lost: rows that it had added "
                "would be added again. Run the flow again first: that writes its output anew, and what was "
                "paid is free"
            )
        if data is None or data == b"null":
            return None
        kept: dict[str, Any] = orjson.loads(data)
        if newest is not None and newest.status == "finished":
            self.settle(DeadLetterBox(self._store), kept["refs"], f"retried in run {newest.run_id}")
            return None
        return kept if kept["after"] == after else None

    def keep(self, plan: dict[str, Any]) -> None:
        """Store the plan of a new retry."""
        self._store.put("meta", self._key, orjson.dumps(plan))
        self._store.sync()

    def settle(self, box: DeadLetterBox, refs: Sequence[str], note: str) -> None:
        """Resolve the letters and forget the plan."""
        stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
        for ref in refs:
            box.resolve(ref, stamp=stamp, note=note)
        self._store.put("meta", self._key, b"null")
