"""Threads for code that may block: they hold up no exit of the process, whatever it waits for."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["DaemonThreads"]

T = TypeVar("T")

_Job = tuple["concurrent.futures.Future[Any]", Callable[[], Any]]


class DaemonThreads:
    """At most ``limit`` daemon threads, started as they are needed; a hung one holds up no exit."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.count = 0

    def submit(self, fn: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Run ``fn`` in a thread; more than ``limit`` at a time wait for one."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._queue.put((future, fn))
        if not self._idle.acquire(blocking=False):
            with self._lock:
                if self.count < self._limit:
                    self.count += 1
                    name = f"{self._name}_{self.count}"
                    threading.Thread(target=self._serve, name=name, daemon=True).start()
        return future

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            future, fn = job
            if future.set_running_or_notify_cancel():
                try:
                    value = fn()
                except BaseException as error:  # noqa: BLE001 - belongs to whoever waits for the future
                    future.set_exception(error)
                else:
                    future.set_result(value)
            del job, future, fn
            self._idle.release()

    def close(self) -> None:
        """Let the threads end once they have nothing to do."""
        for _ in range(self.count):
            self._queue.put(None)
