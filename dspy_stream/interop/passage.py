"""One row's passage through a program of DSPy: whom its model calls are made for, and from where.

The passage travels in DSPy's own settings, so that it is at hand wherever DSPy takes them: in the
threads of its ``Parallel``, in ``asyncify``, in tasks. Every call becomes an effect of the engine,
whichever thread it comes from.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeVar

from dspy_stream import runtime
from dspy_stream.engine import Ticket
from dspy_stream.errors import BudgetExceeded, ConfigurationError, DSPyStreamError
from dspy_stream.modules.scope import SCOPE, TICKET, Scope
from dspy_stream.modules.together import GUARD
from dspy_stream.runtime import Steps
from dspy_stream.types import Request, Response

__all__ = ["KEY", "READING", "STRAY", "Passage", "Reading", "Stray", "WrittenOff"]

T = TypeVar("T")

KEY: Final = "dspy_stream_passage"
"""The name of the passage among DSPy's settings."""

STRAY: Final = (
    "this program waits for threads of its own, which ask a model, and so holds up the loop that would "
    "bring the answer; run it with DSPyModule(program, isolation='thread')"
)

Way = Literal["bridge", "task", "thread"]
"""How the program runs: in a greenlet of the loop's thread, in a task there, or in a thread of its own."""

_BLOCKED: Final = 10.0  # seconds without a turn of the loop after which somebody holds it up


class Stray(RuntimeError):
    """A thread of the program's own asks for an answer that the blocked loop could never bring."""


class WrittenOff(BaseException):
    """The row is no longer waited for; like a cancellation, it passes through ``except Exception``."""


class Reading:
    """What one adapter call of DSPy's asked, heard, and could not do."""

    __slots__ = ("asked", "failure", "text")

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.text: str | None = None  # of the latest answer
        self.failure: DSPyStreamError | None = None  # of a call that it is no use to repeat in other words


READING: Final[ContextVar[Reading | None]] = ContextVar("dspy_stream_dspy_reading", default=None)


class Passage:
    """The state of one attempt at one row."""

    __slots__ = (
        *("_cancel", "_context", "_guard", "_home", "_lock", "_on_loop", "_over", "_pending", "_waiting"),
        *("fatal", "scope", "strayed", "ticket", "unread", "way"),
    )

    def __init__(self, way: Way) -> None:
        self.way: Way = way
        self.scope: Scope | None = SCOPE.get()
        self.ticket = TICKET.get() or Ticket()
        self.fatal: DSPyStreamError | None = None  # concerns the flow, whatever the program makes of it
        self.unread: tuple[Exception, str] | None = None  # an answer that could not be read, and its text
        self.strayed = False  # the program waits, on the loop, for threads of its own
        self._context = contextvars.copy_context()
        self._guard = GUARD.get()
        self._home: int | None = None
        self._on_loop = False
        self._lock = threading.Lock()
        self._pending: set[concurrent.futures.Future[Any]] = set()
        self._over = False
        self._waiting = 0
        self._cancel: Callable[[], object] | None = None

    def __deepcopy__(self, memo: object) -> Passage:
        return self

    def begin(self) -> None:
        """Called where the program begins, in its own thread."""
        self._home = threading.get_ident()
        self._on_loop = runtime.on_loop()

    def run(self, program: Callable[[], T]) -> T:
        """Run the program in this thread, which is its own; that it runs is noted while it does."""
        self.begin()
        if self._guard is None:
            return program()
        self._guard.entered()
        try:
            return program()
        finally:
            self._guard.left()

    def run_async(self, program: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in this thread, on a loop of its own."""
        self.begin()
        return asyncio.run(self._cancellable(program))

    async def _cancellable(self, program: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await program()
        finally:
            self._cancel = None

    # -------------------------------------------------------------------------------------- calling

    def ask(self, steps: Steps[Response]) -> Response:
        """Run the steps of one model call from synchronous code, in whatever thread."""
        self._refuse()
        if threading.get_ident() == self._home:
            if self.way == "thread":
                return runtime.drive(steps, self._wait)
            self._waiting += 1
            try:
                return runtime.perform(steps)
            finally:
                self._waiting -= 1
        if self.way == "bridge" and self._on_loop and not self._waiting:
            raise self._stray()
        return self._context.copy().run(runtime.drive, steps, self._wait)

    async def aask(self, steps: Steps[Response]) -> Response:
        """The same from a coroutine, on whatever loop."""
        self._refuse()
        if threading.get_ident() == self._home:
            return await runtime.aperform(steps)
        # In a task of another thread, whose context knows nothing of the row.
        made = asyncio.get_running_loop().create_task
        return await self._context.copy().run(made, runtime.aperform(steps))

    def _refuse(self) -> None:
        if self._over:
            raise WrittenOff("the row that this program runs for is no longer waited for")
        if self.fatal is not None:
            raise self.fatal
        reading = READING.get()
        if reading is not None and reading.failure is not None:
            raise reading.failure

    def _stray(self) -> Stray:
        self.strayed = True
        return Stray(STRAY)

    def _wait(self, effect: Awaitable[Any]) -> Any:
        at_home = self._guard is not None and self.way == "thread" and threading.get_ident() == self._home
        engine = runtime.loop()
        turned = threading.Event()
        if self.way != "thread":
            engine.call_soon_threadsafe(turned.set)
        future = asyncio.run_coroutine_threadsafe(_await(effect), engine)
        with self._lock:
            self._pending.add(future)
        if at_home:
            self._guard.left()  # type: ignore[union-attr]
        try:
            if self._over:
                future.cancel()
            if self.way != "thread" and not turned.wait(_BLOCKED):
                future.cancel()
                raise self._stray()
            return future.result()
        except concurrent.futures.CancelledError:
            raise WrittenOff("the row that this call was made for is no longer waited for") from None
        finally:
            if at_home:
                self._guard.entered()  # type: ignore[union-attr]
            with self._lock:
                self._pending.discard(future)

    # ---------------------------------------------------------------------------------- what comes of it

    def write_off(self) -> None:
        """Cancel the calls in flight and refuse any further one; the program ends at its next call."""
        self._over = True
        with self._lock:
            pending = list(self._pending)
        for future in pending:
            future.cancel()
        cancel = self._cancel
        if cancel is not None:
            cancel()

    def count(self, response: Response, model: str) -> None:
        """Note one finished call."""
        with self._lock:
            self.ticket.count(response, model)

    def failed(self, error: DSPyStreamError, reading: Reading | None) -> None:
        """Note a call that failed."""
        lasting = error.scope != "row" or isinstance(error, (BudgetExceeded, ConfigurationError))
        if lasting and self.fatal is None:
            self.fatal = error
        if reading is not None and (lasting or error.retryable):
            reading.failure = error

    def unreadable(self, reading: Reading, error: Exception) -> None:
        """Note an answer that an adapter could not read; another attempt asks for others."""
        with self._lock:
            for request in reading.asked:
                self.ticket.spoil(request)
        self.unread = (error, reading.text or "")


async def _await(effect: Awaitable[Any]) -> Any:
    return await effect
