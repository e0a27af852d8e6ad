"""Worker processes as the parent sees them: started when they are needed, ended when they must be.

All of it happens on the engine's loop. Pipes are the only thing that parent and worker share: a worker
whose standard input ends knows that its parent is gone, and ends as well.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from pathlib import Path
from typing import Any, Final

from dspy_stream.errors import ConfigurationError
from dspy_stream.lm.providers import key_names
from dspy_stream.modules.process.frames import Frame, Unframer, frame

__all__ = ["OUT_OF_MEMORY", "WORKER", "Died", "Pool", "Worker", "described"]

_log = logging.getLogger("dspy_stream")

WORKER: Final = "dspy_stream.cli.worker"
"""What a worker process runs."""

OUT_OF_MEMORY: Final = 250
"""With this a worker ends that has found no memory for its row."""

# A file in the working folder is not to stand in for a module that the worker begins with; Python 3.10
# cannot be told so.
_FLAGS: Final = ("-P",) if sys.version_info >= (3, 11) else ()
_READ: Final = 1 << 18
_STARTS: Final = 3  # workers that may end while they start, one after the other, before it is given up
_SCOPES: Final = 64  # that a worker is asked to remember
_LOOKS: Final = 0.5  # seconds between looks whether a process has ended that does not close its pipes
_ENDING: Final = 2.0  # seconds for a process that has been told to end, or has closed its pipes


class Died(Exception):
    """The worker's process has ended, or no longer speaks our language. ``begun``: it had begun the row."""

    def __init__(self, reason: str, *, begun: bool) -> None:
        super().__init__(reason)
        self.begun = begun


def described(code: int | None) -> str:
    """How a process ended, for a reader.

    >>> described(-11), described(3)
    ('killed by SIGSEGV', 'exit code 3')
    """
    if code is None:
        return "it stopped speaking"
    if code == OUT_OF_MEMORY:
        return f"exit code {code}: it found no memory"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a signal that has no name, such as a real-time one
        return f"killed by signal {-code}"


class Worker:
    """One worker process. ``scopes`` and ``heads`` are what it, or the parent, has been told already.

    ``opened`` says since when what the code in it holds is open, where that was started again.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in = process.stdin
        self._out = process.stdout
        self._unframer = Unframer()
        self._frames: deque[Frame] = deque()
        self.scopes: OrderedDict[bytes, int] = OrderedDict()
        self.row = 0
        self.heads: dict[int, Any] = {}
        self.round = 0
        self.begun = time.monotonic()
        self.opened: dict[str, float] = {}
        self._watching: asyncio.Task[None] | None = None

    @staticmethod
    async def spawn() -> Worker:
        """Start a process."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *_FLAGS, "-m", WORKER, str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(),
        )
        made = Worker(process)
        made._watching = asyncio.get_running_loop().create_task(made._watched())
        return made

    async def _watched(self) -> None:
        """Close the pipes soon after the process has ended: one that it has forked may hold them open."""
        while self.alive:  # noqa: ASYNC110 - asyncio's own waiting may be for the pipes, too
            await asyncio.sleep(_LOOKS)
        await asyncio.sleep(_LOOKS)
        self._process._transport.close()  # type: ignore[attr-defined]

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once it is known that the process has ended."""
        return self._process.returncode is None

    def send(self, data: bytes) -> None:
        """Put a frame on its way. That nobody reads it shows when the next one is received."""
        if not self._in.is_closing():
            self._in.write(data)

    def scope(self, key: bytes) -> tuple[int, bool]:
        """The number of a scope for this worker, and whether it is to be told what the number means."""
        number = self.scopes.get(key)
        if number is not None:
            self.scopes.move_to_end(key)
            return number, False
        number = len(self.scopes) if len(self.scopes) < _SCOPES else self.scopes.popitem(last=False)[1]
        self.scopes[key] = number
        return number, True

    async def receive(self) -> Frame | None:
        """The next frame; None once the process has closed its end, or sent what is no frame."""
        try:
            while not self._frames:
                data = await self._out.read(_READ)
                if not data:
                    return None
                self._frames.extend(self._unframer.feed(data))
        except (ConnectionError, ValueError):
            return None
        return self._frames.popleft()

    async def ended(self) -> str:
        """How it ended, once it has closed its end; it is killed where it only did that."""
        try:
            await asyncio.wait_for(self._process.wait(), _ENDING)
        except asyncio.TimeoutError:
            if self.alive:
                self.kill()
                return described(None)
        return described(self._process.returncode)

    def kill(self) -> None:
        """End it at once."""
        if self.alive:
            try:
                self._process.kill()
            except ProcessLookupError:
                pass
        self._in.close()

    async def close(self, seconds: float) -> None:
        """Let it give back what it holds, and end; it is killed when it has not within so many seconds."""
        if self.alive:
            self.send(frame({"kind": "close"}))
            try:
                await asyncio.wait_for(self._process.wait(), seconds)
            except asyncio.TimeoutError:
                if self.alive:
                    what = "worker process %d did not give back what it holds within %g s, and was ended"
                    _log.warning(what, self.pid, seconds)
        self.kill()
        await self.gone()

    async def gone(self) -> None:
        """Wait until it has ended, and what watched it with it."""
        try:
            await asyncio.wait_for(self._process.wait(), _ENDING)
        except asyncio.TimeoutError:  # a process that it has forked holds the pipes
            pass
        if self._watching is not None:
            self._watching.cancel()
        self._process._transport.close()  # type: ignore[attr-defined]


def _environment() -> dict[str, str]:
    """That of this process, without the keys of providers, and so that the worker finds this package."""
    kept = {name: value for name, value in os.environ.items() if name not in key_names()}
    package = str(Path(__file__).parents[3])
    earlier = kept.get("PYTHONPATH")
    kept["PYTHONPATH"] = package if not earlier else os.pathsep.join((package, earlier))
    return kept


class Pool:
    """At most ``size`` workers, one row each at a time.

    ``prepare`` makes a fresh process ready, and raises what keeps it from being so, or ``Died``. They have
    ``closing`` seconds to give back what they hold.
    """

    def __init__(
        self, who: str, size: int, prepare: Callable[[Worker], Coroutine[Any, Any, None]], closing: float
    ) -> None:
        self._closing = closing
        self._who = who
        self._prepare = prepare
        self._size = size
        self._free = asyncio.Semaphore(size)
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._round = 0
        self._reaping: set[asyncio.Task[Any]] = set()

    async def acquire(self, *, fresh: bool = False) -> Worker:
        """A worker that nobody else has; started if there is none, or if it is to be a ``fresh`` one."""
        await self._free.acquire()
        try:
            if fresh and self._idle and len(self._all) >= self._size:
                self._end(self._idle.pop())
            while self._idle and not fresh:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
                self._end(worker)
            return await self._started()
        except BaseException:
            self._free.release()
            raise

    async def _started(self) -> Worker:
        for attempt in range(_STARTS):
            # In a context of its own: what watches the pipes would keep that of the row, and its program.
            spawned = Context().run(asyncio.get_running_loop().create_task, Worker.spawn())
            worker = await spawned
            worker.round = self._round
            self._all.add(worker)
            try:
                await self._prepare(worker)
            except Died as died:
                self._end(worker)
                if attempt + 1 == _STARTS:
                    raise ConfigurationError(
                        f"{self._who}: its worker processes end while they start ({died}); see what "
                        "they wrote to standard error"
                    ) from None
            except BaseException:
                self._end(worker)
                raise
            else:
                return worker
        raise AssertionError  # the loop returns or raises

    def release(self, worker: Worker) -> None:
        """Give it back for another row."""
        if worker.round == self._round:
            self._idle.append(worker)
        else:
            self._end(worker)
        self._free.release()

    def discard(self, worker: Worker) -> None:
        """Give it back to be ended."""
        self._end(worker)
        self._free.release()

    def _end(self, worker: Worker) -> None:
        if worker not in self._all:
            return
        self._all.discard(worker)
        worker.kill()
        task = asyncio.get_running_loop().create_task(worker.gone())  # else it stays a zombie
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)

    async def warm(self) -> None:
        """See that there is one."""
        self.release(await self.acquire())

    async def close(self) -> None:
        """End all of them: the idle ones properly, the others with their rows."""
        self._round += 1
        idle, self._idle = self._idle, []
        for worker in self._all.difference(idle):
            self._end(worker)
        self._all.clear()
        await asyncio.gather(
            *(worker.close(self._closing) for worker in idle), *self._reaping, return_exceptions=True
        )
