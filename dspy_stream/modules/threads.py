"""``isolation="thread"``: the code of a part runs in threads of its own, so that it may block.

The steps of a row are driven in one of the threads. Their model calls are made on the engine's loop,
in the row's own context: journal, limits, budget and the rest hold as they do for an inline part.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, copy_context
from typing import Any, ClassVar, Final

from dspy_stream import runtime
from dspy_stream.errors import EXIT_UNAVAILABLE, DSPyStreamError, RowTimeout, Scope
from dspy_stream.lm.deadline import Watch
from dspy_stream.modules.calls import heard_steps
from dspy_stream.modules.module import Module
from dspy_stream.modules.opening import place_of
from dspy_stream.modules.together import GUARD
from dspy_stream.runtime import GIVES_UP, Ask, Pending, Steps
from dspy_stream.threads import DaemonThreads

__all__ = ["HUNG", "THREADS", "Threads", "ThreadsExhausted", "WrittenOff"]

THREADS: Final = 32
"""Threads of a part at most, where it does not say how many."""

HUNG: Final = 128
"""Threads of a part that rows may hold which nobody waits for any longer."""

_WRITTEN_OFF: Final = "the row that this call was made for is no longer waited for"


class WrittenOff(BaseException):
    """The row is no longer waited for; like a cancellation, it passes through ``except Exception``."""


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
        made = yield self._row(_Call(self._timeout), copy_context(), inputs)
        return made

    async def _row(self, call: _Call, context: Context, inputs: Mapping[str, Any]) -> Any:
        if self._threads.left >= HUNG:
            raise ThreadsExhausted(
                f"{self._name}: {self._threads.left} threads are held by rows that are no longer waited for, "
                "and no thread can be stopped: see that the code ends by itself, with a limit for what it "
                "waits for, or use isolation='process', and run again to go on"
            )
        module = self._module()
        if self._timeout is None:
            return await self._ended(call, lambda: context.run(call.run, module, inputs))
        watch = Watch(self._timeout, held=True)

        def begin() -> Any:
            watch.go_on()
            return context.run(call.run, module, inputs)

        try:
            with watch:
                return await self._ended(call, begin)
        except TimeoutError:
            if not watch.expired:  # the row's own
                raise
            raise RowTimeout(f"not finished within the limit of {self._timeout:g} s") from None

    async def _ended(self, call: _Call, work: Callable[[], Any]) -> Any:
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


class _Call:
    """One row in a thread, which has so many ``seconds``."""

    __slots__ = ("_cancel", "_lock", "_over", "_seconds")

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._over = False
        self._cancel: Callable[[], object] | None = None

    def run(self, module: Module, inputs: Mapping[str, Any]) -> Any:
        """Run the module to its end; that its code runs is noted while it does."""
        if self._seconds is not None:
            GIVES_UP.set(runtime.loop().time() + self._seconds)
        guard = GUARD.get()
        if guard is None:
            return self._drive(heard_steps(module, inputs))
        guard.entered()
        try:
            return self._drive(heard_steps(module, inputs))
        finally:
            guard.left()

    def _drive(self, steps: Steps[Any]) -> Any:
        outcome = runtime.advance(steps)
        while isinstance(outcome, Pending):
            try:
                value = self._waited(outcome.effect)
            except BaseException as error:  # noqa: BLE001, PERF203 - thrown into the steps, which may handle it
                outcome = runtime.advance(steps, error=error)
            else:
                outcome = runtime.advance(steps, value)
        return outcome

    def _waited(self, effect: Awaitable[Any]) -> Any:
        if type(effect) is not Ask:  # code of the user's own, which may block
            return asyncio.run(self._cancellable(effect))
        if self._over:  # asked before it is made, since a call that was made may be paid for
            raise WrittenOff(_WRITTEN_OFF)
        guard = GUARD.get()
        future = asyncio.run_coroutine_threadsafe(_await(effect), runtime.loop())
        self._until_over(future.cancel)
        if guard is not None:
            guard.left()
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise WrittenOff(_WRITTEN_OFF) from None
        finally:
            self._cancel = None
            if guard is not None:
                guard.entered()

    async def _cancellable(self, effect: Awaitable[Any]) -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._until_over(lambda: loop.call_soon_threadsafe(task.cancel))
        try:
            return await effect
        finally:
            self._cancel = None

    def _until_over(self, cancel: Callable[[], object]) -> None:
        with self._lock:
            self._cancel = cancel
            if self._over:
                cancel()

    def write_off(self) -> None:
        """Cancel the call in flight, and any that is still to come."""
        with self._lock:
            self._over = True
            if self._cancel is not None:
                self._cancel()


async def _await(effect: Awaitable[Any]) -> Any:
    return await effect
