"""Models that somebody writes as a ``forward``: called off the loop, and their answers read."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar, copy_context
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from dspy_stream.dotted import Dotted
from dspy_stream.errors import LMError, LMTimeoutError
from dspy_stream.history import completion
from dspy_stream.lm.deadline import Watch, seconds_left
from dspy_stream.lm.providers.counts import Counter
from dspy_stream.threads import DaemonThreads
from dspy_stream.types import Choice, Request, Response, Usage

__all__ = ["Forwarded", "completion_of", "response_of", "seconds_of"]

# What may stand beside the text of a message, under the names that answers have here.
_BESIDE: Final = (
    *("reasoning_content", "reasoning_blocks", "tool_calls", "refusal", "annotations", "citations"),
    "audio",
)

Forward = Callable[..., Any]


class Forwarded:
    """The layer that asks a ``forward(prompt, messages, **options)``, or its asynchronous twin.

    The synchronous one runs in a thread, since it may block for as long as it likes; the twin runs on the
    engine's loop. ``prompt`` is given beside ``messages`` where the question is a single text. Of the options
    it is given what the call adds to those of the model, ``own``, which it has itself: an option that the
    call has taken away is None.

    It has ``timeout`` seconds, or as many as the request's option of that name says. The wait for a thread,
    and what it asks of other models, are not its time.
    """

    __slots__ = ("_aforward", "_forward", "_own", "_timeout")

    def __init__(
        self,
        forward: Forward | None,
        aforward: Callable[..., Awaitable[Any]] | None,
        *,
        timeout: float,
        own: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._forward = forward
        self._aforward = aforward
        self._timeout = timeout
        self._own = own

    async def __call__(self, request: Request) -> Response:
        """What it answers, read as :func:`response_of` says.

        Raises:
            LMTimeoutError: it did not end in time; a thread that it holds is left to it.
        """
        messages = [message.to_json() for message in request.messages]
        only = messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else None
        rollout = {} if request.rollout_id is None else {"rollout_id": request.rollout_id}
        options = self._added({**request.options, **rollout})
        given: dict[str, Any] = {"prompt": only if isinstance(only, str) else None, "messages": messages}
        seconds = seconds_left(seconds_of(request.options.get("timeout"), self._timeout))
        watch = Watch(seconds, held=self._aforward is None)
        try:
            with watch:
                answer = await self._answer(watch, {**given, **options}, request.model)
        except LMError as error:
            error.waited = max(error.waited, watch.waited)
            raise
        except TimeoutError:
            if not watch.expired:  # the forward's own
                raise
            raise _hung(request.model, seconds, watch) from None
        return response_of(answer, request.model)

    def _added(self, options: Mapping[str, Any]) -> dict[str, Any]:
        own = self._own
        added = {name: value for name, value in options.items() if name not in own or own[name] != value}
        return {**added, **{name: None for name in own if name not in options}}

    async def _answer(self, watch: Watch, given: Mapping[str, Any], model: str) -> Any:
        if self._aforward is not None:
            return await self._aforward(**given)
        forward = self._forward
        assert forward is not None

        def call() -> Any:
            watch.go_on()
            return forward(**given)

        return await _in_thread(call, model)

    async def aclose(self) -> None:
        """Nothing to close: connections are the model's own."""


_LONGEST: Final = 1e7  # seconds, since not every loop takes infinity


def seconds_of(given: Any, default: float) -> float:
    """The seconds of a ``timeout``; ``default`` where it is none, as the ones of client libraries are.

    >>> seconds_of(5, 120.0), seconds_of(None, 120.0)
    (5.0, 120.0)
    """
    usable = isinstance(given, (int, float)) and not isinstance(given, bool) and given > 0
    return min(float(given), _LONGEST) if usable else default


def _hung(model: str, seconds: float, watch: Watch) -> LMTimeoutError:
    error = LMTimeoutError(
        f"the forward of {model} did not end within {seconds:g} s; if it needs longer, give the "
        "model a `timeout` of more seconds",
        model=model,
    )
    error.waited = watch.waited
    return error


_THREADS: Final = 64  # forwards that run at the same time; the loop's own threads are only a few
_LEFT: Final = 512  # forwards that hang; each holds a thread, so there is an end to it
_DEPTH: Final[ContextVar[int]] = ContextVar("dspy_stream_forward_depth", default=0)
_pools: dict[int, DaemonThreads] = {}
_pools_lock = threading.Lock()


async def _in_thread(call: Callable[[], Any], model: str) -> Any:
    """Run it in a thread, under the context of its caller.

    A forward that asks another such model waits for it with its own thread, so that one gets a
    thread from elsewhere: all threads of one kind could be waiting.
    """
    depth = _DEPTH.get()
    with _pools_lock:
        pool = _pools.get(depth)
        if pool is None:
            pool = _pools[depth] = DaemonThreads(_THREADS, "dspy_stream forward")
    if pool.left >= _LEFT:
        error = LMTimeoutError(
            f"{model} was not called: {pool.left} forwards that did not end in time still run", model=model
        )
        error.sent = False
        raise error
    context = copy_context()
    context.run(_DEPTH.set, depth + 1)
    future = pool.submit(partial(context.run, call))
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        pool.leave(future)
        raise


def _after_fork() -> None:
    # The child has the pools but not their threads.
    global _pools_lock
    _pools.clear()
    _pools_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def response_of(given: Any, model: str) -> Response:
    """An answer from what a ``forward`` returns.

    That is an object or a dict in the form of OpenAI's chat completions, text completions or
    responses; a text, or a list of texts; or a :class:`~dspy_stream.types.Response`.

    Raises:
        LMError: it is none of them.

    >>> response_of({"choices": [{"message": {"content": "4"}}], "usage": {}}, "mine/m").text
    '4'
    """
    if isinstance(given, Response):
        return given
    if isinstance(given, str):
        return Response((Choice(given, "stop"),), Usage(), model)
    if isinstance(given, list) and all(isinstance(each, (str, Mapping)) for each in given):
        return Response(tuple(map(_plain, given)), Usage(), model)
    choices, output = _of(given, "choices"), _of(given, "output")
    if choices is None and output is None:
        raise LMError(
            f"the forward of {model} returned {type(given).__name__}; a chat completion is wanted: an object "
            "or dict with `choices`, each with a `message` that has `content`",
            model=model,
        )
    made = tuple(map(_choice, choices)) if choices is not None else (_joined(output),)
    return Response(made, _usage(given), str(_of(given, "model") or model), _of(given, "id"))


def completion_of(response: Response) -> Dotted:
    """An answer as an object in the form of OpenAI's chat completions; :func:`response_of` reads it back."""
    made = completion(response)
    made["_hidden_params"] = {"response_cost": response.usage.cost}
    return made


def _of(holder: Any, name: str, default: Any = None) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(name, default)
    return getattr(holder, name, default)


def _plain(given: str | Mapping[str, Any]) -> Choice:
    """A completion as a model returns it to its callers: a text, or a dict with one."""
    if isinstance(given, str):
        return Choice(given, "stop")
    extra = {name: value for name, value in given.items() if name != "text" and value}
    return Choice(str(given.get("text") or ""), "stop", extra or None)


def _choice(given: Any) -> Choice:
    message = _of(given, "message")
    text = _of(message, "content") if message is not None else _of(given, "text")
    extra = {name: _data(value) for name in _BESIDE if (value := _of(message, name))}
    cited = _of(_of(message, "provider_specific_fields"), "citations")
    if isinstance(cited, list):  # in groups, one for each block of text
        extra["citations"] = [
            _data(one) for each in cited for one in (each if isinstance(each, list) else [each])
        ]
    if logprobs := _of(given, "logprobs"):
        extra["logprobs"] = _data(logprobs)
    if isinstance(text, list):
        text = "".join(str(_of(block, "text") or "") for block in text)
    return Choice(text or "", _of(given, "finish_reason") or "stop", extra or None)


def _joined(output: Iterable[Any]) -> Choice:
    """The items of one answer in the form of OpenAI's responses."""
    texts, thoughts, calls = [], [], []
    for item in output:
        kind = _of(item, "type")
        if kind == "message":
            texts += [str(_of(part, "text") or "") for part in _of(item, "content") or ()]
        elif kind == "reasoning":
            parts = _of(item, "content") or _of(item, "summary") or ()
            thoughts += [str(_of(part, "text") or "") for part in parts]
        elif kind == "function_call":
            function = {"name": _of(item, "name"), "arguments": _of(item, "arguments")}
            calls.append({"id": _of(item, "call_id"), "type": "function", "function": function})
    extra = {"reasoning_content": "".join(thoughts), "tool_calls": calls}
    return Choice("".join(texts), "stop", {name: value for name, value in extra.items() if value} or None)


_OF_PROMPT: Final = ("prompt_tokens_details", "input_tokens_details")
_OF_COMPLETION: Final = ("completion_tokens_details", "output_tokens_details")


def _usage(given: Any) -> Usage:
    """What the answer says it took; a count or a cost that cannot be true is as one that was not said."""
    usage = _of(given, "usage")
    names = ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens")
    counts = {name: found for name in names if (found := _of(usage, name)) is not None}
    details = {name: _data(_of(usage, name)) for name in (*_OF_PROMPT, *_OF_COMPLETION)}
    counter = Counter({**counts, **details})
    prompt = counter.take("prompt_tokens") or counter.take("input_tokens")
    completion = counter.take("completion_tokens") or counter.take("output_tokens")
    cached = max(counter.detail(name, "cached_tokens") for name in _OF_PROMPT)
    reasoning = max(counter.detail(name, "reasoning_tokens") for name in _OF_COMPLETION)
    cost = _of(_of(given, "_hidden_params"), "response_cost")
    sound = counter.clean and isinstance(cost, (int, float)) and not isinstance(cost, bool)
    known = float(cost) if sound and 0.0 <= cost < math.inf else None
    return Usage(prompt, completion, known, min(cached, prompt), min(reasoning, completion))


def _data(value: Any) -> Any:
    """Plain data from the objects of a client library."""
    if isinstance(value, (list, tuple)):
        return [_data(each) for each in value]
    if isinstance(value, Mapping):
        return {name: _data(each) for name, each in value.items()}
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(exclude_none=True)
    fields = getattr(value, "__dict__", None)
    return {name: _data(each) for name, each in fields.items()} if fields else value
