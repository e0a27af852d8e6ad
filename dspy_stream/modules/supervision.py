"""Parts that hold resources: opened before their first row, closed at the end, started again on failure.

A part is supervised where its module has ``open`` and ``close``; see :class:`Supervised`. What is
to be started again is decided in :mod:`~dspy_stream.modules.supervisor`; here it is done. All of it
happens on the engine's loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dspy_stream import events
from dspy_stream.clock import Clock
from dspy_stream.errors import DSPyStreamError
from dspy_stream.modules.member import LEAVING, Holder, Member
from dspy_stream.modules.supervisor import Intensity, RestartsExceeded, Strategy, Supervisor

__all__ = ["Group", "Supervised", "Tree", "holds_resources"]

_log = logging.getLogger("dspy_stream")

_USUAL: Final = Intensity()


class Supervised(Protocol):
    """A module that holds something: a connection, a local model, a file.

    ``open`` gets it and keeps it on the module, ``close`` gives it back; either may be a coroutine
    function. They are called on the thread that runs the rows of an inline part, on one of the part's
    threads under ``isolation="thread"``, and in each worker under ``isolation="process"``; ``close`` also
    after a failure, when what it closes may be broken. ``open`` that raises is a failure of the part.

    That holds for a part of a program or a flow, and for a module that another one calls in its
    ``forward``, unless that one holds a resource itself: then it opens what is in it. Called by itself,
    a module is opened by whoever calls it.

    Four further attributes are looked at where they are there. ``failures``: the classes of exceptions that
    mean that the part has failed, and not the row. ``healthy()``: asked after any other failure of a row,
    where ``open`` is called; False means the same, and so does an exception. ``open_timeout``: the seconds
    that ``open`` may take, and a worker process until it is ready, 120 unless set; one that takes longer
    stops the flow with :class:`~dspy_stream.modules.opening.OpenTimeout`. ``close_timeout``: the seconds that
    ``close`` and ``healthy`` may take, 10 unless set; a ``close`` that takes longer is no longer waited for
    (in a worker process, which ends with it), a ``healthy`` that does has said False. Inline code that blocks
    cannot be interrupted: after that time the log says where it is.
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


def _nobody(_part: str, _reason: str) -> None:
    """Nobody wants to know."""


class Group:
    """The supervised parts of one program in one run. ``told`` hears of each that is started again, and why.

    ``anew``: parts that were given up are tried again once the window of their intensity is over, as
    calls outside flows need it, for which there is no other run.
    """

    def __init__(
        self, tree: Tree, clock: Clock, *, anew: bool = False, told: Callable[[str, str], None] = _nobody
    ) -> None:
        self._told = told
        self._window = tree.intensity.seconds if anew else math.inf
        self._until = math.inf
        self._supervisor = Supervisor(tree.parts, tree.strategy, tree.intensity)
        self._order = tree.parts
        self._clock = clock
        self._members: dict[str, Member] = {}
        self._down: dict[Member, None] = {}
        self._delay = 0.0
        self._mending: asyncio.Task[None] | None = None
        self._fatal: DSPyStreamError | None = None
        self._closing = False
        self.working = True

    def member(
        self,
        name: str,
        holder: Holder,
        module: Any,
        seconds: float | None = None,
        opening: float | None = None,
    ) -> Member:
        """Take a part in; it is opened when the first row needs it.

        Its rows may take so many ``seconds``, and its ``opening`` so many.
        """
        found = self._members[name] = Member(self, name, holder, module, seconds, opening)
        return found

    def leave(self, member: Member) -> bool:
        """Forget a part that is no more; True where it was the last one."""
        if self._members.get(member.name) is member:
            del self._members[member.name]
        self._down.pop(member, None)
        member.up = False
        return not self._members

    def check(self) -> None:
        """Raise why the parts have been given up, where they have."""
        if self._fatal is not None and self._clock.monotonic() >= self._until:
            self._fatal = None
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
            now = self._clock.monotonic()
            decision = self._supervisor.failed(member.name, reason, now=now, working=self.working)
        except RestartsExceeded as exceeded:
            self._give_up(exceeded)
            raise
        self.working = False
        concerned = [self._members[name] for name in decision.parts if name in self._members]
        for other in concerned:
            if (other.opened or other is member) and not (replaced and other is member):
                other.down()
                self._down.setdefault(other)
        self._told(member.name, reason)
        self._delay = max(self._delay, decision.delay)
        names = tuple(other.name for other in concerned if other.opened or other is member)
        what = (events.new_id(), events.ACTIVE_CALL_ID.get(), time.time(), member.name, reason, names)
        _log.warning("%s failed (%s); started again: %s", member.name, reason, ", ".join(names))
        events.publish(events.Restarted("part", *what, decision.delay))
        self._mend_soon()

    def _give_up(self, error: DSPyStreamError) -> None:
        self._fatal = error
        self._until = self._clock.monotonic() + self._window
        for member in self._members.values():
            member.wake()

    def _mend_soon(self) -> None:
        if self._down and (self._mending is None or self._mending.done()):
            self._mending = asyncio.get_running_loop().create_task(self._mend())

    async def _mend(self) -> None:
        try:
            await self._mended()
        finally:
            self._mending = None  # a task keeps the context of the row that it began for, and its program

    async def _mended(self) -> None:
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
            await member.open()
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises: the part has failed
            if isinstance(error, DSPyStreamError) and error.scope != "row":
                self._give_up(error)  # it would be so again: no factory, no key, no end within its time
                return False
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
            mending = self._mending
            await asyncio.wait([mending], timeout=LEAVING)
            mending.cancel()
        for name in reversed(self._order):
            member = self._members.get(name)
            if member is not None:
                member.up = False
                await member.shut()
