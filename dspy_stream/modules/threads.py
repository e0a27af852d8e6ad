"""``isolation="thread"``: the code of a part runs in threads of its own, so that it may block.

The steps of a row are driven in one of the threads. Their model calls are made on the engine's loop,
in the row's own context: journal, limits, budget and the rest hold as they do for an inline part.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from typing import Any, ClassVar, Final

from dspy_stream.errors import EXIT_UNAVAILABLE, DSPyStreamError, RowTimeout, Scope
from dspy_stream.lm.deadline import Watch
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.driven import ThreadCall
from dspy_stream.modules.module import Module
from dspy_stream.modules.opening import place_of
from dspy_stream.runtime import Steps
from dspy_stream.threads import DaemonThreads

__all__ = ["HUNG", "THREADS", "Threads", "ThreadsExhausted"]

THREADS: Final = 32
"""Threads of a part at most, where it does not say how many."""

HUNG: Final = 128
"""Threads of a part that rows may hold which nobody waits for any longer."""


class ThreadsExhausted(DSPyStreamError):
    """Too many rows of a part hang in its threads; stops the flow. The rows keep their place."""

    scope: ClassVar[Scope] = "flow"
    exit_code = EXIT_UNAVAILABLE
    code = "threads_exhausted"


class Threads:
    """Runs the rows of one part in threads of its own; also opens and closes what the part holds there.

    A row has ``timeout`` seconds from where it has its thread. A thread cannot be stopped: a row that is no
    longer waited for ends at its next model call, and holds its thread until then. Another thread takes that
    one's place, until ``HUNG`` are held so: that stops the flow with :class:`ThreadsExhausted`. An
    ``aforward`` runs on a loop of the thread's, so it may block as well.
    """

    def __init__(self, module: Module, limit: int = THREADS, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._doing: int | None = None  # the thread
        self._name = type(module).__name__
        # What it has opened is closed before it goes; else it may go, and its threads with it.
        held = callable(getattr(module, "close", None))
        self._module: Callable[[], Any] = (lambda: module) if held else weakref.ref(module)
        self._threads = DaemonThreads(limit, f"part_{self._name}")

    @property
    def count(self) -> int:
        """Threads that have been started."""
        return self._threads.count

    def steps(self, inputs: Mapping[str, Any]) -> Steps[Any]:
        """One row, as steps that only wait.

        Raises:
            RowTimeout: it took too long, from where it had its thread.
            ThreadsExhausted: too many threads are held by rows that are no longer waited for.
        """
        made = yield self._row(ThreadCall(self._timeout), copy_context(), inputs)
        return made

    async def _row(self, call: ThreadCall, context: Context, inputs: Mapping[str, Any]) -> Any:
        if self._threads.left >= HUNG:
            raise ThreadsExhausted(
                f"{self._name}: {self._threads.left} threads are held by rows that are no longer waited for, "
                "and no thread can be stopped: see that the code ends by itself, with a limit for what it "
                "waits for, or use isolation='process', and run again to go on"
            )
        module = self._module()
        if self._timeout is None:
            return await self._ended(call, lambda: context.run(call.run, lambda: heard_steps(module, inputs)))
        watch = Watch(self._timeout, held=True)

        def begin() -> Any:
            watch.go_on()
            return context.run(call.run, lambda: heard_steps(module, inputs))

        try:
            with watch:
                return await self._ended(call, begin)
        except TimeoutError:
            if not watch.expired:  # the row's own
                raise
            raise RowTimeout(f"not finished within the limit of {self._timeout:g} s") from None

    async def _ended(self, call: ThreadCall, work: Callable[[], Any]) -> Any:
        future = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            call.write_off()
            self._threads.leave(future)
            raise

    async def open(self) -> None:
        """Have the module get its resource."""
        await self._do(self._module().open)

    def where(self) -> str:
        """Where the thread is that opens or closes it, or asks how it is."""
        return place_of(self._doing)

    async def close(self) -> None:
        """Have the module give its resource back."""
        await self._do(self._module().close)

    async def healthy(self, begun: Callable[[], object]) -> bool:
        """Ask the module how it is; what it asks may block."""
        return bool(await self._do(self._module().healthy, begun))

    async def _do(self, fn: Callable[[], Any], begun: Callable[[], object] = lambda: None) -> Any:
        def run() -> Any:
            self._doing = threading.get_ident()
            begun()
            return fn()

        future = self._threads.submit(run)
        try:
            made = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._threads.leave(future)
            raise
        return await made if inspect.isawaitable(made) else made

    async def aclose(self) -> None:
        """Let the threads end."""
        self._threads.close()
