"""asyncify and syncify: a synchronous program for a coroutine, and an asynchronous one for plain code."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MethodType
from typing import Any, Final

from dspy_stream.configuration import settings
from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.calls import synced
from dspy_stream.modules.module import Module

__all__ = ["asyncify", "syncify"]


def asyncify(program: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """An async function that calls ``program`` in a thread, under the settings of its caller.

    For programs whose own code blocks. One that only waits for models needs no thread: it has
    ``await program.acall(...)``. ``settings.async_max_workers`` calls run at a time, the others wait.
    A call that is cancelled is not waited for, but its thread runs on.

    >>> import asyncio
    >>> asyncio.run(asyncify(lambda x: x + 1)(2))
    3
    """

    async def async_program(*args: Any, **kwargs: Any) -> Any:
        context = contextvars.copy_context()
        call = partial(context.run, program, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(_WORKERS.get(), call)

    return async_program


class _Workers:
    """Threads shared by all asyncified programs; other ones when the setting has changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._size = 0

    def get(self) -> ThreadPoolExecutor:
        """The threads.

        Raises:
            ConfigurationError: ``async_max_workers`` is not at least 1.
        """
        size = settings.async_max_workers
        if not isinstance(size, int) or size < 1:
            raise ConfigurationError(f"async_max_workers={size!r}: it is a whole number, at least 1")
        with self._lock:
            if self._pool is None or self._size != size:
                if self._pool is not None:
                    self._pool.shutdown(wait=False)  # what it has begun it finishes
                self._pool = ThreadPoolExecutor(size, thread_name_prefix="dspy_stream asyncify")
                self._size = size
            return self._pool


_WORKERS: Final = _Workers()


def syncify(program: Module, in_place: bool = True) -> Module:
    """A program that has only ``aforward``, with a ``forward`` for synchronous callers.

    Calling such a module works without it; this is for code that calls ``forward``, or that wants
    a wrapper of its own. ``in_place`` gives ``forward`` to the program itself, where it has an
    ``aforward`` of its own, and leaves others as they are; otherwise the result is a module around it,
    whose part it is under the name ``program``.

    >>> class Later(Module):
    ...     async def aforward(self, x):
    ...         return x + 1
    >>> syncify(Later()).forward(2)
    3
    """
    if not in_place:
        return _SyncWrapper(program)
    if program._has_aforward():
        program.forward = MethodType(synced, program)  # type: ignore[method-assign]
    return program


class _SyncWrapper(Module):
    """A module around an asynchronous one."""

    def __init__(self, program: Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The program's answer; blocks until it is there."""
        return synced(self.program, *args, **kwargs)
