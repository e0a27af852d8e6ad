"""One supervised part: its rows wait while it is down, and begin anew where it goes down under them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from typing import Any, Final, Protocol

from dspy_stream.errors import DSPyStreamError, LMError, RowTimeout
from dspy_stream.lm.deadline import Watch
from dspy_stream.modules.opening import OpenTimeout, seconds_to_close
from dspy_stream.modules.together import Branch
from dspy_stream.runtime import Steps, hop

__all__ = ["LEAVING", "OWNED", "Holder", "Keeper", "Member"]

_log = logging.getLogger("dspy_stream")

# A row that has brought its part down so often is at fault itself.
_BLAMED: Final = 2
LEAVING: Final = 5.0
"""Seconds that interrupted rows may take until the resource is closed under them."""


OWNED: Final[ContextVar[str | None]] = ContextVar("dspy_stream_owned", default=None)
"""The part whose code runs here and which holds a resource; None where there is none."""


class Holder(Protocol):
    """What opens and closes the resource of one part."""

    async def open(self) -> None:
        """Get it."""
        ...

    def where(self) -> str:
        """Where the code is that gets it; empty where that cannot be told."""
        ...

    async def close(self) -> None:
        """Give it back."""
        ...

    async def healthy(self, begun: Callable[[], object]) -> bool:
        """Ask the part, where its code runs, whether it is well; only where its module has ``healthy``.

        ``begun`` is called, in whatever thread, when it begins to answer.
        """
        ...


class Keeper(Protocol):
    """What keeps parts up: their group. ``working``: a row has come to its end since the last failure."""

    working: bool

    def need(self, member: Member) -> None:
        """Open a part."""
        ...

    def failed(self, member: Member, error: BaseException, *, replaced: bool = False) -> None:
        """Start it again, and what depends on it."""
        ...

    def check(self) -> None:
        """Raise where it has been given up."""
        ...


class Interrupted(Exception):
    """The part is being started again; the row begins anew."""


class Member:
    """One part in its group. ``steps`` runs its rows; the rest is the group's business.

    Without ``opening`` its holder keeps the time of opening and closing by itself.
    """

    def __init__(
        self,
        group: Keeper,
        name: str,
        holder: Holder,
        module: Any,
        seconds: float | None = None,
        opening: float | None = None,
    ) -> None:
        self._seconds = seconds
        self._opening = opening
        self._closing = seconds_to_close(module)
        self.name = name
        self.holder = holder
        self.up = False
        self.opened = False
        self.generation = 0
        self.group = group
        self._failures: tuple[type[BaseException], ...] = tuple(getattr(module, "failures", ()))
        self._asks = callable(getattr(module, "healthy", None))
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
            generation = self.generation  # before it is looked whether it is up: that may end at any time
            if not self.up:
                yield hop(self._wait())
                continue
            context = copy_context()
            context.run(OWNED.set, self.name)
            branch = Branch(context, context.run(make))
            try:
                branch.begin()
                if branch.waits:
                    yield self._followed(branch)
                made = branch.result()
            except Interrupted:
                continue
            except Exception as error:
                if _not_here(error):
                    raise
                blamed += yield hop(self._judge(generation, error))
                if generation == self.generation or blamed >= _BLAMED:
                    self.group.working = True
                    raise
            else:
                self.group.working = True
                return made

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
            if await self._well():
                return False
            if generation != self.generation:
                return False
        self.group.failed(self, error)
        return not getattr(error, "no_row_to_blame", False)

    async def _well(self) -> bool:
        if not self._asks:
            return True
        watch = Watch(self._closing, held=True)
        try:
            return bool(await _in_time(watch, self.holder.healthy(watch.go_on)))
        except _Late:
            _log.warning("%s does not say within %g s how it is%s", self.name, self._closing, self._place())
            return False
        except Exception as error:  # noqa: BLE001 - asking over a dead connection fails as well
            _log.warning("%s does not say how it is: %s: %s", self.name, type(error).__name__, error)
            return False

    async def _wait(self) -> None:
        if not self.up:
            self.group.need(self)
        while not self.up:
            self.group.check()
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
        self.up = False
        self.generation += 1
        for entry in list(self._running.values()):
            entry.interrupted = True
            entry.loop.call_soon_threadsafe(entry.task.cancel)

    async def open(self) -> None:
        """Get the resource.

        Raises:
            OpenTimeout: that did not come to an end.
            Exception: it failed.
        """
        if self._opening is None:
            await self.holder.open()
            return
        try:
            await _in_time(Watch(self._opening), self.holder.open())
        except _Late:
            raise OpenTimeout.of(f"{self.name}.open()", self._opening, self.holder.where()) from None

    async def shut(self) -> None:
        """Close the resource once the rows have left; that it fails or takes too long is only noted."""
        leaving = [entry.left for entry in self._running.values() if entry.interrupted]
        if leaving:
            await asyncio.wait([asyncio.wrap_future(left) for left in leaving], timeout=LEAVING)
        if not self.opened:
            return
        self.opened = False
        try:
            if self._opening is None:
                await self.holder.close()
            else:
                await _in_time(Watch(self._closing), self.holder.close())
        except _Late:
            _log.warning(
                "%s.close() did not come to an end within %g s, and is no longer waited for%s",
                *(self.name, self._closing, self._place()),
            )
        except Exception as error:  # noqa: BLE001 - it was broken, and a new one takes its place
            _log.warning("%s could not be closed: %s: %s", self.name, type(error).__name__, error)

    def _place(self) -> str:
        where = self.holder.where()
        return f"; it is at {where}" if where else ""


class _Late(Exception):
    """It did not come to an end in time."""


async def _in_time(watch: Watch, doing: Awaitable[Any]) -> Any:
    try:
        with watch:
            return await doing
    except TimeoutError:
        if not watch.expired:  # of the code itself
            raise
        raise _Late from None


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
