"""Work for the event loop that something belongs to, asked for from another one."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from dspy_stream.errors import ConfigurationError

__all__ = ["Home"]

T = TypeVar("T")

_LOOK: Final = 0.5  # seconds between two looks at whether the other loop still runs
_BLOCKED: Final = 10.0  # seconds without a turn of it after which it must wait for us


class Home:
    """The running event loop, and the process, that ``what`` belongs to.

    Raises:
        RuntimeError: (when made) no event loop runs here.
    """

    def __init__(self, what: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._what = what
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._process = os.getpid()

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await what ``work`` makes there, from whatever loop this is; cancelled with its caller.

        Raises:
            ConfigurationError: that loop is of another process, does not run any more, or is blocked.
        """
        own = self._loop
        if own is asyncio.get_running_loop():
            return await work()
        if self._process != os.getpid():
            raise ConfigurationError(f"{self._what} belongs to another process; open one in this process")
        if not own.is_running():
            raise self._ended()
        handed: Future[T] = Future()
        task: asyncio.Task[T] | None = None

        async def there() -> T:
            return await work()

        def begin() -> None:
            nonlocal task
            if not handed.cancelled():  # a coroutine is made only where its loop takes turns
                task = own.create_task(there())
                task.add_done_callback(partial(_tell, handed))
                handed.add_done_callback(partial(_cancel, task))

        try:
            own.call_soon_threadsafe(begin)
        except RuntimeError:  # it was closed just now
            raise self._ended() from None
        waiting = asyncio.wrap_future(handed)
        waited = 0.0
        try:
            while not (await asyncio.wait({waiting}, timeout=_LOOK))[0]:
                waited += _LOOK
                if not own.is_running():
                    raise self._ended()
                if task is None and waited >= _BLOCKED:
                    raise self._blocked()
        except BaseException:
            handed.cancel()
            if task is not None and not own.is_running():
                _never(task)
            raise
        if waiting.cancelled():
            raise self._ended()
        return waiting.result()

    def _ended(self) -> ConfigurationError:
        return ConfigurationError(
            f"the event loop of {self._what} does not run any more; keep it running, and what belongs to "
            "it open, for as long as the program runs"
        )

    def _blocked(self) -> ConfigurationError:
        return ConfigurationError(
            f"the event loop of {self._what} has not moved for {_BLOCKED:.0f} s while it is waited for: "
            "something blocks it, such as flow.run() or a module called without await in the same thread; "
            "write `await asyncio.to_thread(flow.run)`, or `await module.acall(...)`"
        )


def _tell(handed: Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        handed.cancel()
    elif handed.set_running_or_notify_cancel():
        error = task.exception()
        if error is None:
            handed.set_result(task.result())
        else:
            handed.set_exception(error)


def _cancel(task: asyncio.Task[T], handed: Future[T]) -> None:
    if handed.cancelled():
        with suppress(RuntimeError):  # its loop is closed
            task.get_loop().call_soon_threadsafe(task.cancel)


def _never(task: asyncio.Task[T]) -> None:
    """Close what would have begun in a next turn of a loop that takes none any more."""
    work = task.get_coro()
    if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
        work.close()
