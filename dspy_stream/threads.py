"""Threads for code that may block: they hold up no exit of the process, whatever it waits for."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["DaemonThreads", "goes_on", "interrupts_nobody", "process_ends"]

T = TypeVar("T")

_Job = tuple["concurrent.futures.Future[Any]", Callable[[], Any]]


_ending = threading.Event()


def process_ends() -> None:
    """From now on :func:`goes_on` holds up every thread but the main one."""
    _ending.set()


def goes_on() -> None:
    """Return at once; once the process ends, in the main thread only: others wait here until they are gone.

    A daemon thread that went on would find half an interpreter, and tell of it in a traceback.

    >>> goes_on()
    """
    while _ending.is_set() and threading.current_thread() is not threading.main_thread():
        threading.Event().wait()


class DaemonThreads:
    """At most ``limit`` daemon threads, started as they are needed; a hung one holds up no exit.

    ``left`` threads more are in what nobody waits for any longer.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._left: set[concurrent.futures.Future[Any]] = set()
        self._started = 0
        self.count = 0

    @property
    def left(self) -> int:
        """Threads that were left behind and have not ended yet."""
        return len(self._left)

    def submit(self, fn: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Run ``fn`` in a thread; more than ``limit`` at a time wait for one."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._queue.put((future, fn))
        if not self._idle.acquire(blocking=False):
            with self._lock:
                if self.count < self._limit:
                    self.count += 1
                    self._start()
        return future

    def leave(self, future: concurrent.futures.Future[Any]) -> None:
        """Wait for it no longer: what has not begun is not run.

        What runs goes on, since a thread cannot be stopped, but another thread takes the place of its own.
        """
        if future.cancel():
            return
        with self._lock:
            if not future.done() and future not in self._left:
                self._left.add(future)
                self._start(idle=True)

    def _start(self, *, idle: bool = False) -> None:
        self._started += 1
        name = f"{self._name}_{self._started}"
        threading.Thread(target=self._serve, args=(idle,), name=name, daemon=True).start()

    def _serve(self, idle: bool) -> None:
        if idle:  # no job was put for it
            self._idle.release()
        while (job := self._queue.get()) is not None:
            future, fn = job
            if future.set_running_or_notify_cancel():
                try:
                    value = fn()
                except BaseException as error:  # noqa: BLE001 - belongs to whoever waits for the future
                    future.set_exception(error)
                else:
                    future.set_result(value)
                    del value
            with self._lock:
                if future in self._left:
                    self._left.discard(future)
                    return
            del job, future, fn
            self._idle.release()

    def close(self) -> None:
        """Let the threads end once they have nothing to do."""
        for _ in range(self.count):
            self._queue.put(None)


def interrupts_nobody() -> None:
    """Let the calling thread, and those it will start, not interrupt others when they are woken up.

    Of two threads on one core that wake each other, such as an event loop and its HTTP client, each would
    else run at once for a single answer, and both would wait for the interpreter in turn: a quarter of what
    a row costs. Linux's SCHED_BATCH, see sched(7); elsewhere, where that is forbidden, and where somebody
    has chosen how this process is scheduled, nothing happens. Processes that the thread starts inherit it.

    >>> interrupts_nobody()
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if not _watched() and os.sched_getscheduler(0) == os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def interrupts_as_its_parent() -> None:
    """Undo what this process has inherited from such a thread; called before it starts any of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            usual = os.sched_getscheduler(os.getppid()) == os.SCHED_OTHER  # of the parent's main thread
            if usual and os.sched_getscheduler(0) == os.SCHED_BATCH:
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _watched() -> bool:
    """Whether this is a service of systemd with a filter of system calls, which may end it for this one."""
    if "INVOCATION_ID" not in os.environ:
        return False
    with open("/proc/self/status", "rb") as status:
        return b"\nSeccomp:\t0" not in status.read()
