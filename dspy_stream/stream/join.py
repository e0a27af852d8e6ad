"""Where the parts of one row meet again: the join of a fork, and of a route that keeps the order.

Every branch sends exactly one item for every row: the row with the branch's outputs, or what
became of it there. The join waits for all of them and for the row as it was before, so that a row
comes out once, and one that died in a branch leaves nothing behind. Its state is the rows that
wait for their other halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from bytewax.operators import StatefulBatchLogic

from dspy_stream.errors import FlowError, PoisonRow, RecordError, RowError
from dspy_stream.modules.fork import joined
from dspy_stream.modules.route import Route
from dspy_stream.rows import DeadLetter, Origin, Row, Stage
from dspy_stream.stream.codec import Frozen, as_json
from dspy_stream.stream.nodes import OnError
from dspy_stream.stream.work import Dropped, refuse_poison

if TYPE_CHECKING:
    from dspy_stream.stream.job import Job

__all__ = ["Elsewhere", "Fate", "Half", "JoinLogic", "Pick", "RouteJudge"]

Half = tuple[int, Any]
Group = list[Any]
State = list[list[tuple[int, Frozen]]]

_PAST: Final = -1


@dataclass(frozen=True)
class Elsewhere:
    """Stands in a branch for a row that is not for it, so that the order of the rows is known."""

    row_id: str
    origin: Origin


class Fate:
    """What becomes of a row that failed between the parts, as ``on_error`` of their program says.

    Args:
        defaults: with ``"default"`` the outputs that the row goes on with; where nobody knows them
            the row is a dead letter.
    """

    def __init__(
        self,
        step: str,
        job: Job,
        on_error: OnError = "dead_letter",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._step = step
        self._job = job
        self._on_error = on_error
        self._defaults = defaults

    def of(self, row: Row, stage: Stage, error: Exception) -> Row | Dropped | DeadLetter:
        """The row with default outputs, the dropped row, or its dead letter.

        Raises:
            Exception: the error itself, where it is to stop the flow.
        """
        if self._on_error == "stop":
            self._job.fatal = self._job.fatal or error
            raise error
        if self._on_error == "skip":
            return Dropped(row.id, row.origin)
        if self._on_error == "default" and self._defaults is not None:
            self._job.defaulted(self._step, row.id, error)
            return row.adding(deepcopy(dict(self._defaults)))
        letter = self._job.write(row, stage, self._step, error)
        return replace(letter, fields=as_json(row.fields))


class RouteJudge:
    """Pairs every item with the number of the part it is for; -1 for what goes past all parts."""

    def __init__(self, step: str, route: Route, job: Job, fate: Fate | None = None) -> None:
        self._step = step
        self._route = route
        self._job = job
        self._fate = fate if fate is not None else Fate(step, job)
        self._streak = job.streak(f"in {step}")

    def __call__(self, items: Iterable[Any]) -> list[Half]:
        """Each item with its part, in order."""
        return [(_PAST, item) if type(item) is not Row else self._judged(item) for item in items]

    def _judged(self, row: Row) -> Half:
        job = self._job
        job.entered(self._step, row.id)
        try:
            refuse_poison(job, self._step, row.id)
            place = self._route.place(row.fields)
            self._streak.passed()
        except Exception as error:  # noqa: BLE001 - the user's function; the row's failure, not the flow's
            made = self._fate.of(row, _stage(error), error)
            if type(made) is DeadLetter:
                self._streak.failed()
            return _PAST, made
        finally:
            job.left()
        return place, row


def _stage(error: Exception) -> Stage:
    if isinstance(error, PoisonRow):
        return "process"
    if isinstance(error, RecordError):
        return "check"
    return "module" if isinstance(error, RowError) else "map"


class Pick:
    """The items for one part out of judged pairs; with ``index`` None all of them.

    ``marks`` puts a mark in the place of each row that is for another part.
    """

    def __init__(self, index: int | None, *, marks: bool) -> None:
        self._index = index
        self._marks = marks

    def __call__(self, pairs: Iterable[Half]) -> list[Any]:
        """The items, in order."""
        index = self._index
        if index is None:
            return [item for _, item in pairs]
        if not self._marks:
            return [item for place, item in pairs if place == index]
        return [
            item if place == index or type(item) is not Row else Elsewhere(item.id, item.origin)
            for place, item in pairs
        ]


class JoinLogic(StatefulBatchLogic[Half, Any, State]):
    """One shard of a join.

    Args:
        names: of the branches; the number after theirs is the row as it was before them.
        fate: of a row whose branches made the same output; a dead letter by itself.
        freeze: an item as builtins; ``thaw`` is the way back.
    """

    def __init__(
        self,
        step: str,
        names: Sequence[str],
        job: Job,
        *,
        fate: Fate | None = None,
        freeze: Callable[[Any], Frozen],
        thaw: Callable[[Frozen], Any],
        resumed: State | None = None,
    ) -> None:
        self._step = step
        self._names = names
        self._fate = fate if fate is not None else Fate(step, job)
        self._freeze = freeze
        self._size = len(names) + 1
        self._waiting: dict[tuple[str, Origin | None], list[Group]] = {}
        for halves in resumed or ():
            for place, frozen in halves:
                self._take(place, thaw(frozen))

    def on_batch(self, values: list[Half]) -> tuple[list[Any], bool]:
        """Take halves; emit the rows that are whole now."""
        out: list[Any] = []
        for place, item in values:
            group = self._take(place, item)
            if group is not None:
                out.append(self._whole(group))
        return out, False

    def _take(self, place: int, item: Any) -> Group | None:
        """Put a half in its place; the group, where that was the last one."""
        key = (item.id if type(item) is Row else item.row_id, item.origin)
        groups = self._waiting.get(key)
        if groups is None:
            groups = self._waiting[key] = [[None] * self._size]
        # Two rows with one id and one origin are one record read twice, and alike.
        group = next((one for one in groups if one[place] is None), None)
        if group is None:
            group = [None] * self._size
            groups.append(group)
        group[place] = item
        if None in group:
            return None
        groups.remove(group)
        if not groups:
            del self._waiting[key]
        return group

    def _whole(self, group: Group) -> Any:
        base = group.pop()
        if type(base) is not Row:
            return base
        made = [_written(half, base) for half in group]
        dead = [half for half in group if type(half) is DeadLetter]
        if dead:
            return self._letter(dead, made, base)
        for half in group:
            if type(half) is Dropped:
                return half
        try:
            outputs = joined(self._names, made)
        except RowError as error:
            return self._fate.of(base, "module", error)
        return base.adding(outputs)

    def _letter(self, dead: list[DeadLetter], made: list[Mapping[str, Any]], base: Row) -> DeadLetter:
        """The first branch's letter, with what the other branches have made and what is wrong there."""
        fields = dict(base.fields)
        for outputs in made:
            fields.update(outputs)
        first = dead[0]
        fields.update(first.fields or {})
        error = dict(first.error)
        if len(dead) > 1:
            error["also"] = "; ".join(f"{letter.step}: {letter.error['message']}" for letter in dead[1:])
        return replace(first, fields=as_json(fields), error=error)

    def on_notify(self) -> tuple[list[Any], bool]:
        """Nothing comes by itself."""
        return [], False

    def on_eof(self) -> tuple[list[Any], bool]:
        """All halves have come, or a branch has lost one.

        Raises:
            FlowError: it has.
        """
        if self._waiting:
            (row_id, _), (group, *_) = next(iter(self._waiting.items()))
            names = [*self._names, "the row before them"]
            missing = ", ".join(name for name, half in zip(names, group, strict=True) if half is None)
            count = len(self._waiting)
            raise FlowError(f"{self._step}: {count} rows did not come out whole; {row_id} lacks {missing}")
        return [], True

    def notify_at(self) -> datetime | None:
        """Never."""
        return None

    def snapshot(self) -> State:
        """The halves that wait, group by group."""
        freeze = self._freeze
        return [
            [(place, freeze(half)) for place, half in enumerate(group) if half is not None]
            for groups in self._waiting.values()
            for group in groups
        ]


def _written(half: Any, base: Row) -> Mapping[str, Any]:
    """What a branch has put into the row, be it what was there before."""
    if type(half) is not Row:
        return {}
    fields = half.fields
    return {name: fields[name] for name in half.written[len(base.written) :]}
