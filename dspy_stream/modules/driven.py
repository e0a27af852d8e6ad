"""Steps driven in a thread, so that their code may block: models and coroutines are waited for elsewhere."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

from dspy_stream import runtime
from dspy_stream.modules.together import GUARD
from dspy_stream.runtime import GIVES_UP, Ask, Joint, Steps
from dspy_stream.threads import DaemonThreads

__all__ = ["ThreadCall", "WrittenOff", "in_thread"]


class WrittenOff(BaseException):
    """The work is no longer waited for; like a cancellation, it passes through ``except Exception``."""

    def __init__(self) -> None:
        super().__init__("the work that this call was made for is no longer waited for")


async def in_thread(begin: Callable[[], Steps[Any]]) -> Any:
    """The value of the steps that ``begin`` makes, driven in a thread of their own in this context.

    Coroutines that they wait for run on the running loop. Cancelled, it ends at once; the thread at its
    next wait.
    """
    call = ThreadCall(loop=asyncio.get_running_loop())
    context = copy_context()
    threads = DaemonThreads(1, "dspy_stream program")
    future = threads.submit(lambda: context.run(call.run, begin))
    threads.close()
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        call.write_off()
        raise


class ThreadCall:
    """Steps that are driven in the thread that calls :meth:`run`, within so many ``seconds``.

    What they wait for besides models runs on a loop of the thread's own, so that it may block as well; a
    coroutine of the user's runs on ``loop``, where one is given.
    """

    __slots__ = ("_cancel", "_lock", "_loop", "_over", "_seconds")

    def __init__(self, seconds: float | None = None, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._seconds = seconds
        self._loop = loop
        self._lock = threading.Lock()
        self._over = False
        self._cancel: Callable[[], object] | None = None

    def run(self, begin: Callable[[], Steps[Any]]) -> Any:
        """Drive the steps that ``begin`` makes to their end; that their code runs is noted while it does.

        Raises:
            WrittenOff: nobody waits for them any longer.
        """
        if self._seconds is not None:
            GIVES_UP.set(runtime.loop().time() + self._seconds)
        guard = GUARD.get()
        if guard is None:
            return runtime.drive(begin(), self._waited)
        guard.entered()
        try:
            return runtime.drive(begin(), self._waited)
        finally:
            guard.left()

    def _waited(self, effect: Awaitable[Any]) -> Any:
        loop = runtime.loop() if type(effect) is Ask else self._loop
        if loop is None or isinstance(effect, Joint):  # code of the user's own, which may block
            return asyncio.run(self._cancellable(effect))
        if self._over:  # asked before it is made, since a call that was made may be paid for
            raise WrittenOff
        guard = GUARD.get()
        future = asyncio.run_coroutine_threadsafe(_await(effect), loop)
        self._until_over(future.cancel)
        if guard is not None:
            guard.left()
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise WrittenOff from None
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
