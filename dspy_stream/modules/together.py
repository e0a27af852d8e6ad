"""Several steps of one row at the same time, and steps under a time limit.

Steps run on in the context they are given. On the engine's loop they begin without any task: what a
journal answers at once never becomes one. Elsewhere they begin in their tasks, since a plain
``forward`` in the middle of its steps cannot move to another thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, Protocol

from dspy_stream.errors import RowTimeout
from dspy_stream.runtime import Ask, Effect, Joint, Pending, Steps, advance, hop, on_loop

__all__ = ["GUARD", "Baton", "Branch", "Guard", "alone", "ended", "together"]


class Guard(Protocol):
    """Remembers whose code runs in this thread."""

    def entered(self) -> None:
        """The row's code goes on."""
        ...

    def left(self) -> None:
        """It has returned or waits."""
        ...


GUARD: Final[ContextVar[Guard | None]] = ContextVar("dspy_stream_guard", default=None)
"""Who is told when code of the row in this context runs in a task of its own."""

_NOTHING: Final = object()


class Branch:
    """Steps that run beside others, in a context of their own, and what became of them."""

    __slots__ = ("_begun", "_context", "_effect", "_steps", "error", "value")

    def __init__(self, context: Context, steps: Steps[Any]) -> None:
        self._context = context
        self._steps = steps
        self._effect: Effect | None = None
        self._begun = False
        self.value: Any = _NOTHING
        self.error: Exception | None = None

    @property
    def waits(self) -> bool:
        """True while they have not ended."""
        return self.error is None and self.value is _NOTHING

    def begin(self) -> None:
        """Run them to their end or to where they must wait; does nothing off the engine's loop."""
        if on_loop():
            self._context.run(self._go)

    def _go(self, value: Any = None, thrown: BaseException | None = None) -> None:
        self._begun = True
        try:
            outcome = advance(self._steps, value, thrown)
        except Exception as error:  # noqa: BLE001 - kept, and raised where the branches meet
            self.error = error
            return
        if isinstance(outcome, Pending):
            self._effect = outcome.effect
        else:
            self.value = outcome

    def task(self) -> asyncio.Task[None]:
        """A task of the running loop that runs them to their end."""
        # A task copies the context it is made in; naming one is not possible before Python 3.11.
        return self._context.run(asyncio.get_running_loop().create_task, self._finish())

    async def _finish(self) -> None:
        at_home = on_loop()
        if not self._begun:
            self._watched()
        while self.waits:
            effect, value, thrown = self._effect, None, None
            assert effect is not None
            try:
                value = await (effect if at_home or type(effect) is not Ask else hop(_put(effect)))
            except BaseException as error:  # noqa: BLE001 - thrown into the steps, which may handle it
                thrown = error
            self._watched(value, thrown)

    def _watched(self, value: Any = None, thrown: BaseException | None = None) -> None:
        guard = GUARD.get()
        if guard is None:
            self._go(value, thrown)
            return
        guard.entered()
        try:
            self._go(value, thrown)
        finally:
            guard.left()

    def result(self) -> Any:
        """Their value.

        Raises:
            Exception: the one they ended with.
        """
        if self.error is not None:
            raise self.error
        return self.value


async def _put(ask: Ask) -> Any:
    return await ask


class _Rest(Joint):
    """An effect: wait until branches have ended."""

    __slots__ = ("_branches",)

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches = branches

    async def _run(self) -> None:
        found = await asyncio.gather(*(branch.task() for branch in self._branches), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):  # a task was cancelled by itself
                raise error


def ended(branches: Sequence[Branch]) -> Steps[None]:
    """Run branches at the same time, all of them to their end, be it a failure."""
    for branch in branches:
        branch.begin()
    waiting = [branch for branch in branches if branch.waits]
    if waiting:
        yield _Rest(waiting)


def together(branches: Sequence[Branch]) -> Steps[list[Any]]:
    """Run branches at the same time; their values, in the order given.

    All of them run to their end: what one of them has paid for is in the journal when the row is
    tried again.

    Raises:
        Exception: the first failure, in the order given.
    """
    yield from ended(branches)
    return [branch.result() for branch in branches]


def alone(steps: Steps[Any], *, context: Context | None = None, seconds: float | None = None) -> Steps[Any]:
    """Run steps in a context of their own, for so many seconds at most.

    Raises:
        RowTimeout: they take longer.
    """
    branch = Branch(context if context is not None else copy_context(), steps)
    branch.begin()
    if branch.waits:
        yield _Limited(branch, seconds)
    return branch.result()


class _Limited(Joint):
    """An effect: wait until a branch has ended, or its time has."""

    __slots__ = ("_branch", "_seconds")

    def __init__(self, branch: Branch, seconds: float | None) -> None:
        self._branch = branch
        self._seconds = seconds

    async def _run(self) -> None:
        try:
            await asyncio.wait_for(self._branch.task(), self._seconds)
        except asyncio.TimeoutError:
            raise RowTimeout(f"not finished within the part's limit of {self._seconds} s") from None


class Baton:
    """What one branch waits for and another hands over; awaited on one loop only."""

    __slots__ = ("_waiting", "passed")

    def __init__(self) -> None:
        self.passed = False
        self._waiting: list[asyncio.Future[None]] = []

    def hand_over(self) -> None:
        """Let those who wait go on."""
        self.passed = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def __await__(self) -> Generator[Any, None, None]:
        if self.passed:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        yield from future
