"""Parallel: many calls of modules at the same time, in order, with their failures."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError, RowTimeout, TooManyFailures
from dspy_stream.modules.best_of_n import concerns_one_row
from dspy_stream.modules.module import Module
from dspy_stream.modules.noted import of_row
from dspy_stream.modules.scope import TICKET
from dspy_stream.modules.settled import settled
from dspy_stream.modules.together import Branch
from dspy_stream.program import Example
from dspy_stream.runtime import Joint, Steps, bridge

__all__ = ["Parallel", "ParallelFailed"]

_log: Final = logging.getLogger("dspy_stream")


class ParallelFailed(TooManyFailures):
    """More rows failed than ``max_errors`` allows; what the others gave is here all the same.

    Attributes:
        results: one for each row, in order; None for rows that failed or were not begun.
        failed_examples: the examples that failed, in order.
        exceptions: what they failed with, in the same order.
    """

    def __init__(
        self, message: str, results: list[Any], failed_examples: list[Any], exceptions: list[Exception]
    ) -> None:
        super().__init__(message)
        self.results = results
        self.failed_examples = failed_examples
        self.exceptions = exceptions


class Parallel(Module):
    """Call modules with examples, many at the same time: a list of ``(module, example)`` pairs.

    An example is an ``Example``, whose inputs become the arguments (the example itself, with
    ``access_examples=False``), a dict of arguments by name, or a tuple of arguments by place; a list
    of pairs for another Parallel. The module may be any function, a coroutine function too.

    The rows run on the engine's loop, ``num_threads`` of them in flight, without a thread for each: a
    model call lets the others go on, a function that blocks does not. Results come in the order of the
    pairs, None for a row that failed; with ``return_failed_examples`` the call returns ``(results,
    failed_examples, exceptions)``. Nothing is kept between calls.

    Args:
        num_threads: rows in flight; ``settings.num_threads`` without.
        max_errors: with so many failed rows no further row is begun, and those in flight are
            waited for; ``settings.max_errors`` without.
        provide_traceback: whether failures are logged with their tracebacks.
        disable_progress_bar: by default a counter is shown where stderr is a terminal.
        timeout: seconds after which a row that is among the last ``straggler_limit`` is cancelled and
            begun once more; its finished calls come from the journal. The second time it fails with
            a RowTimeout. 0 or None for never.

    Raises (when called):
        ParallelFailed: ``max_errors`` rows failed; it has the results.
        DSPyStreamError: a failure that every row would meet, such as a wrong key.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> from dspy_stream.modules.predict import Predict
    >>> qa = Predict("question -> answer")
    >>> qa.set_lm(ScriptedLM({"2 + 2": {"answer": "4"}, "3 + 3": {"answer": "6"}}))
    >>> pairs = [(qa, {"question": "2 + 2"}), (qa, {"question": "3 + 3"})]
    >>> [row.answer for row in Parallel(num_threads=2)(pairs)]
    ['4', '6']
    """

    def __init__(
        self,
        num_threads: int | None = None,
        max_errors: int | None = None,
        access_examples: bool = True,
        return_failed_examples: bool = False,
        provide_traceback: bool | None = None,
        disable_progress_bar: bool = False,
        timeout: float | None = 120,
        straggler_limit: int = 3,
    ) -> None:
        self.num_threads = _checked(num_threads)
        self.max_errors = max_errors
        self.access_examples = access_examples
        self.return_failed_examples = return_failed_examples
        self.provide_traceback = provide_traceback
        self.disable_progress_bar = disable_progress_bar
        self.timeout = timeout
        self.straggler_limit = straggler_limit

    def forward(self, exec_pairs: Iterable[Any], num_threads: int | None = None) -> Any:
        """The results; blocks until all rows have ended."""
        pairs = [_pair(pair, number) for number, pair in enumerate(exec_pairs, 1)]
        rows = _Rows(
            [partial(bridge, self._run_one, module, example) for module, example in pairs],
            _Terms(
                _checked(num_threads) or self.num_threads or settings.num_threads,
                settings.max_errors if self.max_errors is None else self.max_errors,
                self.timeout,
                self.straggler_limit,
                bool(
                    settings.provide_traceback if self.provide_traceback is None else self.provide_traceback
                ),
            ),
            _Counter(len(pairs), shown=not self.disable_progress_bar),
        )
        settled(rows)
        failed = sorted(rows.errors)
        examples, errors = [pairs[index][1] for index in failed], [rows.errors[index] for index in failed]
        if rows.fatal is not None:
            raise rows.fatal
        if rows.gave_up:
            raise ParallelFailed(
                f"Execution cancelled due to errors or interruption: {len(failed)} of {len(pairs)} rows "
                f"failed, and max_errors is {rows.terms.max_errors}; the first: {errors[0]!r}",
                rows.results,
                examples,
                errors,
            ) from errors[0]
        return (rows.results, examples, errors) if self.return_failed_examples else rows.results

    def _run_one(self, module: Callable[..., Any], example: Any) -> Any:
        """One row."""
        if isinstance(example, Example):
            made = module(**example.inputs()) if self.access_examples else module(example)
        elif isinstance(example, dict):
            made = module(**example)
        elif isinstance(example, list) and isinstance(module, Parallel):
            made = module(example)
        elif isinstance(example, tuple):
            made = module(*example)
        else:
            raise ValueError(
                f"Invalid example type: {type(example)}, only supported types are Example, dict, list "
                "(for a Parallel) and tuple"
            )
        return settled(made)


def _checked(num_threads: int | None) -> int | None:
    if num_threads is not None and num_threads < 1:
        raise ConfigurationError(f"num_threads is {num_threads}; at least one row is in flight")
    return num_threads


def _pair(pair: Any, number: int) -> tuple[Callable[..., Any], Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not callable(pair[0]):
        raise ConfigurationError(f"item {number} is no pair of a module and an example: {pair!r:.80}")
    return pair[0], pair[1]


@dataclass(frozen=True, slots=True)
class _Terms:
    """How rows are run."""

    in_flight: int
    max_errors: int
    timeout: float | None
    straggler_limit: int
    traceback: bool


class _Rows(Joint):
    """An effect: run all rows, so many at the same time, and keep what becomes of each."""

    def __init__(self, rows: list[Callable[[], Steps[Any]]], terms: _Terms, counter: _Counter) -> None:
        self.terms = terms
        self.results: list[Any] = [None] * len(rows)
        self.errors: dict[int, Exception] = {}
        self.fatal: Exception | None = None
        self._rows = rows
        self._counter = counter
        self._context = copy_context()
        self._ticket = TICKET.get()
        self._left = len(rows)
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def gave_up(self) -> bool:
        """True where so many rows have failed that no further one is begun."""
        return self.fatal is not None or (bool(self.errors) and len(self.errors) >= self.terms.max_errors)

    async def _run(self) -> None:
        numbers = iter(range(len(self._rows)))
        self._few = asyncio.Event()
        self._finished(0)
        workers = [
            asyncio.ensure_future(self._work(numbers))
            for _ in range(min(self.terms.in_flight, len(self._rows)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in (*workers, *self._tasks):
                task.cancel()
            self._counter.end()

    async def _work(self, numbers: Iterator[int]) -> None:
        for index in numbers:
            if self.gave_up:
                return
            try:
                self.results[index] = await self._row(index)
            except Exception as error:  # noqa: BLE001 - whatever a row's own code raises is that row's result
                self._failed(index, error)
            self._finished(1)
            # Rows that wait for nothing must not keep the loop from all others.
            await asyncio.sleep(0)

    def _failed(self, index: int, error: Exception) -> None:
        self.errors[index] = error
        if not concerns_one_row(error):
            self.fatal = self.fatal or error
        _log.warning("row %d failed: %r", index, error, exc_info=error if self.terms.traceback else None)

    def _finished(self, count: int) -> None:
        self._left -= count
        self._counter.add(count)
        if self._left <= self.terms.straggler_limit:
            self._few.set()

    async def _row(self, index: int) -> Any:
        for _ in range(2):
            branch, settle = self._branch(index)
            try:
                try:
                    branch.begin()
                except asyncio.CancelledError as error:
                    raise of_row(error) from error
                if not branch.waits or await self._ended(branch):
                    return branch.result()
            finally:
                settle()
        raise RowTimeout(f"not finished within {self.terms.timeout} s, nor when it was begun again")

    def _branch(self, index: int) -> tuple[Branch, Callable[[], None]]:
        """A row about to run, in a context of its own, and what counts its calls when it has ended."""
        context: Context = self._context.copy()
        outer = self._ticket
        if outer is None:
            return Branch(context, self._rows[index]()), _nothing
        ticket = outer.beside(f"/{outer.calls}.{index}")
        context.run(TICKET.set, ticket)
        return Branch(context, self._rows[index]()), lambda: outer.add(ticket)

    async def _ended(self, branch: Branch) -> bool:
        """Wait for a row; False where it is one of the last, took too long, and was cancelled."""
        task = branch.task()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait([task], timeout=max(self.terms.timeout or 0, 0) or None)
        if not task.done():
            few = asyncio.ensure_future(self._few.wait())
            try:
                await asyncio.wait([task, few], return_when=asyncio.FIRST_COMPLETED)
            finally:
                few.cancel()
        if task.cancelled():
            raise of_row(asyncio.CancelledError())
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.wait([task])
        return False


def _nothing() -> None:
    """Nobody counts."""


class _Counter:
    """How many rows have ended, on a terminal."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._total = total
        self._done = 0
        self._shown = -1
        self._stream = (
            sys.stderr if shown and total and sys.stderr is not None and sys.stderr.isatty() else None
        )

    def add(self, count: int) -> None:
        """Count rows; written when a further hundredth is done."""
        self._done += count
        if self._stream is None:
            return
        hundredths = self._done * 100 // self._total
        if hundredths != self._shown:
            self._shown = hundredths
            self._stream.write(f"\r{self._done:,} of {self._total:,} rows")
            self._stream.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._stream is not None:
            self._stream.write("\n")
