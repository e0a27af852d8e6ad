"""Where the code of parts runs: inline, in threads, in processes; supervised where they hold resources.

A :class:`Hosts` belongs to one run of a flow, or to the process for calls outside flows. What it has
started for a part serves all rows of the part, and ends with it.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from dspy_stream import runtime
from dspy_stream.clock import Clock, SystemClock
from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.member import OWNED, Holder, Member
from dspy_stream.modules.module import Module
from dspy_stream.modules.opening import seconds_to_close, seconds_to_open, told_when_late
from dspy_stream.modules.process.host import PROCESSES, Processes
from dspy_stream.modules.process.origin import origin_of
from dspy_stream.modules.scope import TICKET
from dspy_stream.modules.supervision import Group, Tree, holds_resources
from dspy_stream.modules.threads import THREADS, Threads
from dspy_stream.runtime import Steps

__all__ = [
    "HOSTS",
    "INLINE",
    "ISOLATIONS",
    "Call",
    "Hosts",
    "Isolation",
    "Place",
    "hosts",
    "is_hosted",
    "within",
]

Isolation = Literal["inline", "thread", "process"]
ISOLATIONS: Final = ("inline", "thread", "process")
Call = Callable[[Module, Mapping[str, Any]], Steps[Any]]
"""How a module is called for one row."""


@dataclass(frozen=True)
class Place:
    """Where a part's code runs, and in which group of parts it is supervised.

    ``workers`` are its threads or processes at most. ``factory`` says how a worker process makes the
    module. ``name`` is the part's in ``tree``; without a tree it is supervised alone. ``timeout`` bounds
    a row from where it has its thread or worker process, or its part holds its resource; where there is
    neither, whoever drives the row does it.
    """

    isolation: Isolation = "inline"
    workers: int | None = None
    factory: Any = None
    name: str = "part"
    tree: Tree | None = None
    timeout: float | None = None

    def bounds(self, module: Module) -> bool:
        """True where a row's time is kept here: the wait for thread, worker or resource is not the row's."""
        return is_hosted(module, self)

    def capacity(self, rows: int) -> int:
        """How many of ``rows`` can be at work: the others would only wait."""
        if self.isolation == "inline":
            return rows
        return min(rows, self.workers or (THREADS if self.isolation == "thread" else PROCESSES))

    def check(self, module: Module) -> None:
        """Find out before any row whether the module can run there.

        Raises:
            ConfigurationError: a factory without processes, a worker could not make the module, or its
                ``open_timeout`` or ``close_timeout`` is none.
        """
        seconds_to_open(module)
        seconds_to_close(module)
        if self.isolation != "process" and self.factory is not None:
            raise ConfigurationError(f"{self.name}: factory=... is for isolation='process'")
        if self.isolation == "process":
            origin_of(module, self.factory, self.name)


INLINE: Final = Place()


def is_hosted(module: Module, place: Place) -> bool:
    """True where a part is not simply called."""
    if getattr(module, "isolation", None) == "thread":  # it has threads of its own, as a DSPyModule has
        return False
    return place.isolation != "inline" or holds_resources(module)


class Host(Holder, Protocol):
    """Runs the rows of one part, and holds what they run in."""

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """One row."""
        ...

    async def aclose(self) -> None:
        """End it all."""
        ...


class Inline:
    """The engine's own thread."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """The module's own steps."""
        return heard_steps(self._module, inputs)

    async def open(self) -> None:
        """Have the module get its resource."""
        await self._done("open", seconds_to_open(self._module))

    async def _done(self, name: str, seconds: float) -> Any:
        with told_when_late(f"{type(self._module).__name__}.{name}()", seconds):
            made = getattr(self._module, name)()
        return await made if inspect.isawaitable(made) else made

    def where(self) -> str:
        """Nobody can tell of a coroutine, and other code is told of while it runs."""
        return ""

    async def close(self) -> None:
        """Have the module give its resource back."""
        await self._done("close", seconds_to_close(self._module))

    async def healthy(self, begun: Callable[[], object]) -> bool:
        """Ask the module."""
        begun()
        return bool(await self._done("healthy", seconds_to_close(self._module)))

    async def aclose(self) -> None:
        """Nothing."""


class _Hosted:
    """One part with its host, and its place among the supervised parts where it has one."""

    def __init__(self, host: Host, member: Member | None) -> None:
        self.host = host
        self.member = member

    def call(self, _module: Module, inputs: Mapping[str, Any]) -> Steps[Any]:
        """One row."""
        if self.member is None:
            return self.host.steps(inputs)
        return self.member.steps(lambda: self.host.steps(inputs))

    async def aclose(self) -> None:
        """Give back what the part holds, and end what it runs in."""
        if self.member is not None:
            await self.member.shut()
        await self.host.aclose()


class Hosts:
    """What runs the parts of one flow, or of the calls outside flows. May be used from any thread.

    ``anew``: parts that were given up are tried again after a while; a flow stops instead. ``on_restart``
    hears of each part that is started again, and why.
    """

    def __init__(self, clock: Clock | None = None, *, anew: bool = False) -> None:
        self._anew = anew
        self._clock = clock if clock is not None else SystemClock()
        self._lock = threading.RLock()
        self._hosted: dict[tuple[int, Place | None], _Hosted] = {}
        self._groups: dict[int, tuple[Tree, Group]] = {}
        # By the step whose row met it; of calls outside flows there is none.
        self._deaths: Counter[str] = Counter()
        self._restarts: Counter[str] = Counter()
        self.on_restart: Callable[[str, str], None] | None = None
        self._open: list[Host] = []
        self._leaving: set[Future[None]] = set()
        self._ends: dict[tuple[int, Place | None], weakref.finalize[Any, Any]] = {}

    def call(self, module: Module, place: Place) -> Call:
        """How to call a part there; ``heard_steps`` itself where it is simply called."""
        return self._prepared(module, place).call if is_hosted(module, place) else heard_steps

    def steps(self, module: Module, place: Place, inputs: Mapping[str, Any]) -> Steps[Any]:
        """One call of a part there."""
        return self.call(module, place)(module, inputs)

    def _prepared(self, module: Module, place: Place) -> _Hosted:
        # What a module holds is one, wherever it is a part: it must not be opened twice.
        key = (id(module), None if holds_resources(module) else place)
        found = self._hosted.get(key)
        if found is None:
            with self._lock:
                found = self._hosted.get(key)
                if found is None:
                    found = self._hosted[key] = self._made(module, place)
                    # A program that is dropped takes its workers with it, and its id may be another's then.
                    self._ends[key] = weakref.finalize(module, self._dropped, key)
                    self._ends[key].atexit = False
        return found

    def _dropped(self, key: tuple[int, Place | None]) -> None:
        """End what ran a module that is no more; called wherever its last reference went."""
        with self._lock:
            self._ends.pop(key, None)
            found = self._hosted.pop(key, None)
            if found is None:
                return
            self._open.remove(found.host)
            if found.member is not None:
                self._left(found.member)
        future = asyncio.run_coroutine_threadsafe(found.aclose(), runtime.loop())
        self._leaving.add(future)
        future.add_done_callback(self._leaving.discard)

    def _left(self, member: Member) -> None:
        for number, (_, group) in list(self._groups.items()):
            if member.group is group and group.leave(member):
                del self._groups[number]

    def _made(self, module: Module, place: Place) -> _Hosted:
        member: Member | None = None
        host: Host
        if place.isolation == "process":
            host = self._processes(module, place)
        elif place.isolation == "thread":
            host = Threads(module, place.workers or THREADS, place.timeout)
        else:
            host = Inline(module)
        if holds_resources(module):
            group = self._group(place)
            seconds = place.timeout if place.isolation == "inline" else None
            # A worker process has its time from where it is started, and until it has ended.
            opening = seconds_to_open(module) if place.isolation != "process" else None
            member = group.member(place.name, host, module, seconds, opening)
        if isinstance(host, Processes):
            host.on_death = self._counted(host, member)
            host.on_restart = self._restarted
        self._open.append(host)
        return _Hosted(host, member)

    def _processes(self, module: Module, place: Place) -> Processes:
        if not _processes_allowed:
            raise ConfigurationError(
                f"{place.name}: a worker process starts no worker processes; what starts a flow belongs "
                'under `if __name__ == "__main__":`'
            )
        origin = origin_of(module, place.factory, place.name)
        return Processes(module, origin, place.name, workers=place.workers, timeout=place.timeout)

    def _counted(self, host: Processes, member: Member | None) -> Callable[[str, bool], None]:
        """A worker's end is a failure of its part, unless a row is to blame; another takes its place."""

        def died(reason: str, blamed: bool) -> None:
            self._deaths[_step()] += 1
            if member is not None and not blamed:
                member.group.failed(member, host.failure(reason), replaced=True)

        return died

    def _group(self, place: Place) -> Group:
        tree = place.tree if place.tree is not None else Tree((place.name,))
        found = self._groups.get(id(tree))
        if found is None:
            group = Group(tree, self._clock, anew=self._anew, told=self._restarted)
            found = self._groups[id(tree)] = (tree, group)
        return found[1]

    def _restarted(self, part: str, reason: str) -> None:
        self._restarts[_step()] += 1
        if self.on_restart is not None:
            self.on_restart(part, reason)

    # ---------------------------------------------------------------------------- what comes of it

    @property
    def deaths(self) -> int:
        """Worker processes that ended by themselves."""
        return sum(self._deaths.values())

    def mishaps(self, step: str) -> tuple[int, int]:
        """How often what a step's rows needed was started again, and how many of its processes ended."""
        return self._restarts[step], self._deaths[step]

    @property
    def restarts(self) -> int:
        """How often parts were started again because one had failed."""
        return sum(self._restarts.values())

    async def aclose(self) -> None:
        """Close all resources, then end threads and processes; awaited on the engine's loop."""
        with self._lock:
            groups, self._groups = [group for _, group in self._groups.values()], {}
            opened, self._open = self._open, []
            self._hosted = {}
            ends, self._ends = self._ends, {}
        for end in ends.values():
            end.detach()  # the module may outlive many runs
        for group in reversed(groups):
            await group.aclose()
        for host in reversed(opened):
            await host.aclose()
        await asyncio.gather(*map(asyncio.wrap_future, list(self._leaving)), return_exceptions=True)


def within(module: Module, inputs: Mapping[str, Any]) -> Steps[Any]:
    """The steps of a module that another one calls: opened where it holds a resource that nobody opens.

    A module that holds a resource itself opens what is in it by itself.
    """
    if holds_resources(module) and OWNED.get() is None:
        return hosts().steps(module, Place(name=type(module).__name__), inputs)
    return heard_steps(module, inputs)


def _step() -> str:
    ticket = TICKET.get()
    return ticket.step if ticket is not None else ""


def close_all() -> None:
    """Give back what calls outside flows hold, at the end of a worker process; blocks."""
    with _lock:
        found = _process.pop() if _process else None
    if found is not None:
        runtime.run(found.aclose())


HOSTS: Final[ContextVar[Hosts | None]] = ContextVar("dspy_stream_hosts", default=None)
"""Those of the flow whose row this context works for; None outside flows."""

_processes_allowed = True


def forbid_processes() -> None:
    """Start no worker process in this process, which is one."""
    global _processes_allowed
    _processes_allowed = False


def processes_allowed() -> bool:
    """False in a worker process."""
    return _processes_allowed


_process: list[Hosts] = []
_lock = threading.Lock()


def hosts() -> Hosts:
    """Those in force here: the flow's, else those of the process, which are closed when it ends."""
    found = HOSTS.get()
    return found if found is not None else of_process()


def of_process() -> Hosts:
    """Those of calls outside flows."""
    with _lock:
        if not _process:
            made = Hosts(anew=True)
            runtime.loop().call_soon_threadsafe(runtime.before_stop, made)
            _process.append(made)
    return _process[0]
