"""Streamed programs: a program's outputs while its models write them."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from dspy_stream.collector import seldom_collected
from dspy_stream.errors import ConfigurationError
from dspy_stream.modules.chain_of_thought import ChainOfThought
from dspy_stream.modules.driven import in_thread
from dspy_stream.modules.heard import (
    StatusMessage,
    StatusMessageProvider,
    StreamChunk,
    StreamListener,
    StreamResponse,
)
from dspy_stream.modules.listening import Followed, Run
from dspy_stream.modules.module import Module
from dspy_stream.modules.predict import Predict
from dspy_stream.modules.walking import named_parts
from dspy_stream.program import Prediction
from dspy_stream.program.jsonable import to_jsonable
from dspy_stream.program.watch import WATCHER
from dspy_stream.runtime import LISTENER, bridge, bridged, on_loop

__all__ = [
    "StatusMessage",
    "StatusMessageProvider",
    "StreamChunk",
    "StreamListener",
    "StreamResponse",
    "apply_sync_streaming",
    "streamify",
    "streaming_response",
]


def streamify(
    program: Callable[..., Any],
    status_message_provider: StatusMessageProvider | None = None,
    stream_listeners: Sequence[StreamListener] | None = None,
    include_final_prediction_in_output_stream: bool = True,
    is_async_program: bool = False,
    async_streaming: bool = True,
) -> Callable[..., Any]:
    """A function that runs the program and yields what its models write, as it comes.

    Called with the program's inputs it gives an async generator, or an ordinary one with
    ``async_streaming=False``. It yields, in their order:

    * :class:`StreamResponse` for every listener's field, or, without listeners,
      :class:`StreamChunk` for every piece of every answer;
    * :class:`StatusMessage` where ``status_message_provider`` has something to say;
    * the program's result at the end; with ``include_final_prediction_in_output_stream=False`` only
      where no listener has heard anything, so that whoever waits gets one or the other.

    Only predictors that somebody listens to are streamed; one in a worker process is not heard. An
    answer from the journal comes in one piece, and so do citations and tool calls, as JSON. Retries,
    fallbacks and repairs go on as ever: where pieces of an attempt that failed have been yielded, an
    item with ``restart`` says that they do not count. An error of the program is raised by the
    generator; closing that early cancels the calls. Runs of the same function share nothing.
    A synchronous ``forward`` or function runs in a thread of its own, so that its tools may
    block; an ``aforward``, and with ``is_async_program=True`` any program, on the caller's loop.
    ``program`` may be a plain function, or one that returns an awaitable. The garbage collector of the
    process looks less often while anything is streamed.

    Raises:
        ConfigurationError: a listener's field is in no predictor, or in several.

    >>> from dspy_stream.lm.scripted import ScriptedLM
    >>> from dspy_stream.configuration import context
    >>> ask = streamify(Predict("question -> answer"), stream_listeners=[StreamListener("answer")],
    ...                 async_streaming=False)
    >>> with context(lm=ScriptedLM([{"answer": "4"}])):
    ...     [item.chunk for item in ask(question="2 + 2?") if isinstance(item, StreamResponse)]
    ['4']
    """
    names = _names(program)
    followed = _followed(names, stream_listeners) if stream_listeners else None
    provider = status_message_provider or StatusMessageProvider()
    waits = is_async_program or _only_waits(program)

    def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        def work() -> Coroutine[Any, Any, Any]:
            return _work(program, args, kwargs, waits=waits)

        run = Run(followed, {id(predictor): name for name, predictor in names.items()}, provider)
        return _stream(run, work, raw=followed is None, final=include_final_prediction_in_output_stream)

    if async_streaming:
        return stream
    return lambda *args, **kwargs: apply_sync_streaming(stream(*args, **kwargs))


async def _stream(
    run: Run, work: Callable[[], Coroutine[Any, Any, Any]], *, raw: bool, final: bool
) -> AsyncGenerator[Any, None]:
    """What is heard while the work is done, and its result."""
    with seldom_collected():
        run.open()
        task = _started(run, work(), raw=raw)
        try:
            over = heard = False
            while not over:
                await run.something()
                over = task.done()  # looked at before the items are taken, so that none is left lying
                for item in run.take():
                    heard = heard or isinstance(item, StreamResponse)
                    yield item
            result = task.result()
            if final or not heard:
                yield result
        finally:
            run.close()
            await _stopped(task)


def _started(run: Run, work: Coroutine[Any, Any, Any], *, raw: bool) -> asyncio.Task[Any]:
    """The program as a task of its own, in a context in which the run hears it."""
    context = contextvars.copy_context()
    context.run(WATCHER.set, run)
    context.run(LISTENER.set, run.heard if raw else None)
    task: asyncio.Task[Any] = context.run(asyncio.get_running_loop().create_task, work)
    task.add_done_callback(run.wake)
    return task


async def _stopped(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # if it was raised, whoever listens has it; if not, nobody does any more


async def _work(
    program: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, waits: bool
) -> Any:
    if waits:
        return await getattr(program, "acall", program)(*args, **kwargs)
    return await in_thread(lambda: bridge(program, *args, **kwargs))


def _only_waits(program: Callable[..., Any]) -> bool:
    """Whether none of its code can hold up a loop, unless it is a coroutine's own fault."""
    if not isinstance(program, Module):
        return inspect.iscoroutinefunction(program)
    parts = {type(part) for _, part in program.named_sub_modules()}
    return program._has_aforward() or parts <= {Predict, ChainOfThought}


# --------------------------------------------------------------------------- whom to listen to


def _names(program: Callable[..., Any]) -> dict[str, Predict]:
    return dict(named_parts(program, Predict)) if isinstance(program, Module) else {}


def _followed(names: Mapping[str, Predict], listeners: Sequence[StreamListener]) -> dict[int, list[Followed]]:
    found: dict[int, list[Followed]] = {}
    for listener in listeners:
        name, predictor = _predictor(names, listener)
        field = listener.signature_field_name
        if field not in predictor.signature.output_fields:
            raise ConfigurationError(
                f"{listener!r}: {name or 'the predictor'} has no output field {field!r}; "
                f"it has: {', '.join(predictor.signature.output_fields)}"
            )
        found.setdefault(id(predictor), []).append(Followed(listener, name))
    return found


def _predictor(names: Mapping[str, Predict], listener: StreamListener) -> tuple[str, Predict]:
    """The predictor that a listener means, and its name."""
    wanted, field = listener.predict, listener.signature_field_name
    if wanted is not None:
        own = next((name for name, predictor in names.items() if predictor is wanted), None)
        if own is None and names:
            raise ConfigurationError(
                f"{listener!r}: its predictor is no part of the program: {_fields(names)}"
            )
        return listener.predict_name or own or "", wanted
    if listener.predict_name is not None:
        if listener.predict_name not in names:
            raise ConfigurationError(
                f"{listener!r}: the program has no such predictor; it has: {_fields(names)}"
            )
        return listener.predict_name, names[listener.predict_name]
    having = [name for name, predictor in names.items() if field in predictor.signature.output_fields]
    if not having:
        raise ConfigurationError(
            f"{listener!r}: no predictor of the program has that output field; there are: {_fields(names)}"
        )
    if len(having) > 1:
        raise ConfigurationError(
            f"{listener!r}: signature field {field} is not unique in the program: several predictors have "
            f"that output field ({', '.join(having)}); say which with predict=... or predict_name=..."
        )
    return having[0], names[having[0]]


def _fields(names: Mapping[str, Predict]) -> str:
    shown = [f"{name} ({', '.join(part.signature.output_fields)})" for name, part in names.items()]
    return ", ".join(shown) or "none; pass predict=... for a plain function"


# ------------------------------------------------------------------------------- other doors


class _Failed(NamedTuple):
    error: BaseException


_END: Final = object()


def apply_sync_streaming(async_generator: AsyncIterator[Any]) -> Generator[Any, None, None]:
    """The items of an async generator, for synchronous code; blocks until the next one is there.

    It runs on an event loop in a thread of its own, started with the first item that is asked for
    and ended with the last. Closing early cancels it.

    Raises:
        RuntimeError: called where waiting would block the engine itself.
    """
    if on_loop() or bridged():
        raise RuntimeError(
            "a synchronous stream inside a flow or a streamed program would block it; use the async one"
        )
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    started: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = queue.SimpleQueue()

    async def pump() -> None:
        task = asyncio.current_task()
        assert task is not None
        started.put((asyncio.get_running_loop(), task))
        try:
            async for item in async_generator:
                items.put(item)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            items.put(_Failed(error))
        finally:
            if isinstance(async_generator, AsyncGenerator):
                await async_generator.aclose()
            items.put(_END)

    context = contextvars.copy_context()
    thread = threading.Thread(
        target=lambda: context.run(asyncio.run, pump()), name="dspy_stream sync stream", daemon=True
    )
    thread.start()
    loop, task = started.get()
    try:
        while (item := items.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        if thread.is_alive():
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # it has just ended by itself
            thread.join()


async def streaming_response(streamer: AsyncIterator[Any]) -> AsyncIterator[str]:
    """The items of a stream as server-sent events, for a web framework's streaming response.

    Each is one JSON object: ``{"chunk": ...}``, ``{"status": ...}`` or ``{"prediction": ...}``, in
    the end ``[DONE]``. An error of the stream is raised, so that a response without ``[DONE]`` is
    known to be cut short.
    """
    async for item in streamer:
        yield f"data: {orjson.dumps(_event(item)).decode()}\n\n"
    yield "data: [DONE]\n\n"


def _event(item: Any) -> dict[str, Any]:
    if isinstance(item, (StreamResponse, StreamChunk)):
        return {"chunk": item}
    if isinstance(item, StatusMessage):
        return {"status": item.message}
    value = dict(item.items()) if isinstance(item, Prediction) else item
    return {"prediction": to_jsonable(value)}
