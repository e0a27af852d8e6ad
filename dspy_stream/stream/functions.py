"""The user's own functions of rows, as operations over a batch of items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dspy_stream.errors import FlowError, PoisonRow
from dspy_stream.rows import DeadLetter, Row, Stage
from dspy_stream.stream import nodes
from dspy_stream.stream.work import Dropped, refuse_poison

if TYPE_CHECKING:
    from dspy_stream.stream.job import Job
    from dspy_stream.stream.join import Fate

__all__ = ["Judge", "RowFunction", "function_of"]


class RowFunction:
    """A stateless operation over a batch of items; a row that fails becomes a dead letter.

    With ``fate`` it is what that says.
    """

    def __init__(self, step: str, operation: Any, job: Job, fate: Fate | None = None) -> None:
        self._step = step
        self._fate = fate
        self._job = job
        self._apply = function_of(operation)
        self._streak = job.streak(f"in {step}")

    def __call__(self, items: Iterable[Any]) -> list[Any]:
        """What becomes of each item, in order."""
        job, step, apply = self._job, self._step, self._apply
        out: list[Any] = []
        for item in items:
            if type(item) is not Row:
                out.append(item)
                continue
            job.entered(step, item.id)
            try:
                refuse_poison(job, step, item.id)
                out += apply(item)
                self._streak.passed()
            except Exception as error:  # noqa: BLE001 - the user's function; the row's failure, not the flow's
                if self._fate is None:
                    made: Any = job.write(item, _stage(error), step, error)
                else:
                    made = self._fate.of(item, "module", error)
                out.append(made)
                if type(made) is DeadLetter:
                    self._streak.failed()
            finally:
                job.left()
        return out


def function_of(operation: Any) -> Callable[[Row], list[Any]]:
    """What an operation makes of one row: rows, or a dropped one; raises what the user's function raises."""
    if isinstance(operation, nodes.Map):
        fn = operation.fn
        return lambda row: [_as_row(row, fn(row), row.id)]
    if isinstance(operation, nodes.FlatMap):
        fn = operation.fn
        return lambda row: (
            [_as_row(row, made, f"{row.id}/{number}") for number, made in enumerate(fn(row))]
            or [Dropped(row.id)]
        )
    if isinstance(operation, nodes.Filter):
        fn = operation.fn
        return lambda row: [row] if fn(row) else [Dropped(row.id)]
    if isinstance(operation, nodes.Rename):
        return lambda row: [_renamed(row, operation)]
    if isinstance(operation, nodes.Finish):
        return lambda row: [row.replace(operation(row.fields))]
    if isinstance(operation, nodes.Select):
        wanted = operation.names
        return lambda row: [row.replace({name: _field(row, name) for name in wanted})]
    raise FlowError(f"{type(operation).__name__} is not an operation of a stream")


def _renamed(row: Row, operation: nodes.Rename) -> Row:
    names = operation.names
    fields = {names.get(key, key): value for key, value in row.fields.items()}
    if len(fields) != len(row.fields):
        operation.check(row.fields)
    return row.replace(fields)


def _field(row: Row, name: str) -> Any:
    if name not in row.fields:
        raise KeyError(f"no field {name!r}; the row has: {', '.join(map(str, row.fields))}")
    return row.fields[name]


def _as_row(row: Row, made: Any, row_id: str) -> Row:
    if isinstance(made, Row):
        return Row(row_id, made.fields, row.origin, row.record)
    if isinstance(made, Mapping):
        return Row(row_id, dict(made), row.origin, row.record)
    if hasattr(made, "items"):
        return Row(row_id, dict(made.items()), row.origin, row.record)
    raise TypeError(
        f"the function returned {type(made).__name__}; it must return a row, or a mapping of fields"
    )


class Judge:
    """Pairs every item with the side it goes to; what is no row goes to the first."""

    def __init__(self, step: str, operation: nodes.Branch, job: Job) -> None:
        self._step = step
        self._fn = operation.fn
        self._job = job
        self._streak = job.streak(f"in {step}")

    def __call__(self, items: Iterable[Any]) -> list[tuple[bool, Any]]:
        """Each item with its side, in order."""
        return [(True, item) if type(item) is not Row else self._judged(item) for item in items]

    def _judged(self, row: Row) -> tuple[bool, Any]:
        job, step = self._job, self._step
        job.entered(step, row.id)
        try:
            refuse_poison(job, step, row.id)
            side = bool(self._fn(row))
            self._streak.passed()
        except Exception as error:  # noqa: BLE001 - the user's function; the row's failure, not the flow's
            self._streak.failed()
            return True, job.write(row, _stage(error), step, error)
        finally:
            job.left()
        return side, row


def _stage(error: Exception) -> Stage:
    return "process" if isinstance(error, PoisonRow) else "map"
