"""Parts that hold resources: opened before their first row, closed at the end, started again on failure.

A part is supervised where its module has ``open`` and ``close``; see :class:`Supervised`. What is
to be started again is decided in :mod:`~dspy_stream.modules.supervisor`; here it is done. All of it
happens on the engine's loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dspy_stream import events
from dspy_stream.clock import Clock
from dspy_stream.errors import DSPyStreamError, LMError, RowTimeout
from dspy_stream.modules.supervisor import Intensity, RestartsExceeded, Strategy, Supervisor
from dspy_stream.modules.together import Branch
from dspy_stream.runtime import Steps, hop

__all__ = ["Group", "Holder", "Member", "Supervised", "Tree", "holds_resources"]

_log = logging.getLogger("dspy_stream")

_USUAL: Final = Intensity()
# A row that has brought its part down so often is at fault itself.
_BLAMED: Final = 2
# Seconds that interrupted rows may take until the resource is closed under them.
_LEAVING: Final = 5.0


class Supervised(Protocol):
    """A module that holds something: a connection, a local model, a file.

    ``open`` gets it and keeps it on the module, ``close`` gives it back; either may be a coroutine
    function. They are called on the thread that runs the rows of an inline part, on one of the part's
    threads under ``isolation="thread"``, and in each worker under ``isolation="process"``; ``close`` also
    after a failure, when what it closes may be broken. ``open`` that raises is a failure of the part.

    Two further attributes are looked at where they are there. ``failures``: the classes of exceptions that
    mean that the part has failed, and not the row. ``healthy()``: asked after any other failure of a row;
    False means the same.
    """

    def open(self) -> Any:
        """Get the resource."""
        ...

    def close(self) -> Any:
        """Give it back."""
        ...


def holds_resources(module: Any) -> bool:
    """True for a module that is to be supervised.

    >>> class Search:
    ...     def open(self): self.connection = object()
    ...     def close(self): del self.connection
    >>> holds_resources(Search()), holds_resources("text")
    (True, False)
    """
    return callable(getattr(module, "open", None)) and callable(getattr(module, "close", None))


@dataclass(frozen=True, eq=False)
class Tree:
    """The parts of one program in their order, and how they are supervised. Compared by identity."""

    parts: tuple[str, ...]
    strategy: Strategy = "one_for_one"
    intensity: Intensity = _USUAL


class Holder(Protocol):
    """What opens and closes the resource of one part."""

    async def open(self) -> None:
        """Get it."""
        ...

    async def close(self) -> None:
        """Give it back."""
        ...


class Interrupted(Exception):
    """The part is being started again; the row begins anew."""


class Member:
    """One part in its group. ``steps`` runs its rows; the rest is the group's business."""

    def __init__(
        self, group: Group, name: str, holder: Holder, module: Any, seconds: float | None = None
    ) -> None:
        self._seconds = seconds
        self.name = name
        self.holder = holder
        self.up = False
        self.opened = False
        self.generation = 0
        self._group = group
        self._failures: tuple[type[BaseException], ...] = tuple(getattr(module, "failures", ()))
        self._healthy: Callable[[], Any] | None = getattr(module, "healthy", None)
        self._running: dict[int, _Running] = {}
        self._waiting: list[asyncio.Future[None]] = []

    # ------------------------------------------------------------------------------- running rows

    def steps(self, make: Callable[[], Steps[Any]]) -> Steps[Any]:
        """One row's steps, begun again where the part is started again meanwhile.

        Raises:
            RestartsExceeded: the part cannot be kept up.
            RowTimeout: it took too long, from where the part was up.
            Exception: the row's own failure.
        """
        blamed = 0
        while True:
            if not self.up:
                yield hop(self._wait())
            generation = self.generation
            branch = Branch(copy_context(), make())
            try:
                branch.begin()
                if branch.waits:
                    yield self._followed(branch)
                return branch.result()
            except Interrupted:
                continue
            except Exception as error:
                if _not_here(error):
                    raise
                blamed += yield hop(self._judge(generation, error))
                if generation == self.generation or blamed >= _BLAMED:
                    raise

    async def _followed(self, branch: Branch) -> None:
        task = branch.task()
        entry = _Running(asyncio.get_running_loop(), task)
        self._running[id(entry)] = entry
        try:
            await asyncio.wait_for(task, self._seconds)
        except asyncio.TimeoutError:
            raise RowTimeout(f"not finished within the limit of {self._seconds:g} s") from None
        except asyncio.CancelledError:
            if entry.interrupted and not _being_cancelled():
                raise Interrupted from None
            raise
        finally:
            del self._running[id(entry)]
            entry.left.set_result(None)

    async def _judge(self, generation: int, error: Exception) -> bool:
        """Have the part started again if it has failed; True where this row was the first to find out."""
        if generation != self.generation:
            return False
        if not isinstance(error, self._failures) and not getattr(error, "of_part", False):
            if self._healthy is None or await _awaited(self._healthy()):
                return False
            if generation != self.generation:
                return False
        self._group.failed(self, error)
        return not getattr(error, "no_row_to_blame", False)

    async def _wait(self) -> None:
        if not self.up:
            self._group.need(self)
        while not self.up:
            self._group.check()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    # ------------------------------------------------------------------------ started and stopped

    def wake(self) -> None:
        """Let the rows that wait look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def down(self) -> None:
        """From now on rows wait; those that run are interrupted."""
        self.generation += 1
        self.up = False
        for entry in list(self._running.values()):
            entry.interrupted = True
            entry.loop.call_soon_threadsafe(entry.task.cancel)

    async def shut(self) -> None:
        """Close the resource once the rows have left; a failure to close is only noted."""
        leaving = [entry.left for entry in self._running.values() if entry.interrupted]
        if leaving:
            await asyncio.wait([asyncio.wrap_future(left) for left in leaving], timeout=_LEAVING)
        if not self.opened:
            return
        self.opened = False
        try:
            await self.holder.close()
        except Exception as error:  # noqa: BLE001 - it was broken, and a new one takes its place
            _log.warning("%s could not be closed: %s: %s", self.name, type(error).__name__, error)


class _Running:
    """A row in flight: its task, and whether the part is going down under it."""

    __slots__ = ("interrupted", "left", "loop", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        self.loop = loop
        self.task = task
        self.interrupted = False
        self.left: concurrent.futures.Future[None] = concurrent.futures.Future()


def _not_here(error: Exception) -> bool:
    """True for what neither the row nor the part has to answer for."""
    return isinstance(error, LMError) or (isinstance(error, DSPyStreamError) and error.scope != "row")


def _being_cancelled() -> bool:
    """True where somebody cancels the row itself; Python 3.10 cannot tell."""
    return bool(getattr(asyncio.current_task(), "cancelling", int)())


async def _awaited(made: Any) -> Any:
    return await made if inspect.isawaitable(made) else made


class Group:
    """The supervised parts of one program in one run. ``restarts`` counts what was started again."""

    def __init__(self, tree: Tree, clock: Clock) -> None:
        self._supervisor = Supervisor(tree.parts, tree.strategy, tree.intensity)
        self._order = tree.parts
        self._clock = clock
        self._members: dict[str, Member] = {}
        self._down: dict[Member, None] = {}
        self._delay = 0.0
        self._mending: asyncio.Task[None] | None = None
        self._fatal: RestartsExceeded | None = None
        self._closing = False
        self.restarts = 0

    def member(self, name: str, holder: Holder, module: Any, seconds: float | None = None) -> Member:
        """Take a part in, whose rows may take so many seconds; it is opened when the first one needs it."""
        found = self._members[name] = Member(self, name, holder, module, seconds)
        return found

    def check(self) -> None:
        """Raise RestartsExceeded where the parts have been given up."""
        if self._fatal is not None:
            raise self._fatal

    def need(self, member: Member) -> None:
        """Open a part."""
        self._down.setdefault(member)
        self._mend_soon()

    def failed(self, member: Member, error: BaseException, *, replaced: bool = False) -> None:
        """Take down what a failed part concerns, and start it again.

        ``replaced``: the part itself is whole again already, as when one of its worker processes died.

        Raises:
            RestartsExceeded: that was one failure too many.
        """
        self.check()
        reason = f"{type(error).__name__}: {error}" if not replaced else str(error)
        try:
            decision = self._supervisor.failed(member.name, reason, now=self._clock.monotonic())
        except RestartsExceeded as exceeded:
            self._fatal = exceeded
            for other in self._members.values():
                other.wake()
            raise
        concerned = [self._members[name] for name in decision.parts if name in self._members]
        for other in concerned:
            if (other.opened or other is member) and not (replaced and other is member):
                other.down()
                self._down.setdefault(other)
        self.restarts += 1
        self._delay = max(self._delay, decision.delay)
        names = tuple(other.name for other in concerned if other.opened or other is member)
        what = (events.new_id(), events.ACTIVE_CALL_ID.get(), time.time(), member.name, reason, names)
        _log.warning("%s failed (%s); started again: %s", member.name, reason, ", ".join(names))
        events.publish(events.Restarted("part", *what, decision.delay))
        self._mend_soon()

    def _mend_soon(self) -> None:
        if self._down and (self._mending is None or self._mending.done()):
            self._mending = asyncio.get_running_loop().create_task(self._mend())

    async def _mend(self) -> None:
        while self._down and self._fatal is None and not self._closing:
            concerned = [self._members[n] for n in self._order if self._members.get(n) in self._down]
            for member in reversed(concerned):
                await member.shut()
            delay, self._delay = self._delay, 0.0
            if delay:
                await self._clock.sleep(delay)
            for member in concerned:
                if not await self._opened(member):
                    break

    async def _opened(self, member: Member) -> bool:
        generation = member.generation
        try:
            await member.holder.open()
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises: the part has failed
            try:
                self.failed(member, error)
            except RestartsExceeded:
                return False  # those who wait have been told
            return False
        member.opened = True
        if generation == member.generation:  # else it was taken down meanwhile, and is opened once more
            del self._down[member]
            member.up = True
            member.wake()
        return True

    async def aclose(self) -> None:
        """Close all parts, the last one first."""
        self._closing = True
        if self._mending is not None:  # what is being opened is to be closed as well
            await asyncio.wait([self._mending], timeout=_LEAVING)
            self._mending.cancel()
        for name in reversed(self._order):
            member = self._members.get(name)
            if member is not None:
                member.up = False
                await member.shut()
