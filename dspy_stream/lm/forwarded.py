"""Models that somebody writes as a ``forward``: called off the loop, and their answers read."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar, copy_context
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

from dspy_stream.errors import LMError
from dspy_stream.threads import DaemonThreads
from dspy_stream.types import Choice, Request, Response, Usage

__all__ = ["Forwarded", "completion_of", "response_of"]

# What may stand beside the text of a message, under the names that answers have here.
_BESIDE: Final = ("reasoning_content", "tool_calls", "refusal", "annotations")

Forward = Callable[..., Any]


class Forwarded:
    """The layer that asks a ``forward(prompt, messages, **options)``, or its asynchronous twin.

    The synchronous one runs in a thread, since it may block for as long as it likes; the twin runs on the
    engine's loop. ``prompt`` is given beside ``messages`` where the question is a single text.
    """

    __slots__ = ("_aforward", "_forward")

    def __init__(self, forward: Forward | None, aforward: Callable[..., Awaitable[Any]] | None) -> None:
        self._forward = forward
        self._aforward = aforward

    async def __call__(self, request: Request) -> Response:
        """What it answers, read as :func:`response_of` says."""
        messages = [message.to_json() for message in request.messages]
        only = messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else None
        options = dict(request.options)
        if request.rollout_id is not None:
            options["rollout_id"] = request.rollout_id
        given: dict[str, Any] = {"prompt": only if isinstance(only, str) else None, "messages": messages}
        if self._aforward is not None:
            return response_of(await self._aforward(**given, **options), request.model)
        assert self._forward is not None
        answer = await _in_thread(partial(self._forward, **given, **options))
        return response_of(answer, request.model)

    async def aclose(self) -> None:
        """Nothing to close: connections are the model's own."""


_THREADS: Final = 64  # forwards that run at the same time; the loop's own threads are only a few
_DEPTH: Final[ContextVar[int]] = ContextVar("dspy_stream_forward_depth", default=0)
_pools: dict[int, DaemonThreads] = {}
_pools_lock = threading.Lock()


def _in_thread(call: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run it in a thread, under the context of its caller.

    A forward that asks another such model waits for it with its own thread, so that one gets a
    thread from elsewhere: all threads of one kind could be waiting.
    """
    depth = _DEPTH.get()
    with _pools_lock:
        pool = _pools.get(depth)
        if pool is None:
            pool = _pools[depth] = DaemonThreads(_THREADS, "dspy_stream forward")
    context = copy_context()
    context.run(_DEPTH.set, depth + 1)
    return asyncio.wrap_future(pool.submit(partial(context.run, call)))


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


def completion_of(response: Response) -> Any:
    """An answer as an object in the form of OpenAI's chat completions; :func:`response_of` reads it back."""
    choices = [
        SimpleNamespace(
            index=number,
            finish_reason=choice.finish_reason,
            message=SimpleNamespace(role="assistant", content=choice.text, **(choice.extra or {})),
        )
        for number, choice in enumerate(response.choices)
    ]
    used = response.usage
    usage = {"prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens}
    usage["total_tokens"] = used.total_tokens
    hidden = {"response_cost": used.cost}
    return SimpleNamespace(
        id=response.request_id, model=response.model, choices=choices, usage=usage, _hidden_params=hidden
    )


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


def _usage(given: Any) -> Usage:
    usage = _of(given, "usage")
    cost = _of(_of(given, "_hidden_params"), "response_cost")

    def tokens(*names: str) -> int:
        return next((int(found) for name in names if (found := _of(usage, name))), 0)

    return Usage(tokens("prompt_tokens", "input_tokens"), tokens("completion_tokens", "output_tokens"), cost)


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
