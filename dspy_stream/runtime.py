"""One async core and one sync door: the engine's event loop, and how ordinary code reaches it.

A piece of work is a *steps* generator. It yields an :class:`Ask` (a model call) or any awaitable,
is sent the result, and returns its value. Three drivers run the same generator:

* :func:`perform` from synchronous code, blocking the caller;
* :func:`aperform` from a coroutine on any event loop;
* :func:`advance` from the flow's operator, which runs on until something really has to be waited
  for, so that a row whose calls are all in the journal never becomes a task.

A synchronous ``forward`` becomes such a generator through :func:`bridge`: it runs in a greenlet,
and a model call inside it switches back to the driver. Hundreds of them share one thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, Union
from weakref import WeakKeyDictionary

from greenlet import getcurrent, greenlet

from dspy_stream.threads import goes_on, interrupts_nobody, process_ends
from dspy_stream.types import Delta, Layer, Listener, Request, Response

__all__ = [
    "GIVES_UP",
    "LISTENER",
    "Ask",
    "Effect",
    "Joint",
    "Pending",
    "Steps",
    "advance",
    "aperform",
    "before_stop",
    "bridge",
    "close_soon",
    "drive",
    "hop",
    "loop",
    "perform",
    "run",
]

T = TypeVar("T")

# Seconds without a turn of the loop after which a waiting thread must think that it waits for itself.
_BLOCKED: Final = 10.0
_CLOSING: Final = 1.0  # seconds for connections to be closed when the process ends

# When the work of this context will be cancelled, by the loop's clock; None where nobody has set a time.
GIVES_UP: Final[ContextVar[float | None]] = ContextVar("dspy_stream_gives_up", default=None)
# Who hears the tokens of the calls made in this context; None where nobody does, and nothing is streamed.
LISTENER: Final[ContextVar[Listener | None]] = ContextVar("dspy_stream_listener", default=None)


class Ask:
    """An effect: put ``request`` to ``client`` and send the response back.

    The listener of the context in which it was made hears the answer, wherever it is awaited.
    """

    __slots__ = ("client", "listener", "request")

    def __init__(self, client: Layer, request: Request) -> None:
        self.client = client
        self.request = request
        self.listener = LISTENER.get()

    def peek(self) -> Response | None:
        """The response, where the client has it without waiting."""
        look = getattr(self.client, "peek", None)
        if look is None:
            return None
        found: Response | None = look(self.request)
        if found is not None and self.listener is not None:
            _tell(self.listener, found)
        return found

    def __await__(self) -> Generator[Any, None, Response]:
        if self.listener is None:
            return self.client(self.request).__await__()
        return self._heard(self.listener).__await__()

    async def _heard(self, listener: Listener) -> Response:
        heard = False

        def listen(delta: Delta) -> None:
            nonlocal heard
            heard = delta.kind != "restart"  # the next attempt's answer may not be streamed
            listener(delta)

        token = LISTENER.set(listen)
        try:
            response = await self.client(self.request)
        finally:
            LISTENER.reset(token)
        if not heard:  # from the journal, from another row's call, or from a model that does not stream
            _tell(listener, response)
        return response


def _tell(listener: Listener, response: Response) -> None:
    """A whole answer: of each completion what was thought, what was said, and what tools are to do."""
    for number, choice in enumerate(response.choices):
        extra = choice.extra or {}
        if reasoning := extra.get("reasoning_content"):
            listener(Delta("reasoning", reasoning, number))
        if choice.text:
            listener(Delta("text", choice.text, number))
        for call in extra.get("tool_calls") or ():
            if "function" in call:
                listener(Delta("tool", call["function"]["arguments"], number))


class Joint:
    """An effect that drives further steps, whose code may block: a driver in a thread awaits it there."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._run().__await__()

    async def _run(self) -> Any:
        raise NotImplementedError


Effect = Union[Ask, Awaitable[Any]]  # noqa: UP007
Steps = Generator[Effect, Any, T]


class _Engine:
    """The process-wide event loop in its own daemon thread; a new one after a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        found = self.loop
        if found is not None:
            return found
        goes_on()
        with self.lock:
            if self.loop is None:
                loop = _new_loop()
                thread = threading.Thread(target=self._serve, args=(loop,), name="dspy_stream", daemon=True)
                thread.start()
                self.thread = thread
                self.loop = loop
            return self.loop

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        interrupts_nobody()
        asyncio.set_event_loop(loop)
        while True:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # Raised by a row's own code: whoever waits for the row gets it, all others need the loop.
                continue
            break
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def stop(self) -> None:
        process_ends()
        loop, thread = self.loop, self.thread
        self.loop = self.thread = None
        if loop is None or thread is None or not thread.is_alive():
            return
        if _closed_before_stop:
            close_soon(_close_all(loop), loop)
        # Whatever goes wrong here, the process ends, and its connections with it.
        concurrent.futures.wait(list(_closing), _CLOSING)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=2.0)


class Closable(Protocol):
    """Something that has to be closed on the loop where it was used."""

    async def aclose(self) -> None:
        """Release it."""
        ...


_closed_before_stop: Final[WeakKeyDictionary[Closable, asyncio.AbstractEventLoop]] = WeakKeyDictionary()


def before_stop(it: Closable) -> None:
    """Close it when the process ends, if it still lives then; called on the running loop."""
    _closed_before_stop[it] = asyncio.get_running_loop()


_closing: Final[set[concurrent.futures.Future[None]]] = set()


def close_soon(work: Coroutine[Any, Any, None], own: asyncio.AbstractEventLoop) -> None:
    """Run what closes something on its loop; from any thread. The process waits for it a while."""
    future = asyncio.run_coroutine_threadsafe(work, own)
    _closing.add(future)
    future.add_done_callback(_closing.discard)


async def _close_all(loop: asyncio.AbstractEventLoop) -> None:
    for it, own in list(_closed_before_stop.items()):
        if own is loop:
            await it.aclose()


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform != "win32":
        import uvloop

        made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return made
    return asyncio.new_event_loop()


_engine: _Engine = _Engine()


def _after_fork() -> None:
    # The child has the object but not the thread: it starts its own on first use.
    global _engine
    _engine = _Engine()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _engine.stop())


def loop() -> asyncio.AbstractEventLoop:
    """The engine's event loop, started on first use."""
    return _engine.get()


def on_loop() -> bool:
    """True in the engine's own thread."""
    return threading.current_thread() is _engine.thread


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the engine's loop and block until it is done.

    Raises:
        RuntimeError: called from the engine's own thread, where blocking would wait for itself.
    """
    if on_loop():
        work.close()
        raise RuntimeError(
            "a synchronous model call inside a coroutine of the engine would block it; "
            "use `await module.acall(...)` in `aforward`, or write a plain `forward`"
        )
    engine = loop()
    turns: list[None] = []
    engine.call_soon_threadsafe(turns.append, None)
    future = asyncio.run_coroutine_threadsafe(work, engine)
    try:
        try:
            return future.result(_BLOCKED)
        except concurrent.futures.TimeoutError:  # may be the work's own, and is raised again then
            if not turns and not future.done():
                raise RuntimeError(
                    f"the engine's loop has not moved for {_BLOCKED:.0f} s while this thread waits for a "
                    "model call; a `forward` that starts threads and waits for them blocks it: call the "
                    "modules one after the other, or write `aforward` and use asyncio.gather"
                ) from None
        return future.result()
    except BaseException:
        goes_on()
        future.cancel()  # the caller was interrupted: do not leave the call running unseen
        raise


async def hop(work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine on the engine's loop from whatever loop this is."""
    engine = loop()
    if asyncio.get_running_loop() is engine:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, engine))


# ------------------------------------------------------------------------------- the drivers


@dataclass(frozen=True, slots=True)
class Pending:
    """Steps that cannot go on before ``effect`` has been awaited."""

    effect: Effect


class _Bridged(greenlet):
    """A greenlet whose parent drives steps."""


def bridge(fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Steps[T]:
    """Turn a synchronous function into steps: the model calls inside it become effects.

    The function runs in a greenlet of the thread that drives the steps, under a copy of the
    context in force when the steps begin. Exceptions go both ways.
    """
    inner = _Bridged(fn)
    inner.gr_context = contextvars.copy_context()
    inner.parent = getcurrent()
    effect = inner.switch(*args, **kwargs)
    while not inner.dead:
        try:
            value = yield effect
        except BaseException as error:  # noqa: BLE001, PERF203 - whatever the driver throws belongs to the function
            inner.parent = getcurrent()
            effect = inner.throw(error)
        else:
            inner.parent = getcurrent()
            effect = inner.switch(value)
    result: T = effect
    return result


def bridged() -> bool:
    """True inside a function that runs under :func:`bridge`."""
    return isinstance(getcurrent(), _Bridged)


def advance(steps: Steps[T], value: Any = None, error: BaseException | None = None) -> T | Pending:
    """Run steps on, answering from journals at once, until they end or must wait.

    Returns the value of the steps, or :class:`Pending`. Never blocks.
    """
    while True:
        try:
            effect = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        if type(effect) is not Ask:
            return Pending(effect)
        try:
            value = effect.peek()
        except Exception as unread:  # noqa: BLE001 - a damaged journal is the asker's to report
            error = unread
            continue
        if value is None:
            return Pending(effect)


def perform(steps: Steps[T]) -> T:
    """Run steps to their end from synchronous code.

    Inside a bridged ``forward`` the effects go to its driver; elsewhere the calling thread blocks.
    """
    current = getcurrent()
    if isinstance(current, _Bridged):
        return _delegate(steps, current)
    return drive(steps, lambda effect: run(_await(effect)))


def drive(steps: Steps[T], wait: Callable[[Effect], Any]) -> T:
    """Run steps to their end; ``wait`` blocks until an effect is done, and gives what it came to."""
    outcome = advance(steps)
    while isinstance(outcome, Pending):
        try:
            value = wait(outcome.effect)
        except BaseException as error:  # noqa: BLE001, PERF203 - thrown into the steps, which may handle it
            outcome = advance(steps, error=error)
        else:
            outcome = advance(steps, value)
    return outcome


def _delegate(steps: Steps[T], current: greenlet) -> T:
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            effect = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        parent = current.parent
        assert parent is not None
        try:
            value = parent.switch(effect)
        except BaseException as thrown:  # noqa: BLE001 - thrown by the driver: the steps may handle it
            error = thrown


async def aperform(steps: Steps[T]) -> T:
    """Run steps to their end from a coroutine; model calls run on the engine's loop."""
    outcome = advance(steps)
    while isinstance(outcome, Pending):
        effect = outcome.effect
        try:
            value = await (hop(_await(effect)) if type(effect) is Ask else effect)
        except BaseException as error:  # noqa: BLE001 - thrown into the steps, which may handle it
            outcome = advance(steps, error=error)
        else:
            outcome = advance(steps, value)
    return outcome


async def _await(effect: Effect) -> Any:
    return await effect
