"""A call of a model as it is told: to callbacks, to the history, to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from dspy_stream import events
from dspy_stream.history import outputs_of
from dspy_stream.runtime import Ask
from dspy_stream.types import Layer, Request, Response

__all__ = ["put"]


def put(
    lm: Any, client: Layer, request: Request, *, prompt: str | None = None
) -> Generator[Ask, Response, Response]:
    """Steps that put a request to a model's layers, and tell of it in the asker's own context.

    Args:
        lm: the model, for those who hear of it.
        prompt: the text that was given instead of messages.
    """
    step, row = events.place()
    outer, told = events.ACTIVE_CALL_ID.get(), events.active
    call_id = events.new_id()
    if told:
        inputs = {
            "prompt": prompt,
            "messages": [message.to_json() for message in request.messages] if prompt is None else None,
            "kwargs": dict(request.options),
        }
        events.publish(events.Started("lm", call_id, outer, time.time(), lm, inputs, step, row))
    began = time.perf_counter()
    try:
        response = yield Ask(client, request)
    except BaseException as error:  # whatever ends a call, its listeners hear of it
        if told:
            outcome = (lm, None, error, time.perf_counter() - began, step, row, request, None, prompt)
            events.publish(events.Called("lm", call_id, outer, time.time(), *outcome, events.CALLERS.get()))
        raise
    outputs = outputs_of(response, getattr(lm, "model_type", "chat"))
    events.publish(
        events.Called(
            *("lm", call_id, outer, time.time(), lm, outputs, None),
            *(time.perf_counter() - began, step, row, request, response, prompt, events.CALLERS.get()),
        )
    )
    return response
